"""Labels that look wrong: a classifier is sure of another one. A person reviews them, the worst first."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.analysis import Answers, named, short
from distill.evaluation.metrics import Array, labelled
from distill.storage import written_whole

MOST = 1000  # rows of a head
COLUMNS = ("split", "row", "head", "text", "label", "suggested", "probability", "label_probability")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


@dataclass(frozen=True)
class Suspect:
    """A label that looks wrong.

    Attributes:
        split: Of the text.
        row: The number of the text in the prepared split, from 1.
        head: The name of the head.
        text: The text.
        label: The label, or the labels of a multi_label head.
        suggested: What the classifier takes for right.
        probability: The probability of `suggested`.
        label_probability: The probability of `label`.
    """

    split: str
    row: int
    head: str
    text: str
    label: str
    suggested: str
    probability: float
    label_probability: float

    @property
    def score(self) -> float:
        """How much more probable the suggestion is than the label; larger is more suspect."""
        return self.probability - self.label_probability

    def to_json(self) -> dict[str, Any]:
        """The columns that a report shows, with the text cut short."""
        names = ("split", "row", "label", "suggested", "probability")
        return {name: getattr(self, name) for name in names} | {"text": short(self.text)}


def suspects(split: str, answers: Answers, labels: Array, texts: Sequence[str]) -> list[Suspect]:
    """The labelled texts of a split whose label is not the most probable answer, the most suspect first.

    Args:
        split: Its name.
        answers: To the texts.
        labels: As in `metrics.quality`.
        texts: The texts.
    """
    head = answers.head
    known = np.flatnonzero(labelled(labels, head))
    own, true = answers[known], labels[known]
    differs = own.decisions != true
    found = np.flatnonzero(differs if differs.ndim == 1 else differs.any(-1))
    given = own.probability(true)
    order = found[np.argsort(given[found] - own.confidence[found], kind="stable")][:MOST]
    return [
        Suspect(
            split,
            int(known[i]) + 1,
            head.name,
            texts[known[i]],
            named(head, true[i]),
            named(head, own.decisions[i]),
            float(own.confidence[i]),
            float(given[i]),
        )
        for i in order
    ]


def ranked(rows: Iterable[Suspect]) -> list[Suspect]:
    """The rows, the most suspect first."""
    return sorted(rows, key=lambda row: -row.score)


def write_review(path: Path, rows: Iterable[Suspect]) -> None:
    """Write a CSV file for a spreadsheet, the most suspect label first.

    A cell that a spreadsheet would compute, as it begins with one of `= + - @`, begins with an apostrophe.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        for row in ranked(rows):
            cells = [getattr(row, name) for name in COLUMNS]
            out.writerow([_cell(cell) for cell in cells])


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}" if value.lstrip().startswith(FORMULA) else value
    return f"{value:.4f}" if isinstance(value, float) else str(value)
