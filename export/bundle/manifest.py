"""The manifest of a bundle: its heads, its files, and the calibration of its logits.

`manifest.json` holds the size and sha256 of every other file but the model card, and a digest of itself.
Every key is checked when the file is read, so code that holds a `Manifest` need not check it again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import inf
from reprlib import repr as short
from typing import Any, TypedDict

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FP32 = "onnx/model.onnx"
INT8 = "onnx/model_quantized.onnx"
TOKENIZER = "tokenizer.json"
REPLAY = "replay.npz"
CARD = "README.md"  # which people edit, so the manifest does not record it
SINGLE_LABEL = "single_label"
MULTI_LABEL = "multi_label"
HEADS = "heads"
PACKED = "packed"
STRING = "string"
INTEGER = "integer"
PROBABILITY = "probability"
ENERGY = "energy"

_HEAD = {"name": str, "kind": str, "labels": list, "output": str}
_RECORD = {"sha256": str, "bytes": int}
_VERSION = {"format_version": int, "digest": str}
_FIELDS = {"name": str, "heads": list, "max_length": int, "pad_token_id": int, "variants": dict}
_FIELDS |= {"default_variant": str, "files": dict}
_DEFAULTS: dict[str, Any] = {"kind": HEADS, "label_length": 0}  # left out of a manifest of heads
_HEAD_DEFAULTS: dict[str, Any] = {"hypothesis": "", "descriptions": {}, "abstain": None}
AGAIN = "(copy or build the bundle again)"
# Far beyond any bundle. Without limits, a stranger's manifest of a few bytes could cost gigabytes.
MAX_MANIFEST = 16 << 20  # bytes
MAX_FILES = 4 << 30  # bytes of all other files
MAX_DEPTH = 64
MAX_TOKENS = 8192
MAX_ID = (1 << 31) - 1
TEMPERATURES = 1e-3, 1e3
SCORES = {PROBABILITY: (0.0, 1.0), ENERGY: (-1e9, 1e9)}  # of which a head abstains, and their ranges
_FILE_NAME = re.compile(
    r"(?!.{256}|.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII
)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SURROGATE = re.compile(r"\\ud[89a-f]")
_TEXT = "must be text without line breaks and control characters"


class BundleError(Exception):
    """A bundle is missing, changed or invalid; the message names the file and the remedy."""

    exit_code = 2


class FileRecord(TypedDict):
    """The sha256 (hexadecimal) and the size of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Abstain:
    """When a single_label head abstains: its answers whose score is below the threshold are withheld.

    Attributes:
        score: `probability`, that of the answer, or `energy`, the log of the sum of the exponentials of
            logits / temperature (Liu et al. 2020, arXiv:2010.03759). The higher, the surer.
        threshold: The lowest score that is answered.
        accuracy: Share of the answered texts that are right, as promised; None if none is promised.
        confidence: Confidence of that promise.
        coverage: Share of the validation texts that are answered; None if it was not measured.
    """

    score: str
    threshold: float
    accuracy: float | None = None
    confidence: float | None = None
    coverage: float | None = None

    @classmethod
    def from_json(cls, data: Any, where: str) -> Abstain:
        """The rule from its JSON object.

        Raises:
            BundleError: The object is invalid; the message begins with `where`.
        """
        _check_types(data, {"score": str}, where)
        rule = cls(**{"threshold": None, **{key: data[key] for key in _RULE & data.keys()}})
        scores = (PROBABILITY, ENERGY)
        require(rule.score in scores, where, f"score: must be one of {scores}, got {short(rule.score)}")
        low, high = SCORES[rule.score]
        problem = f"threshold: must be a number from {low:g} to {high:g}, got {short(rule.threshold)}"
        require(_is_number(rule.threshold, low, high), where, problem)
        for key in ("accuracy", "confidence", "coverage"):
            share = getattr(rule, key)
            problem = f"{key}: must be a number from 0 to 1, got {short(share)}"
            require(share is None or _is_number(share, 0, 1), where, problem)
        return rule


