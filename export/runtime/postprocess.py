"""Converts logits to labels and scores with the calibration of each head.

All heads are processed as columns of one matrix, so 32 heads take little longer than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from reprlib import repr as short
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from export.bundle.manifest import SINGLE_LABEL, Head, unknown
from export.runtime.probabilities import Floats, probabilities, sigmoid

Thresholds: TypeAlias = Mapping[str, float | Mapping[Any, float]]  # of heads, or of the labels of heads

_NUMBERS = int, float, np.integer, np.floating


def columns(heads: Sequence[Head]) -> dict[str, slice]:
    """The columns of each head's logits in the concatenation of all heads."""
    found, start = {}, 0
    for head in heads:
        found[head.name] = slice(start, start := start + len(head.labels))
    return found


def with_thresholds(heads: Sequence[Head], thresholds: object) -> list[Head]:
    """The heads with the thresholds of a call; labels that it does not name keep theirs.

    Args:
        heads: The heads that answer.
        thresholds: `{head: threshold}`, or `{head: {label: threshold}}`.

    Raises:
        ValueError: A head or a label is unknown, a head has no thresholds, or one is no number from 0 to 1.
    """
    if not isinstance(thresholds, Mapping):
        raise ValueError(f"thresholds: must map heads to numbers, got {short(thresholds)}")
    names = [head.name for head in heads]
    for name in thresholds:
        if name not in names:
            raise ValueError(f"thresholds: {unknown('head', name, names)}")
    return [
        _with_thresholds(head, thresholds[head.name]) if head.name in thresholds else head for head in heads
    ]


def _with_thresholds(head: Head, given: object) -> Head:
    where = f"thresholds: {short(head.name)}"
    if head.kind == SINGLE_LABEL:
        raise ValueError(f"{where}: is a single_label head, expected a multi_label one (leave it out)")
    found = dict(zip(head.labels, head.thresholds or repeat(0.5), strict=False))
    for label, value in (given if isinstance(given, Mapping) else dict.fromkeys(head.labels, given)).items():
        if str(label) not in found:
            raise ValueError(f"{where}: {unknown('label', label, head.labels)}")
        if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not 0 <= value <= 1:
            of = f"{where}: {short(label)}" if isinstance(given, Mapping) else where
            raise ValueError(f"{of}: must be a number from 0 to 1, got {short(value)}")
        found[str(label)] = float(value)
    return replace(head, thresholds=tuple(found.values()))


class Answers:
    """Converts the concatenated logits of some heads to labels and scores."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads, self.columns = tuple(heads), columns(heads)
        labels = sum(len(head.labels) for head in heads)
        # the extra column pads heads with fewer labels than others of their group
        self._temperatures = np.ones(labels + 1)
        groups: dict[int, list[Head]] = {}  # single_label heads of similar width, one row per head
        for head in heads:
            self._temperatures[self.columns[head.name]] = head.temperature
            if head.kind == SINGLE_LABEL:
                groups.setdefault(len(head.labels).bit_length() // 2, []).append(head)
        self._groups = [(group, self._grid(group, padding=labels)) for group in groups.values()]
        self._multi = [head for head in heads if head.kind != SINGLE_LABEL]
        parts = [np.arange(labels)[self.columns[head.name]] for head in self._multi]
        self._multi_columns = np.concatenate([np.empty(0, np.intp), *parts])
        thresholds = (head.thresholds or (0.5,) * len(head.labels) for head in self._multi)
        self._thresholds = np.array([*chain.from_iterable(thresholds)], np.float64)
        self._multi_labels = [(head, label) for head in self._multi for label in head.values]

    def __call__(self, logits: Floats, top_k: int | None, scores: bool) -> list[dict[str, Any]]:
        """The answers `{head: answer}` to each row of logits `[texts, labels of all heads]`."""
        if scores or top_k is not None:
            return self._ranked(logits, top_k)
        scaled = np.empty((len(logits), len(self._temperatures)))
        np.divide(logits, self._temperatures[:-1], scaled[:, :-1])
        scaled[:, -1] = -np.inf
        answers: list[dict[str, Any]] = [dict.fromkeys(self.columns) for _ in scaled]
        for heads, grid in self._groups:
            _add_best(heads, scaled[:, grid].reshape(len(scaled), len(heads), -1), answers)
        if self._multi:
            self._add_multi_label(logits, scaled, answers)
        return answers

    def _grid(self, heads: list[Head], padding: int) -> slice | npt.NDArray[np.intp]:
        """The columns of heads, one row per head, padded with the column `padding`.

        The result is a slice, which avoids a copy, if the heads are adjacent and equally wide.
        """
        grid = np.full((len(heads), max(len(head.labels) for head in heads)), padding)
        for row, head in zip(grid, heads, strict=True):
            part = self.columns[head.name]
            row[: len(head.labels)] = np.arange(part.start, part.stop)
        start, stop = int(grid[0, 0]), int(grid[0, 0]) + grid.size
        return slice(start, stop) if np.array_equal(grid.ravel(), np.arange(start, stop)) else grid

    def _add_multi_label(
        self, logits: Floats, scaled: npt.NDArray[np.float64], answers: list[dict[str, Any]]
    ) -> None:
        """Add the labels of each multi_label head that reach their thresholds, best first."""
        for answer in answers:
            answer |= {head.name: [] for head in self._multi}
        scores = sigmoid(scaled[:, self._multi_columns])
        # sorted by logits: probabilities near 0 and 1 tie
        order = np.argsort(-logits[:, self._multi_columns], axis=-1, kind="stable")
        reached = np.take_along_axis(scores >= self._thresholds, order, axis=-1)
        for row, rank in np.argwhere(reached).tolist():
            column = int(order[row, rank])
            head, label = self._multi_labels[column]
            answers[row][head.name].append({"label": label, "score": float(scores[row, column])})

    def _ranked(self, logits: Floats, top_k: int | None) -> list[dict[str, Any]]:
        """All labels of each head, or the `top_k` best, best first."""
        answers: list[dict[str, Any]] = [{} for _ in logits]
        for head in self.heads:
            part = logits[:, self.columns[head.name]]
            order = np.argsort(-part, axis=-1, kind="stable")[:, :top_k]
            scores = np.take_along_axis(probabilities(part, head), order, axis=-1)
            for answer, ranks, values in zip(answers, order.tolist(), scores.tolist(), strict=True):
                pairs = zip(ranks, values, strict=True)
                answer[head.name] = [{"label": head.values[i], "score": score} for i, score in pairs]
        return answers


def _add_best(heads: list[Head], scaled: npt.NDArray[np.float64], answers: list[dict[str, Any]]) -> None:
    """Add the most probable label of single_label heads, from scaled logits `[texts, heads, labels]`."""
    best = scaled.argmax(-1)
    scaled = scaled - np.maximum.reduce(scaled, -1, keepdims=True)
    scores = 1 / np.add.reduce(np.exp(scaled, scaled), -1)
    for answer, labels, values in zip(answers, best.tolist(), scores.tolist(), strict=True):
        for head, label, score in zip(heads, labels, values, strict=True):
            answer[head.name] = {"label": head.values[label], "score": score}
