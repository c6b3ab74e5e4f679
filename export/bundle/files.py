"""Reads and writes bundles: a manifest, and files that must match it.

A bundle appears under its name by rename, complete or not at all. A changed byte is an error before anything
is served.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from stat import S_ISREG
from threading import Thread
from typing import Any, BinaryIO, TypeVar

from export.bundle.manifest import (
    AGAIN,
    CARD,
    MANIFEST,
    MAX_MANIFEST,
    BundleError,
    FileRecord,
    Manifest,
    check_names,
    require,
)

_Content = TypeVar("_Content")
# a pipe without a writer would block; Windows has other flags
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def read_bundle(folder: str | Path) -> Manifest:
    """The manifest of the bundle in a folder, after comparing every file with it.

    Raises:
        BundleError: There is no bundle, its format is newer, or a file is missing or changed.
    """
    manifest = read_manifest(Path(folder))
    _compare(Path(folder), manifest, manifest.files)
    return manifest


@contextmanager
def opened_bundle(
    folder: str | Path, choose: Callable[[Manifest], Iterable[str]]
) -> Iterator[tuple[Manifest, Mapping[str, bytes]]]:
    """The manifest of a bundle, and the content of the files that `choose` returns, which match it.

    The other files are compared in another thread while the block runs. The block ends after the comparison,
    whose error replaces any error of the block.

    Raises:
        BundleError: See `read_bundle`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    contents = {name: read_file(folder, manifest, name) for name in choose(manifest)}
    errors: list[Exception] = []

    def compare() -> None:
        try:
            _compare(folder, manifest, manifest.files.keys() - contents.keys())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=compare)
    thread.start()
    try:
        yield manifest, contents
    finally:
        thread.join()
        if errors:
            raise errors[0] from None


def read_file(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The content of a file, which matches the manifest.

    Raises:
        BundleError: The file is missing or changed.
    """
    size = manifest.files[name]["bytes"]
    content = _read(folder, name, lambda file: file.read(size), size)
    _check_digest(folder / name, hashlib.sha256(content), manifest.files[name])
    return content


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
        check_names(contents, str(folder))
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            if name != CARD:
                files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(data)
        document = replace(manifest, files=files).to_json()
        manifest = Manifest.from_json(document, str(folder / MANIFEST))
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (temporary / MANIFEST).write_bytes(text.encode())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in a folder; its files are not compared.

    Raises:
        BundleError: There is no bundle, its format is newer, or the manifest is invalid.
    """
    what = "is a file, a bundle is a folder" if folder.is_file() else "no such folder"
    require(folder.is_dir(), str(folder), f"{what} (`distill run` writes one to RUN/bundle)")
    text = _read(folder, MANIFEST, lambda file: file.read(MAX_MANIFEST))
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST}: must be JSON: {error} {AGAIN}") from error
    return Manifest.from_json(data, str(folder / MANIFEST))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError if a key is repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {short(key)} is repeated")
    return found


def _compare(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Raise BundleError unless these files match the manifest."""
    for name in names:
        digest = _read(folder, name, file_digest, manifest.files[name]["bytes"])
        _check_digest(folder / name, digest, manifest.files[name])


def _check_digest(path: Path, digest: hashlib._Hash, record: FileRecord) -> None:
    got, expected = (f"sha256 {x[:12]}..." for x in (digest.hexdigest(), record["sha256"]))
    require(digest.hexdigest() == record["sha256"], str(path), f"changed: {got}, expected {expected} {AGAIN}")


def _read(folder: Path, name: str, read: Callable[[BinaryIO], _Content], size: int | None = None) -> _Content:
    """What `read` returns for a file of `size` bytes, or of at most MAX_MANIFEST.

    Links are followed, since the digest tells whether the content is right.

    Raises:
        BundleError: The file cannot be read, or has another size.
    """
    path = folder / name
    try:
        with os.fdopen(os.open(path, _FLAGS), "rb") as file:
            found = os.fstat(file.fileno())
            require(S_ISREG(found.st_mode), str(path), f"cannot be read: it is not a file {AGAIN}")
            valid = found.st_size <= MAX_MANIFEST if size is None else found.st_size == size
            wanted = f"at most {MAX_MANIFEST}" if size is None else size
            require(valid, str(path), f"changed: {found.st_size} bytes, expected {wanted} {AGAIN}")
            return read(file)
    except FileNotFoundError as error:
        hint = "(give a bundle's folder, such as RUN/bundle)" if name == MANIFEST else AGAIN
        raise BundleError(f"{path}: is missing {hint}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error} {AGAIN}") from error


def file_digest(file: BinaryIO) -> hashlib._Hash:
    """The sha256 of an open file, which is read in chunks."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(1 << 18))
    while count := file.readinto(chunk):  # type: ignore[attr-defined]  # BinaryIO lacks readinto
        digest.update(chunk[:count])
    return digest
