"""A folder that appears under its name by rename, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def resolved(path: str | Path) -> Path:
    """The path without links. Raises: OSError, links in a circle, with the path in it."""
    try:
        return Path(path).resolve()
    except RuntimeError:  # of Python before 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to fill; it takes its name and place at the end.

    When anything fails what was there stays. What killed processes left beside it is swept up.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
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


def _sweep(folder: Path) -> None:
    """Removes what killed processes left beside `folder`; a folder they had set aside returns."""
    for leftover in list(folder.parent.glob(".*-*")):
        stem, _, pid = leftover.name.rpartition("-")
        if stem not in (f".{folder.name}.tmp", f".{folder.name}.old") or _alive(pid):
            continue
        if stem.endswith(".old") and not folder.exists():
            leftover.rename(folder)  # killed between the two renames
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: str) -> bool:
    """Whether another process of this id runs. On Windows always: os.kill would end it there."""
    if not pid.isdecimal() or os.name == "nt":
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return int(pid) != os.getpid()
