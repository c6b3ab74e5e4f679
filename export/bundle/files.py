"""Reads and writes bundles: a manifest, and files that must match it.

A bundle appears under its name by rename, complete or not at all. A changed byte is an error before anything
is served.
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

_Content = TypeVar("_Content")


def read_bundle(folder: str | Path) -> Manifest:
    """The manifest of the bundle in a folder, after comparing every file with it.

    Raises:
        BundleError: There is no bundle, its format is newer, or a file is missing, changed or a link out of
            it.
    """
    manifest = _read_manifest(Path(folder))
    _compare(Path(folder), manifest)
    return manifest


@contextmanager
def opened_bundle(folder: str | Path) -> Iterator[Manifest]:
    """Like `read_bundle`, but compares the files in another thread while the block opens them.

    The block ends after the comparison, whose error replaces any error of the block.
    """
    manifest = _read_manifest(Path(folder))
    for name in manifest.files:
        _read(Path(folder), name, lambda file: None)  # rejects links before the block follows them
    errors: list[Exception] = []

    def compare() -> None:
        try:
            _compare(Path(folder), manifest)
        except Exception as error:
            errors.append(error)

    thread = Thread(target=compare)
    thread.start()
    try:
        yield manifest
    finally:
        thread.join()
        if errors:
            raise errors[0] from None


def write_bundle(folder: str | Path, manifest: Manifest, contents: Mapping[str, Path | bytes]) -> Manifest:
    """Write a bundle; returns the manifest with the records of the files.

    An older bundle is replaced; if anything fails, it stays as it was.

    Args:
        folder: Folder to write.
        manifest: Manifest without `files`.
        contents: Bytes or files to copy, by their path in the bundle.

    Raises:
        BundleError: `read_bundle` would reject the result, or `folder` holds something else.
    """
    from export.bundle.atomic import replacing_folder, resolve  # only writers need the import

    folder = resolve(folder)
    valid = not folder.exists() or (folder / MANIFEST).is_file()
    valid = valid or (folder.is_dir() and not any(folder.iterdir()))
    require(valid, str(folder), "is not a bundle, so it is not replaced (choose another folder)")
    files: dict[str, FileRecord] = {}
    with replacing_folder(folder) as temporary:
        for name, content in contents.items():
            check_name(name, str(folder))
            data = content if isinstance(content, bytes) else content.read_bytes()
            files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(data)
        document = replace(manifest, files=files).to_json()
        manifest = Manifest.from_json(document, str(folder / MANIFEST))
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (temporary / MANIFEST).write_bytes(text.encode())
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    what = "is a file, a bundle is a folder" if folder.is_file() else "no such folder"
    require(folder.is_dir(), str(folder), f"{what} (`distill run` writes one to RUN/bundle)")
    text = _read(folder, MANIFEST, lambda file: file.read())
    try:
        data = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST}: must be JSON: {error} {AGAIN}") from error
    return Manifest.from_json(data, str(folder / MANIFEST))


def _compare(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError unless every file matches the manifest."""
    for name, expected in manifest.files.items():
        record = _read(folder, name, _record)
        got, wanted = (f"{x['bytes']} bytes of sha256 {x['sha256'][:12]}..." for x in (record, expected))
        require(record == expected, str(folder / name), f"changed: {got}, expected {wanted} {AGAIN}")


def _read(folder: Path, name: str, read: Callable[[BinaryIO], _Content]) -> _Content:
    """What `read` returns for a file. Raises BundleError, also for a link that leads out of the bundle."""
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        require(inside, str(path), "is a link out of the bundle (copy the file into it)")
        # opening a pipe would block
        require(S_ISREG(path.stat().st_mode), str(path), f"cannot be read: it is not a file {AGAIN}")
        with path.open("rb") as file:
            return read(file)
    except FileNotFoundError as error:
        hint = "(give a bundle's folder, such as RUN/bundle)" if name == MANIFEST else AGAIN
        raise BundleError(f"{path}: is missing {hint}") from error
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a cycle of links
        raise BundleError(f"{path}: cannot be read: {error} {AGAIN}") from error


def _record(file: BinaryIO) -> FileRecord:
    """The record of an open file, which is read in chunks."""
    digest, size = hashlib.sha256(), 0
    chunk = memoryview(bytearray(1 << 18))
    while count := file.readinto(chunk):  # type: ignore[attr-defined]  # BinaryIO lacks readinto
        digest.update(chunk[:count])
        size += count
    return {"sha256": digest.hexdigest(), "bytes": size}
