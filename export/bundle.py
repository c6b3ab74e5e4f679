"""The bundle on disk: a manifest, and files that are as the manifest says or are not read.

A bundle appears under its name by rename, whole or not at all. `manifest.json` holds the size and
sha256 of every other file and a digest of itself, so a changed byte is an error before anything is
served. What the files mean to onnxruntime and tokenizers is left to the runtime.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from reprlib import repr as short
from threading import Thread
from typing import Any, BinaryIO, TypedDict, TypeVar

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FP32 = "onnx/model.onnx"
INT8 = "onnx/model_quantized.onnx"
TOKENIZER = "tokenizer.json"
REPLAY = "replay.npz"
_Found = TypeVar("_Found")

SINGLE_LABEL = "single_label"
MULTI_LABEL = "multi_label"

_HEAD = {"name": str, "kind": str, "labels": list, "output": str}
_RECORD = {"sha256": str, "bytes": int}
_VERSION = {"format_version": int, "digest": str}
_FIELDS = {"name": str, "heads": list, "max_length": int, "pad_token_id": int, "variants": dict}
_FIELDS |= {"default_variant": str, "files": dict}
_AGAIN = "(copy or build the bundle again)"


class BundleError(Exception):
    """What is wrong with which file of a bundle, what was expected, what to do."""


class FileRecord(TypedDict):
    """A file's sha256, hexadecimal, and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Head:
    """One question: its labels in the order of the logits, and how logits become answers.

    `output` names the ONNX output. `temperature` is the calibration temperature that divides the
    logits; `thresholds` are probabilities, one a label, of a multi_label head (None: 0.5 each).
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    output: str
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    @classmethod
    def from_json(cls, data: Any, where: str) -> Head:
        """A head from its JSON object. Raises: BundleError, beginning with `where`."""
        _check_types(data, _HEAD, f"{where}: heads")
        head = cls(**{"temperature": 1.0, **{key: data[key] for key in _KNOWN & data.keys()}})
        where, count = f"{where}: head {head.name!r}", len(head.labels)
        _require(head.name != "", where, "must have a name")
        _require(head.kind in (SINGLE_LABEL, MULTI_LABEL), where, f"unknown kind {head.kind!r}")
        fine = count > 0 and all(isinstance(label, str) for label in head.labels)
        _require(fine and len(set(head.labels)) == count, where, "labels must be unique strings")
        fine = _is_number(head.temperature) and head.temperature > 0
        _require(fine, where, f"temperature: must be > 0, got {short(head.temperature)}")
        if head.thresholds is not None:
            fine = head.kind == MULTI_LABEL and isinstance(head.thresholds, list)
            fine = fine and len(head.thresholds) == count and all(map(_is_number, head.thresholds))
            problem = f"thresholds: must be {count} numbers of a multi_label head"
            _require(fine, where, f"{problem}, got {short(head.thresholds)}")
            head = replace(head, thresholds=tuple(head.thresholds))
        return replace(head, labels=tuple(head.labels))


_KNOWN = Head.__dataclass_fields__.keys()


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds. `details` is free JSON (quality, parity, versions, recipe digest).

    `variants` maps a name to an ONNX file; `max_length` is in tokens, special ones included.
    """

    name: str
    heads: tuple[Head, ...]
    max_length: int
    pad_token_id: int
    variants: Mapping[str, str]
    default_variant: str
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of manifest.json: details at its top level, its own digest last.

        Raises:
            BundleError: details are not JSON, or use a key that the manifest itself uses.
        """
        own: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(self)}
        details = own.pop("details")
        clash = sorted(details.keys() & {*_VERSION, *_FIELDS})
        _require(not clash, MANIFEST, f"details: {clash} are the manifest's own (rename them)")
        try:
            text = json.dumps({**own, **details}, ensure_ascii=False, allow_nan=False)
            document: dict[str, Any] = json.loads(text.encode())
        except (TypeError, ValueError) as error:
            raise BundleError(f"{MANIFEST}: details must be JSON in UTF-8: {error}") from error
        return {**document, "digest": _digest(document)}

    @classmethod
    def from_json(cls, data: Any, where: str = MANIFEST) -> Manifest:
        """A manifest from its JSON object. Raises: BundleError, beginning with `where`."""
        _check_types(data, _VERSION, where)
        version = data["format_version"]
        problem = f"format_version {version}, expected {FORMAT_VERSION}"
        _require(version <= FORMAT_VERSION, where, f"{problem} (upgrade tinyheads)")
        _require(version == FORMAT_VERSION, where, f"{problem} {_AGAIN}")
        rest = {key: value for key, value in data.items() if key != "digest"}
        _require(data["digest"] == _digest(rest), where, f"changed, its digest differs {_AGAIN}")
        _check_types(rest, _FIELDS, where)
        own = {key: rest.pop(key) for key in _FIELDS}
        del rest["format_version"]
        own["heads"] = heads = tuple(Head.from_json(head, where) for head in own["heads"])
        for what in ("name", "output"):
            fine = 0 < len(heads) == len({getattr(head, what) for head in heads})
            _require(fine, where, f"heads: must be one or more, each with its own {what}")
        fine = own["max_length"] > 0 and own["pad_token_id"] >= 0
        _require(fine, where, "must have max_length > 0 and pad_token_id >= 0")
        for file, record in own["files"].items():
            _check_name(file, where)
            _check_types(record, _RECORD, f"{where}: {file}")
        for file in (TOKENIZER, *own["variants"].values()):
            fine = isinstance(file, str) and file in own["files"]
            _require(fine, where, f"{short(file)} is needed and not among the files")
        default, variants = own["default_variant"], own["variants"]
        _require(default in variants, where, f"{default!r} must be one of {sorted(variants)}")
        return cls(**own, details=rest)


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
    from export.folders import written_folder  # who only reads bundles starts sooner without

    folder = Path(folder).resolve()
    fine = not folder.exists() or (folder / MANIFEST).is_file()
    fine = fine or (folder.is_dir() and not any(folder.iterdir()))
    _require(fine, str(folder), "is not a bundle, so it is not replaced (choose another folder)")
    files: dict[str, FileRecord] = {}
    with written_folder(folder) as temporary:
        for name, content in contents.items():
            _check_name(name, str(folder))
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
    _require(folder.is_dir(), str(folder), "no such folder (`distill run` writes a bundle)")
    text = _read(folder, MANIFEST, lambda file: file.read())
    try:
        data = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST}: must be JSON: {error} {_AGAIN}") from error
    return Manifest.from_json(data, str(folder / MANIFEST))


def _compare(folder: Path, manifest: Manifest) -> None:
    """Raises BundleError unless every file is as the manifest says."""
    for name, expected in manifest.files.items():
        found, where = _read(folder, name, _recorded), str(folder / name)
        problem = f"changed: {found}, expected {expected} {_AGAIN}"
        _require(found == expected, where, problem)


def _read(folder: Path, name: str, take: Callable[[BinaryIO], _Found]) -> _Found:
    """What `take` makes of a file of the bundle. Raises: BundleError, also for a link that leads out."""
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        _require(inside, str(path), "is a link out of the bundle (copy the file into it)")
        with path.open("rb") as file:
            return take(file)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: is missing {_AGAIN}") from error
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise BundleError(f"{path}: cannot be read: {error} {_AGAIN}") from error


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


def _digest(document: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object, whatever its spacing and the order of its keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_name(name: str, where: str) -> None:
    """Raises BundleError unless `name` is a plain relative posix path."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    fine = str(path) == name and ".." not in path.parts and not path.is_absolute()
    fine = fine and "\\" not in name and not windows.drive and name not in (".", MANIFEST)
    _require(fine, where, f"files: {name!r} must be a relative path in the bundle, not {MANIFEST}")


def _check_types(data: Any, expected: Mapping[str, type], where: str) -> None:
    """Raises BundleError unless `data` is an object with these keys, each of its type."""
    _require(isinstance(data, dict), where, f"must be an object, got {short(data)}")
    for key, kind in expected.items():
        problem = f"{key}: must be of type {kind.__name__}, got {short(data.get(key))}"
        _require(type(data.get(key)) is kind, where, problem)  # a bool is no int here


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _require(fine: bool, where: str, problem: str) -> None:
    if not fine:
        raise BundleError(f"{where}: {problem}")
