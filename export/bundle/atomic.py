"""Writes files and folders atomically: they appear under their name by rename, complete or not at all.

The content is on the disk before the rename, and the rename when the block ends. So a power cut, too, leaves
the old content or the new.
"""

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


def sync(path: Path) -> None:
    """Write a file, or a folder and all that is in it, through to the disk."""
    for inner in (*path.rglob("*"), path):
        _sync_one(inner)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path next to `path`, for a file that replaces it when the block ends, and is removed if it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        _sync_one(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
        sync(temporary)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _sync_one(folder.parent)
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


def _sync_one(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    if os.name == "nt":  # where only a file that is open for writing can be synced
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no sync
            raise
    finally:
        os.close(descriptor)
