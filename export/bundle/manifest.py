"""The manifest of a bundle: its heads, its files, and the calibration of its logits.

`manifest.json` holds the size and sha256 of every other file, and a digest of itself. Every key is checked
when the file is read, so code that holds a `Manifest` need not check it again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from reprlib import repr as short
from typing import Any, TypedDict

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FP32 = "onnx/model.onnx"
INT8 = "onnx/model_quantized.onnx"
TOKENIZER = "tokenizer.json"
REPLAY = "replay.npz"
SINGLE_LABEL = "single_label"
MULTI_LABEL = "multi_label"

_HEAD = {"name": str, "kind": str, "labels": list, "output": str}
_RECORD = {"sha256": str, "bytes": int}
_VERSION = {"format_version": int, "digest": str}
_FIELDS = {"name": str, "heads": list, "max_length": int, "pad_token_id": int, "variants": dict}
_FIELDS |= {"default_variant": str, "files": dict}
AGAIN = "(copy or build the bundle again)"


class BundleError(Exception):
    """A bundle is missing, changed or invalid; the message names the file and the remedy."""

    exit_code = 2


class FileRecord(TypedDict):
    """The sha256 (hexadecimal) and the size of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Head:
    """A classification head: its labels in the order of its logits, and its calibration.

    Attributes:
        name: Name of the head.
        kind: `single_label` or `multi_label`.
        labels: Unique labels in the order of the logits.
        output: Name of the ONNX output.
        temperature: Calibration temperature, which divides the logits.
        thresholds: Probability from which each label of a multi_label head applies; by default 0.5.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    output: str
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    @classmethod
    def from_json(cls, data: Any, where: str) -> Head:
        """A head from its JSON object.

        Raises:
            BundleError: The object is invalid; the message begins with `where`.
        """
        _check_types(data, _HEAD, f"{where}: heads")
        head = cls(**{"temperature": 1.0, **{key: data[key] for key in _KNOWN & data.keys()}})
        where, count = f"{where}: head {head.name!r}", len(head.labels)
        require(head.name != "", where, "name: must not be empty")
        kinds = (SINGLE_LABEL, MULTI_LABEL)
        require(head.kind in kinds, where, f"kind: must be one of {kinds}, got {head.kind!r}")
        valid = count > 0 and all(isinstance(label, str) for label in head.labels)
        require(valid and len(set(head.labels)) == count, where, "labels: must be unique strings")
        valid = _is_number(head.temperature) and head.temperature > 0
        require(valid, where, f"temperature: must be > 0, got {short(head.temperature)}")
        if head.thresholds is not None:
            valid = head.kind == MULTI_LABEL and isinstance(head.thresholds, list)
            valid = valid and len(head.thresholds) == count and all(map(_is_number, head.thresholds))
            problem = f"thresholds: must be {count} numbers of a multi_label head"
            require(valid, where, f"{problem}, got {short(head.thresholds)}")
            head = replace(head, thresholds=tuple(head.thresholds))
        return replace(head, labels=tuple(head.labels))


_KNOWN = Head.__dataclass_fields__.keys()


@dataclass(frozen=True)
class Manifest:
    """The contents of a bundle.

    Attributes:
        name: Name of the bundle.
        heads: Heads in the order of the logits.
        max_length: Maximum number of tokens of a text, special tokens included.
        pad_token_id: Token id of padding.
        variants: Path of the ONNX file of each variant.
        default_variant: Variant that is loaded by default.
        files: Record of each file by its path.
        details: Any JSON, such as quality, parity, versions, and the digest of the recipe.
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
        """The JSON object of manifest.json: the details at its top level, its digest last.

        Raises:
            BundleError: The details are not JSON, or use a key of the manifest.
        """
        own: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(self)}
        details = own.pop("details")
        clash = sorted(details.keys() & {*_VERSION, *_FIELDS})
        require(not clash, MANIFEST, f"details: {clash} are keys of the manifest (rename them)")
        try:
            text = json.dumps({**own, **details}, ensure_ascii=False, allow_nan=False)
            document: dict[str, Any] = json.loads(text.encode())
        except (TypeError, ValueError) as error:
            raise BundleError(f"{MANIFEST}: details must be JSON in UTF-8: {error}") from error
        return {**document, "digest": _digest(document)}

    @classmethod
    def from_json(cls, data: Any, where: str = MANIFEST) -> Manifest:
        """A manifest from its JSON object.

        Raises:
            BundleError: The object is invalid; the message begins with `where`.
        """
        _check_types(data, _VERSION, where)
        version = data["format_version"]
        problem = f"format_version {version}, expected {FORMAT_VERSION}"
        require(version <= FORMAT_VERSION, where, f"{problem} (upgrade tinyheads)")
        require(version == FORMAT_VERSION, where, f"{problem} {AGAIN}")
        rest = {key: value for key, value in data.items() if key != "digest"}
        require(data["digest"] == _digest(rest), where, f"changed, its digest differs {AGAIN}")
        _check_types(rest, _FIELDS, where)
        own = {key: rest.pop(key) for key in _FIELDS}
        del rest["format_version"]
        own["heads"] = heads = tuple(Head.from_json(head, where) for head in own["heads"])
        for unique in ("name", "output"):
            valid = 0 < len(heads) == len({getattr(head, unique) for head in heads})
            require(valid, where, f"heads: must be one or more, each with its own {unique}")
        valid = own["max_length"] > 0 and own["pad_token_id"] >= 0
        require(valid, where, "must have max_length > 0 and pad_token_id >= 0")
        for file, record in own["files"].items():
            check_name(file, where)
            _check_types(record, _RECORD, f"{where}: {file}")
        for file in (TOKENIZER, *own["variants"].values()):
            valid = isinstance(file, str) and file in own["files"]
            require(valid, where, f"files: must contain {short(file)}")
        default, variants = own["default_variant"], own["variants"]
        problem = f"default_variant: must be one of {sorted(variants)}, got {default!r}"
        require(default in variants, where, problem)
        return cls(**own, details=rest)


def _digest(document: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object, independent of white space and the order of keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_name(name: str, where: str) -> None:
    """Raise BundleError unless `name` is a normalised relative POSIX path."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    valid = str(path) == name and ".." not in path.parts and not path.is_absolute()
    valid = valid and "\\" not in name and not windows.drive and name not in (".", MANIFEST)
    require(valid, where, f"files: {name!r} must be a relative path in the bundle, not {MANIFEST}")


def _check_types(data: Any, expected: Mapping[str, type], where: str) -> None:
    """Raise BundleError unless `data` is an object with these keys, each of its type."""
    require(isinstance(data, dict), where, f"must be an object, got {short(data)}")
    for key, kind in expected.items():
        problem = f"{key}: must be of type {kind.__name__}, got {short(data.get(key))}"
        require(type(data.get(key)) is kind, where, problem)  # a bool is not an int here


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def require(valid: bool, where: str, problem: str) -> None:
    """Raise BundleError unless `valid`."""
    if not valid:
        raise BundleError(f"{where}: {problem}")


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """An error message for an unknown name, with the known names and the nearest of them."""
    from difflib import get_close_matches  # only errors need the import

    near = get_close_matches(str(name), known := [*known], 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}, expected one of {known}{hint}"
