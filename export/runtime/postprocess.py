"""Logits into answers: labels and scores, by the calibration of each head.

All heads are answered at once, as columns of one matrix, so that thirty-two heads cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from export.bundle.manifest import SINGLE_LABEL, Head
from export.runtime.probabilities import Floats, probabilities, sigmoid

Named = tuple[str, tuple[str, ...]]  # a head and its labels


def columns(heads: Sequence[Head]) -> dict[str, slice]:
    """Where each head's logits stand when all lie side by side."""
    found, start = {}, 0
    for head in heads:
        found[head.name] = slice(start, start := start + len(head.labels))
    return found


class Answers:
    """How the logits of some heads, side by side, become answers."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads, self.columns = tuple(heads), columns(heads)
        self._multi = [head for head in heads if head.kind != SINGLE_LABEL]
        labels = sum(len(head.labels) for head in heads)
        # one column more than there are labels: what fills up rows of the shorter heads
        self._divisors = np.ones(labels + 1)
        for head in heads:
            self._divisors[self.columns[head.name]] = head.temperature
        # heads of like widths together: a row a head
        alike: dict[int, list[Head]] = {}
        for head in heads:
            if head.kind == SINGLE_LABEL:
                alike.setdefault(len(head.labels).bit_length() // 2, []).append(head)
        self._groups = [
            ([(head.name, head.labels) for head in group], self._where(group, labels))
            for group in alike.values()
        ]
        parts = [np.arange(labels)[self.columns[head.name]] for head in self._multi]
        self._flags = np.concatenate([np.empty(0, np.intp), *parts])
        thresholds = (head.thresholds or (0.5,) * len(head.labels) for head in self._multi)
        self._thresholds = np.concatenate([np.empty(0), *thresholds])
        self._flag_heads = [(head, label) for head in self._multi for label in head.labels]

    def __call__(self, logits: Floats, top_k: int | None, scores: bool) -> list[dict[str, Any]]:
        """The answers to each row of logits `[texts, labels of all heads]`, in Python values."""
        if scores or top_k is not None:
            return self._ranked(logits, top_k)
        scaled = np.empty((len(logits), len(self._divisors)))
        np.divide(logits, self._divisors[:-1], scaled[:, :-1])
        scaled[:, -1] = -np.inf
        answers: list[dict[str, Any]] = [dict.fromkeys(self.columns) for _ in scaled]
        for group, where in self._groups:
            _best(group, scaled[:, where].reshape(len(scaled), len(group), -1), answers)
        if self._multi:
            self._over(logits, scaled, answers)
        return answers

    def _where(self, heads: list[Head], behind: int) -> slice | npt.NDArray[np.intp]:
        """The columns of heads, a row of them a head, filled up with the column `behind`.

        As a slice, which copies nothing, where they lie side by side and are of one width.
        """
        grid = np.full((len(heads), max(len(head.labels) for head in heads)), behind)
        for row, head in zip(grid, heads, strict=True):
            part = self.columns[head.name]
            row[: len(head.labels)] = np.arange(part.start, part.stop)
        start, stop = int(grid[0, 0]), int(grid[0, 0]) + grid.size
        return slice(start, stop) if np.array_equal(grid.ravel(), np.arange(start, stop)) else grid

    def _over(self, logits: Floats, scaled: npt.NDArray[np.float64], answers: list[dict[str, Any]]) -> None:
        """Fill in the labels of each multi_label head that reach their thresholds, best first."""
        for answer in answers:
            answer |= {head.name: [] for head in self._multi}
        shares = sigmoid(scaled[:, self._flags])
        # by logits: probabilities near 0 and 1 tie
        order = np.argsort(-logits[:, self._flags], axis=-1, kind="stable")
        reached = np.take_along_axis(shares >= self._thresholds, order, axis=-1)
        for row, place in np.argwhere(reached).tolist():
            label = int(order[row, place])
            head, name = self._flag_heads[label]
            answers[row][head.name].append({"label": name, "score": float(shares[row, label])})

    def _ranked(self, logits: Floats, top_k: int | None) -> list[dict[str, Any]]:
        """All labels of each head, or the k best, best first."""
        answers: list[dict[str, Any]] = [{} for _ in logits]
        for head in self.heads:
            mine = logits[:, self.columns[head.name]]
            shares = probabilities(mine, head)
            order = np.argsort(-mine, axis=-1, kind="stable")[:, :top_k]
            ranked = np.take_along_axis(shares, order, axis=-1)
            for answer, ranks, values in zip(answers, order.tolist(), ranked.tolist(), strict=True):
                answer[head.name] = [
                    {"label": head.labels[rank], "score": value}
                    for rank, value in zip(ranks, values, strict=True)
                ]
        return answers


def _best(heads: list[Named], table: npt.NDArray[np.float64], answers: list[dict[str, Any]]) -> None:
    """Fill in the likeliest label of each single_label head, of its logits [texts, heads, labels]."""
    best = table.argmax(-1)
    table = table - np.maximum.reduce(table, -1, keepdims=True)
    shares = 1 / np.add.reduce(np.exp(table, table), -1)
    for answer, chosen, share in zip(answers, best.tolist(), shares.tolist(), strict=True):
        for (name, labels), label, score in zip(heads, chosen, share, strict=True):
            answer[name] = {"label": labels[label], "score": score}
