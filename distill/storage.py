"""The files of a run: JSON, digests of what a stage left, and the lock of a run's folder."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from export.bundle.atomic import resolve as resolve
from export.bundle.atomic import sync
from export.bundle.atomic import written_whole as written_whole
from export.bundle.files import file_digest


class RunLockedError(Exception):
    """Another process or thread works in the folder of the run."""

    exit_code = 2


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, complete or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own digest, complete or not at all."""
    write_json(path, {**value, "sha256": json_digest(value)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The object that `write_sealed` wrote, or None if it is missing or damaged."""
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("sha256", None) != json_digest(content):
        return None
    return content


def json_digest(value: Any) -> str:
    """The sha256 of a value, in the form in which a JSON file returns it."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def files_in(path: Path) -> list[Path]:
    """The files in a folder that a stage leaves there, or the file itself."""
    if path.is_file():
        return [path]
    own = {path / "stage.json", path / "begun.json"}
    inner = (file for file in sorted(path.rglob("*")) if file.is_file() and file not in own)
    return [file for file in inner if file.relative_to(path).parts[0] != "scratch"]


def digests(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The sha256 of files by their path below `root`. What is digested is written through to the disk."""
    found = {}
    for path in paths:
        sync(path)
        found[path.relative_to(root).as_posix()] = _sha256(path)
    return found


def damaged(root: Path, expected: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each file that does not have its digest: missing, empty or changed."""
    found = {}
    for name, digest in expected.items():
        path = root / name
        if not path.is_file():
            found[name] = "is missing"
        elif not path.stat().st_size and digest != _EMPTY:
            found[name] = "is empty"
        elif _sha256(path) != digest:
            found[name] = "is changed or damaged"
    return found


@contextmanager
def locked(folder: Path, inside: str = "stages") -> Iterator[None]:
    """Holds the lock of a run's folder, which the system releases when the process ends, however it ends.

    Args:
        folder: Of the run; a folder without `stages` is none and has no lock.
        inside: The folder in it that makes it one, if it is of something else than a run.

    Raises:
        RunLockedError: Another process or thread holds it.
    """
    holder = folder / inside / ".holder.json"
    if not holder.parent.is_dir():  # no run
        yield
        return
    lock = FileLock(holder.with_name(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        by = read_sealed(holder) or {"pid": "?", "host": "?", "since": "?"}
        raise RunLockedError(
            f"{folder}: process {by['pid']} on {by['host']} has been working in this folder "
            f"since {by['since']} (wait until it ends, or choose another --out)"
        ) from None
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        write_sealed(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file).hexdigest()


_EMPTY = hashlib.sha256().hexdigest()