@dataclass(frozen=True)
class Head:
    """A classification head: its labels in the order of its logits, and its calibration.

    Attributes:
        name: Name of the head.
        kind: `single_label` or `multi_label`.
        labels: Unique labels in the order of the logits.
        output: Name of the ONNX output.
        temperature: Calibration temperature, which divides the logits.
        thresholds: Probability from which each label of a multi_label head applies; by default 0.5. At 1 it
            never does.
        label_type: `integer` if answers give the labels as whole numbers, else `string`.
        hypothesis: What a packed network reads after each text.
        descriptions: What a packed network reads after labels, by label.
        abstain: When a single_label head abstains; None if it always answers.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    output: str
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    label_type: str = STRING
    hypothesis: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict, hash=False)
    abstain: Abstain | None = None

    @cached_property
    def values(self) -> tuple[str, ...] | tuple[int, ...]:
        """The labels as answers give them, strings or whole numbers."""
        return tuple(map(int, self.labels)) if self.label_type == INTEGER else self.labels

    @property
    def limits(self) -> tuple[float, ...]:
        """The probability from which each label of a multi_label head applies: with a threshold of 1, none.

        A sigmoid rounds to 1 from a logit of 37, in float32 from one of 17.
        """
        return tuple(inf if x >= 1 else x for x in self.thresholds or (0.5,) * len(self.labels))

    @classmethod
    def from_json(cls, data: Any, where: str) -> Head:
        """A head from its JSON object.

        Raises:
            BundleError: The object is invalid; the message begins with `where`.
        """
        _check_types(data, _HEAD, f"{where}: heads")
        head = cls(**{"temperature": 1.0, **{key: data[key] for key in _KNOWN & data.keys()}})
        where, count = f"{where}: head {short(head.name)}", len(head.labels)
        require(_is_text(head.name) and _is_text(head.output), where, f"name and output: {_TEXT}")
        kinds = (SINGLE_LABEL, MULTI_LABEL)
        require(head.kind in kinds, where, f"kind: must be one of {kinds}, got {short(head.kind)}")
        valid = count > 0 and all(map(_is_text, head.labels)) and len(set(head.labels)) == count
        require(valid, where, f"labels: must be unique; each {_TEXT}")
        valid = _is_number(head.temperature, *TEMPERATURES)
        problem = "temperature: must be a number from {} to {}".format(*TEMPERATURES)
        require(valid, where, f"{problem}, got {short(head.temperature)}")
        if head.thresholds is not None:
            valid = head.kind == MULTI_LABEL and isinstance(head.thresholds, list)
            valid = valid and len(head.thresholds) == count
            valid = valid and all(_is_number(threshold, 0, 1) for threshold in head.thresholds)
            problem = f"thresholds: must be {count} numbers from 0 to 1 of a multi_label head"
            require(valid, where, f"{problem}, got {short(head.thresholds)}")
            head = replace(head, thresholds=tuple(head.thresholds))
        problem = f"label_type: must be {STRING} or {INTEGER}, got {short(head.label_type)}"
        require(head.label_type in (STRING, INTEGER), where, problem)
        valid = head.label_type == STRING or all(map(_INTEGER.fullmatch, head.labels))
        require(valid, where, "labels: must be whole numbers of at most 15 digits, as label_type is integer")
        problem = f"hypothesis: must be text, got {short(head.hypothesis)}"
        require(isinstance(head.hypothesis, str), where, problem)
        valid = isinstance(head.descriptions, dict) and {*head.descriptions} <= {*head.labels}
        valid = valid and all(isinstance(text, str) for text in head.descriptions.values())
        require(valid, where, "descriptions: must be an object of texts by label")
        if head.abstain is not None:
            require(head.kind == SINGLE_LABEL, where, "abstain: must be of a single_label head")
            head = replace(head, abstain=Abstain.from_json(head.abstain, f"{where}: abstain"))
        return replace(head, labels=tuple(head.labels))


_KNOWN, _RULE = Head.__dataclass_fields__.keys(), Abstain.__dataclass_fields__.keys()


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
        kind: `heads`, or `packed` if labels are input.
        label_length: Maximum number of tokens of a label of a packed network.
    """

    name: str
    heads: tuple[Head, ...]
    max_length: int
    pad_token_id: int
    variants: Mapping[str, str]
    default_variant: str
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    kind: str = HEADS
    label_length: int = 0

    def to_json(self) -> dict[str, Any]:
        """The JSON object of manifest.json: the details at its top level, its digest last.

        Raises:
            BundleError: The details are not JSON, or use a key of the manifest.
        """
        own: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(self)}
        details = own.pop("details")
        own = {key: value for key, value in own.items() if _DEFAULTS.get(key) != value}
        own["heads"] = [
            {key: value for key, value in head.items() if _HEAD_DEFAULTS.get(key) != value}
            for head in own["heads"]
        ]
        clash = sorted(details.keys() & {*_VERSION, *_FIELDS, *_DEFAULTS})
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
        problem = f"format_version {short(version)}, expected {FORMAT_VERSION}"
        require(version <= FORMAT_VERSION, where, f"{problem} (upgrade tinyheads)")
        require(version == FORMAT_VERSION, where, f"{problem} {AGAIN}")
        rest = {key: value for key, value in data.items() if key != "digest"}
        level: list[Any] = [data]
        for _ in range(MAX_DEPTH):
            level = [x for value in level if isinstance(value, (dict, list)) for x in _children(value)]
        require(not level, where, f"must be nested at most {MAX_DEPTH} deep")
        try:
            digest = _digest(rest)
        except ValueError as error:
            raise BundleError(
                f"{where}: must be JSON of UTF-8 and finite numbers: {error} {AGAIN}"
            ) from error
        require(data["digest"] == digest, where, f"changed, its digest differs {AGAIN}")
        given = _DEFAULTS.keys() & rest.keys()
        _check_types(rest, _FIELDS | {key: type(_DEFAULTS[key]) for key in given}, where)
        own = {key: rest.pop(key) for key in (*_FIELDS, *given)}
        del rest["format_version"]
        own["heads"] = heads = tuple(Head.from_json(head, where) for head in own["heads"])
        for unique in ("name", "output"):
            valid = 0 < len(heads) == len({getattr(head, unique) for head in heads})
            require(valid, where, f"heads: must be one or more, each with its own {unique}")
        require(_is_text(own["name"]), where, f"name: {_TEXT}")
        for key, low, high in (("max_length", 1, MAX_TOKENS), ("pad_token_id", 0, MAX_ID)):
            problem = f"{key}: must be from {low} to {high}, got {short(own[key])}"
            require(_is_number(own[key], low, high), where, problem)
        kind, length = own.get("kind", HEADS), own.get("label_length", 0)
        require(kind in (HEADS, PACKED), where, f"kind: must be {HEADS} or {PACKED}, got {short(kind)}")
        valid = _is_number(length, 2, MAX_TOKENS) if kind == PACKED else length == 0
        problem = f"label_length: must be from 2 to {MAX_TOKENS} in a packed bundle"
        require(valid, where, f"{problem}, got {short(length)}")
        check_names(own["files"], where)
        for file, record in own["files"].items():
            _check_types(record, _RECORD, f"{where}: {file}")
            valid = record["bytes"] >= 0 and bool(_SHA256.fullmatch(record["sha256"]))
            require(valid, where, f"{file}: must have bytes >= 0 and a sha256, got {short(record)}")
        total = sum(record["bytes"] for record in own["files"].values())
        require(total <= MAX_FILES, where, f"files: must be at most {MAX_FILES:,} bytes, got {short(total)}")
        for file in (TOKENIZER, *own["variants"].values()):
            valid = isinstance(file, str) and file in own["files"]
            require(valid, where, f"files: must contain {short(file)}")
        default, variants = own["default_variant"], own["variants"]
        problem = f"default_variant: must be one of {short(sorted(variants))}, got {short(default)}"
        require(default in variants, where, problem)
        return cls(**own, details=rest)


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _digest(document: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object, independent of white space and the order of keys.

    Raises:
        ValueError: The object holds a number that is not finite, or text that UTF-8 cannot encode.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if _SURROGATE.search(text):
        json.dumps(document, ensure_ascii=False).encode()  # raises unless they are pairs
    return hashlib.sha256(text.encode()).hexdigest()


def check_names(names: Collection[str], where: str) -> None:
    """Raise BundleError unless the names are relative paths of different files on every system."""
    for name in names:
        problem = f"files: {short(name)} must be a relative path in the bundle, of letters, digits, _ . -"
        require(bool(_FILE_NAME.fullmatch(name)), where, problem)
    paths = {name.casefold() for name in (*names, MANIFEST)}
    folders = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
    valid = len(paths) > len(names) and not paths & folders
    require(valid, where, f"files: must differ in more than case from each other and from {MANIFEST}")


def _check_types(data: Any, expected: Mapping[str, type], where: str) -> None:
    """Raise BundleError unless `data` is an object with these keys, each of its type."""
    require(isinstance(data, dict), where, f"must be an object, got {short(data)}")
    for key, kind in expected.items():
        problem = f"{key}: must be of type {kind.__name__}, got {short(data.get(key))}"
        require(type(data.get(key)) is kind, where, problem)  # a bool is not an int here


def _is_number(value: object, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # type: ignore[operator]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and not _CONTROL.search(value)


def require(valid: bool, where: str, problem: str) -> None:
    """Raise BundleError unless `valid`."""
    if not valid:
        raise BundleError(f"{where}: {problem}")


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """An error message for an unknown name, with the known names and the nearest of them."""
    from difflib import get_close_matches  # only errors need the import

    known = [*known]
    near = get_close_matches(str(name), known, 1) if len(str(name)) <= 200 else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {short(name)}, expected one of {known}{hint}"
