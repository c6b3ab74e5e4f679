"""Soft labels from anywhere: probabilities or logits of texts, a row a text, as a teacher.

A cell of a head is an object `{label: value}`, a list of `{"label": ..., "score": ...}` (as pipelines of
Hugging Face and `distill predict --top-k` write it), or a list of values in the order of the head's labels.
The teacher knows the texts of its rows, and only the heads that a row has; the rest is NaN.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teachers.soft_labels import text_digests

Array = NDArray[Any]
Values = Literal["probabilities", "logits"]
FLOOR = 1e-6  # of a probability, whose logarithm is a logit
SUMS = (
    0.5,
    1.1,
)  # of the probabilities of a single_label head; a list of the best labels sums to less than 1


class ImportedError(Exception):
    """A row that is no soft label: `file:place: what is wrong, what was expected (what to do)`."""

    exit_code = 2


@dataclass(frozen=True)
class ImportedHead:
    """A head as the rows describe it: its labels in order, and whether exactly one applies to a text."""

    name: str
    labels: tuple[str, ...]
    single_label: bool


class ImportedTeacher:
    """Soft labels of texts as a teacher (`teachers.base.Teacher`).

    Attributes:
        name: Where the rows are from.
        digest: Changes with the texts and their soft labels.
        labels: The labels of each head.
        values: Whether the rows held probabilities or logits, by head.
        known: The number of texts with soft labels, by head.
    """

    setting = "teacher.soft_labels"  # in messages
    kind = "soft labels"

    def __init__(
        self,
        name: str,
        rows: Iterable[tuple[str, str, Mapping[str, Any]]],
        heads: Sequence[ImportedHead],
        values: Values | None,
        key: Callable[[str], str],
    ) -> None:
        """Read the rows. A text that occurs twice has the mean of its probabilities, or of its logits.

        Args:
            name: Where the rows are from.
            rows: The place of each row, for messages, its text as the run has it, and the cell of each head;
                a missing cell is None.
            heads: The heads that the rows may have.
            values: What the rows hold; by default probabilities, or logits where most rows of a head cannot
                be probabilities.
            key: What all spellings of a label have in common.

        Raises:
            ImportedError: A cell is no soft label, or a label is unknown.
        """
        self.name = name
        cells: dict[str, list[tuple[str, int, Array]]] = {head.name: [] for head in heads}
        texts: dict[str, int] = {}
        readers = {head.name: _Reader(head, key) for head in heads}
        for place, text, row in rows:
            number = texts.setdefault(text, len(texts))
            for name, cell in row.items():
                if cell is not None:
                    cells[name].append((place, number, readers[name](place, cell)))
        self.values: dict[str, Values] = {}
        self.known: dict[str, int] = {}
        self.labels = {head.name: head.labels for head in heads if cells[head.name]}
        digests = text_digests([*texts])
        order = np.argsort(digests, kind="stable")
        self._digests = digests[order]
        self._logits: dict[str, Array] = {}
        for head in heads:
            if not (found := cells[head.name]):
                continue
            what, logits = _logits(head, found, values, len(texts))
            self.values[head.name], self._logits[head.name] = what, logits[order]
            self.known[head.name] = int((~np.isnan(logits[:, 0])).sum())
        total = hashlib.sha256(repr(self.labels).encode())
        for array in (self._digests, *self._logits.values()):
            total.update(array.tobytes())
        self.digest = total.hexdigest()

    def logits(self, texts: Sequence[str]) -> dict[str, Array]:
        """The logits of each head, float32 `[texts, labels]`; NaN for a text that no row has."""
        digests = text_digests(texts)
        where = np.searchsorted(self._digests, digests).clip(max=max(0, len(self._digests) - 1))
        unknown = self._digests[where] != digests if len(self._digests) else np.ones(len(texts), bool)
        found = {}
        for name, logits in self._logits.items():
            found[name] = logits[where]
            found[name][unknown] = np.nan
        return found


class _Reader:
    """Reads the cells of one head as values `[labels]`, NaN for a label that a cell leaves out."""

    def __init__(self, head: ImportedHead, key: Callable[[str], str]) -> None:
        self.head, self.key = head, key
        self.places = {key(label): number for number, label in enumerate(head.labels)}
        folded = [key(label).casefold() for label in head.labels]
        self.folded = {name: number for number, name in enumerate(folded) if folded.count(name) == 1}

    def __call__(self, place: str, cell: Any) -> Array:
        values = np.full(len(self.head.labels), np.nan, np.float32)
        labels = f"{len(values)} labels of head {self.head.name!r}"
        if isinstance(cell, (list, tuple)) and not any(isinstance(one, (dict, tuple)) for one in cell):
            if len(cell) != len(values):
                raise ImportedError(
                    f"{place}: {self.head.name}: {len(cell)} values, expected one for each of the {labels} "
                    "in order (or give an object of labels)"
                )
            return np.array([self._number(place, value) for value in cell], np.float32)
        pairs = _pairs(cell)
        if pairs is None:
            raise ImportedError(
                f"{place}: {self.head.name}: {_short(cell)} is no soft label, expected an object "
                "{label: value}, or a list of values in the order of the labels"
            )
        for label, value in pairs:
            if value is None:  # parquet gives every object the keys of all
                continue
            number = self.places.get(self.key(label), self.folded.get(self.key(label).casefold()))
            if number is None:
                match = get_close_matches(label, self.head.labels, n=1, cutoff=0.6)
                hint = f" (did you mean {match[0]!r}?)" if match else ""
                raise ImportedError(
                    f"{place}: {self.head.name}: unknown label {_short(label)}{hint}, expected the {labels}: "
                    f"{_short(list(self.head.labels))}"
                )
            if not np.isnan(values[number]):
                raise ImportedError(f"{place}: {self.head.name}: has label {label!r} twice, expected it once")
            values[number] = self._number(place, value)
        if np.isnan(values).all():
            raise ImportedError(f"{place}: {self.head.name}: has no label, expected at least one")
        return values

    def _number(self, place: str, value: Any) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise ImportedError(f"{place}: {self.head.name}: {_short(value)}, expected a finite number")


def _pairs(cell: Any) -> list[tuple[str, Any]] | None:
    """The labels and values of an object, a list of pairs (as Arrow gives a map), or of labels and scores."""
    if isinstance(cell, Mapping):
        return [(str(label), value) for label, value in cell.items()]
    if not isinstance(cell, (list, tuple)):
        return None
    pairs = []
    for one in cell:
        if isinstance(one, Mapping) and {*one} >= {"label", "score"}:
            pairs.append((str(one["label"]), one["score"]))
        elif isinstance(one, tuple) and len(one) == 2:
            pairs.append((str(one[0]), one[1]))
        else:
            return None
    return pairs


def _logits(
    head: ImportedHead, cells: Sequence[tuple[str, int, Array]], values: Values | None, texts: int
) -> tuple[Values, Array]:
    """What the cells of a head hold, and the logits `[texts, labels]`, NaN for a text without a cell."""
    rows = np.stack([row for _, _, row in cells])
    given = np.nan_to_num(rows)
    in_range = ((given >= 0) & (given <= 1)).all(-1)
    sums = given.sum(-1)
    sensible = in_range & ((sums >= SUMS[0]) & (sums <= SUMS[1]) if head.single_label else True)
    what: Values = values or ("probabilities" if sensible.mean() >= 0.5 else "logits")
    if what == "logits":
        _refuse(np.isnan(rows).any(-1), cells, head, "lacks labels, expected a logit of every label")
    else:
        _refuse(
            ~in_range,
            cells,
            head,
            "has values beyond 0 and 1, expected probabilities (or set values: logits)",
        )
        if head.single_label:
            off = (sums < SUMS[0]) | (sums > SUMS[1])
            _refuse(
                off, cells, head, "its probabilities do not sum to 1 (correct them, or set values: logits)"
            )
    if what == "probabilities":
        rows = given / sums[:, None] if head.single_label else given
    numbers = np.array([number for _, number, _ in cells])
    totals, counts = np.zeros((texts, len(head.labels))), np.bincount(numbers, minlength=texts)
    np.add.at(totals, numbers, rows)
    with np.errstate(invalid="ignore"):
        mean = totals / counts[:, None]  # NaN without a row
    if what == "probabilities":
        p = mean.clip(FLOOR, 1 - FLOOR)
        mean = np.log(p) if head.single_label else np.log(p) - np.log1p(-p)
    return what, mean.astype(np.float32)


def _refuse(wrong: Array, cells: Sequence[tuple[str, int, Array]], head: ImportedHead, what: str) -> None:
    """Raise an error that names the first wrong row of a mask, and counts them."""
    if count := int(wrong.sum()):
        place, _, row = cells[int(wrong.argmax())]
        given = {
            label: round(float(x), 4) for label, x in zip(head.labels, row, strict=True) if not np.isnan(x)
        }
        rows = f"; {count:,} such rows" if count > 1 else ""
        raise ImportedError(f"{place}: {head.name}: {_short(given)}: {what}{rows}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
