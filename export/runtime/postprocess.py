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

from export.bundle.manifest import PROBABILITY, SCORES, SINGLE_LABEL, Abstain, Head, unknown
from export.runtime.probabilities import Floats, confidence, probabilities, sigmoid

Thresholds: TypeAlias = Mapping[str, float | Mapping[Any, float]]  # of heads, or of the labels of heads

_NUMBERS = int, float, np.integer, np.floating


def columns(heads: Sequence[Head]) -> dict[str, slice]:
    """The columns of each head's logits in the concatenation of all heads."""
    found, start = {}, 0
    for head in heads:
        found[head.name] = slice(start, start := start + len(head.labels))
    return found


def with_thresholds(heads: Sequence[Head], thresholds: object, abstain: object = True) -> list[Head]:
    """The heads with the thresholds of a call; heads and labels that it does not name keep theirs.

    Args:
        heads: The heads that answer.
        thresholds: `{head: threshold}`, or `{head: {label: threshold}}` of a multi_label head. That of a
            single_label head is the lowest score that is answered. None changes nothing.
        abstain: False removes the bundle's thresholds of single_label heads, which then always answer.

    Raises:
        ValueError: A head or a label is unknown, a threshold is no number of its range, or `abstain` is no
            bool.
    """
    if not isinstance(abstain, bool):
        raise ValueError(f"abstain: must be True or False, got {short(abstain)} (thresholds= takes numbers)")
    if not isinstance(thresholds, Mapping | None):
        raise ValueError(f"thresholds: must map heads to numbers, got {short(thresholds)}")
    names = [head.name for head in heads]
    for name in thresholds or ():
        if name not in names:
            raise ValueError(f"thresholds: {unknown('head', name, names)}")
    kept = heads if abstain else [replace(head, abstain=None) for head in heads]
    return [
        _with_thresholds(now, head, thresholds[head.name]) if thresholds and head.name in thresholds else now
        for now, head in zip(kept, heads, strict=True)
    ]


def _with_thresholds(head: Head, own: Head, given: object) -> Head:
    where = f"thresholds: {short(head.name)}"
    if head.kind == SINGLE_LABEL:
        if isinstance(given, Mapping):
            raise ValueError(f"{where}: must be one number, as the head is single_label, got {short(given)}")
        score = own.abstain.score if own.abstain else PROBABILITY
        return replace(head, abstain=Abstain(score, _number(given, where, *SCORES[score])))
    found = dict(zip(head.labels, head.thresholds or repeat(0.5), strict=False))
    for label, value in (given if isinstance(given, Mapping) else dict.fromkeys(head.labels, given)).items():
        if str(label) not in found:
            raise ValueError(f"{where}: {unknown('label', label, head.labels)}")
        of = f"{where}: {short(label)}" if isinstance(given, Mapping) else where
        found[str(label)] = _number(value, of, 0, 1)
    return replace(head, thresholds=tuple(found.values()))


def _number(value: object, where: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not low <= value <= high:
        raise ValueError(f"{where}: must be a number from {low:g} to {high:g}, got {short(value)}")
    return float(value)


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
        self._abstaining = [(head, head.abstain) for head in heads if head.abstain]
        self._multi = [head for head in heads if head.kind != SINGLE_LABEL]
        parts = [np.arange(labels)[self.columns[head.name]] for head in self._multi]
        self._multi_columns = np.concatenate([np.empty(0, np.intp), *parts])
        self._thresholds = np.array([*chain.from_iterable(head.limits for head in self._multi)], np.float64)
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
        for head, rule in self._abstaining:
            _abstain(head, rule, scaled[:, self.columns[head.name]], answers)
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


def _abstain(
    head: Head, rule: Abstain, scaled: npt.NDArray[np.float64], answers: list[dict[str, Any]]
) -> None:
    """Replace the answers whose score is below the threshold by `{"label": None, "score": score}`."""
    for answer, score in zip(answers, confidence(scaled, rule.score).tolist(), strict=True):
        if not score >= rule.threshold:
            answer[head.name] = {"label": None, "score": score}
