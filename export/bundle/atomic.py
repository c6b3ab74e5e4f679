"""Writes folders atomically: they appear under their name by rename, complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def resolve(path: str | Path) -> Path:
    """The absolute path with links resolved.

    Raises:
        OSError: The links form a cycle.
    """
    try:
        return Path(path).resolve()
    except RuntimeError:  # Python before 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder next to `folder` that replaces it when the block ends.

    If the block fails, `folder` stays as it was. Leftovers of killed processes are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    temporary, old = (folder.with_name(f".{folder.name}.{x}-{os.getpid()}") for x in ("tmp", "old"))
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left next to `folder`, or restore the folder that they had renamed."""
    for leftover in list(folder.parent.glob(".*-*")):
        stem, _, pid = leftover.name.rpartition("-")
        if stem not in (f".{folder.name}.tmp", f".{folder.name}.old") or _is_running(pid):
            continue
        if stem.endswith(".old") and not folder.exists():
            leftover.rename(folder)  # killed between the two renames
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: str) -> bool:
    """Whether another process has this id. Always true on Windows, where os.kill would end it."""
    if not pid.isdecimal() or os.name == "nt":
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return int(pid) != os.getpid()
