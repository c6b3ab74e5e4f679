"""The bundle on disk: a manifest, and files that are as the manifest says or are not read.

A bundle appears under its name by rename, whole or not at all, and a changed byte is an error before
anything is served. What the files mean to onnxruntime and tokenizers is left to the runtime.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG
from threading import Thread
from typing import BinaryIO, TypeVar

from export.bundle.manifest import AGAIN, MANIFEST, BundleError, FileRecord, Manifest, check_name, require

_Found = TypeVar("_Found")


def read_bundle(folder: str | Path) -> Manifest:
    """The manifest of the bundle at `folder`, after every file has been compared with it.

    Raises:
        BundleError: no bundle, of a newer format, or a file that is missing, changed or outside.
    """
    manifest = _manifest(Path(folder))
    _compare(Path(folder), manifest)
    return manifest


@contextmanager
def opened_bundle(folder: str | Path) -> Iterator[Manifest]:
    """As `read_bundle`, but the files are compared by another thread while the block opens them.

    The block ends when they have been compared, and with what was found rather than with its own error: a
    changed file is changed first of all.
    """
    manifest = _manifest(Path(folder))
    for name in manifest.files:
        _read(Path(folder), name, lambda file: None)  # nothing that leads out is opened by others
    problems: list[Exception] = []

    def compare() -> None:
        try:
            _compare(Path(folder), manifest)
        except Exception as error:
            problems.append(error)

    thread = Thread(target=compare)
    thread.start()
    try:
        yield manifest
    finally:
        thread.join()
        if problems:
            raise problems[0] from None


def write_bundle(folder: str | Path, manifest: Manifest, contents: Mapping[str, Path | bytes]) -> Manifest:
    """The manifest written, files filled in, once `folder` holds the whole bundle.

    Contents are bytes or files to copy, by their path in the bundle. An older bundle is replaced;
    when anything fails it stays as it was. What a killed process left beside it is swept up.

    Raises:
        BundleError: `read_bundle` would refuse the result, or `folder` holds something else.
    """
    from export.bundle.atomic import resolved, written_folder  # who only reads bundles starts sooner without

    folder = resolved(folder)
    fine = not folder.exists() or (folder / MANIFEST).is_file()
    fine = fine or (folder.is_dir() and not any(folder.iterdir()))
    require(fine, str(folder), "is not a bundle, so it is not replaced (choose another folder)")
    files: dict[str, FileRecord] = {}
    with written_folder(folder) as temporary:
        for name, content in contents.items():
            check_name(name, str(folder))
            data = content if isinstance(content, bytes) else content.read_bytes()
            files[name] = _record(data)
            _write(temporary / name, data)
        document = replace(manifest, files=files).to_json()
        manifest = Manifest.from_json(document, str(folder / MANIFEST))
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        _write(temporary / MANIFEST, text.encode())
    return manifest


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _manifest(folder: Path) -> Manifest:
    what = "is a file, a bundle is a folder" if folder.is_file() else "no such folder"
    require(folder.is_dir(), str(folder), f"{what} (`distill run` writes one to RUN/bundle)")
    text = _read(folder, MANIFEST, lambda file: file.read())
    try:
        data = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST}: must be JSON: {error} {AGAIN}") from error
    return Manifest.from_json(data, str(folder / MANIFEST))


def _compare(folder: Path, manifest: Manifest) -> None:
    """Raises BundleError unless every file is as the manifest says."""
    for name, expected in manifest.files.items():
        found, where = _read(folder, name, _recorded), str(folder / name)
        told = [f"{x['bytes']} bytes of sha256 {x['sha256'][:12]}..." for x in (found, expected)]
        require(found == expected, where, f"changed: {told[0]}, expected {told[1]} {AGAIN}")


def _read(folder: Path, name: str, take: Callable[[BinaryIO], _Found]) -> _Found:
    """What `take` makes of a file of the bundle. Raises: BundleError, also for a link that leads out."""
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        require(inside, str(path), "is a link out of the bundle (copy the file into it)")
        # a pipe would be waited for
        require(S_ISREG(path.stat().st_mode), str(path), f"cannot be read: it is no file {AGAIN}")
        with path.open("rb") as file:
            return take(file)
    except FileNotFoundError as error:
        hint = "(give a bundle's folder, such as RUN/bundle)" if name == MANIFEST else AGAIN
        raise BundleError(f"{path}: is missing {hint}") from error
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise BundleError(f"{path}: cannot be read: {error} {AGAIN}") from error


def _recorded(file: BinaryIO) -> FileRecord:
    """The record of an open file, never more than a part of it in memory."""
    digest, size = hashlib.sha256(), 0
    part = memoryview(bytearray(1 << 18))
    while count := file.readinto(part):  # type: ignore[attr-defined]  # every binary file has it
        digest.update(part[:count])
        size += count
    return {"sha256": digest.hexdigest(), "bytes": size}


def _record(data: bytes) -> FileRecord:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
