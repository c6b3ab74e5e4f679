"""Labels that look wrong: the teacher is sure of another one. A person reviews them, the worst first.

The teacher has learnt the labels of the training texts, right and wrong, so there the probability of a label
is its mean over the epochs (`training.label_confidence`).
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.analysis import Answers, named, short
from distill.evaluation.metrics import Array, labelled
from distill.storage import written_whole

MOST, SHARE = 1000, 0.1  # rows of a head and split, and their share of its labelled texts
DOUBT = 0.1  # the probability of another label, from which a label is suspect
SPLITS = ("train", "validation", "test")
COLUMNS = ("split", "row", "head", "text", "label", "suggested", "probability", "label_probability")
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes for the beginning of a formula


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


def suspects(
    split: str,
    answers: Answers,
    labels: Array,
    texts: Sequence[str],
    confidence: Array | None = None,
    *,
    first: int = 1,
) -> list[Suspect]:
    """The labelled texts whose labels are the least probable, the most suspect first.

    At most 1,000 of them, and those alone that have another label of a probability of at least 0.1.

    Args:
        split: The split of the texts.
        answers: The teacher's.
        labels: As in `metrics.quality`.
        texts: The texts.
        confidence: The probability of each text's labels, `[texts]`; by default, and where it is NaN, that of
            the answers. What it leaves to the other labels is theirs in the proportion of the answers.
        first: The row of the first text.
    """
    head = answers.head
    known = np.flatnonzero(labelled(labels, head))
    own, true = answers[known], labels[known]
    other, of_label = _other(own, true), own.probability(true)
    given = of_label if confidence is None else confidence[known].astype(np.float64)
    given = np.where(np.isnan(given), of_label, given)
    left = own.probability(other) / np.maximum(1 - of_label, 1e-12)  # its share of the other labels
    suggested = (1 - given) * np.minimum(left, 1)
    found = np.flatnonzero(suggested >= DOUBT)
    order = found[np.argsort((given - suggested)[found], kind="stable")][:MOST]
    return [
        Suspect(
            split,
            int(known[i]) + first,
            head.name,
            texts[int(known[i])],
            named(head, true[i]),
            named(head, other[i]),
            float(suggested[i]),
            float(given[i]),
        )
        for i in order
    ]


def _other(answers: Answers, labels: Array) -> Array:
    """The answer to each text that is the most probable besides its labels; in the form of the labels."""
    if labels.ndim == 1:
        p = answers.p.copy()
        p[np.arange(len(p)), labels] = -1
        return np.asarray(p.argmax(-1))
    other = answers.decisions.astype(labels.dtype)
    same = np.flatnonzero((other == labels).all(-1))
    least = np.abs(answers.p[same] - 0.5).argmin(-1)  # the label that is the least sure
    other[same, least] = 1 - other[same, least]
    return other


def ranked(rows: Iterable[Suspect], labelled: Mapping[tuple[str, str], int]) -> list[Suspect]:
    """The rows of train, which the student learns, then of validation and test; the most suspect first.

    At most 1,000 of each head and split, and a tenth of its labelled texts.

    The teacher has not learnt the labels of validation and test, so its probabilities there do not compare
    with those of train.

    Args:
        rows: As `suspects` gives them.
        labelled: The number of labelled texts of each split and head.
    """
    counts, found = Counter[tuple[str, str]](), []
    for row in sorted(rows, key=lambda row: (SPLITS.index(row.split), -row.score)):
        counts[row.split, row.head] += 1
        if counts[row.split, row.head] <= min(MOST, math.ceil(SHARE * labelled[row.split, row.head])):
            found.append(row)
    return found


def write_review(path: Path, rows: Iterable[Suspect]) -> None:
    """Write a CSV file for a spreadsheet.

    A cell that a spreadsheet would compute, as it begins with one of `= + - @`, begins with an apostrophe.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        for row in rows:
            cells = [getattr(row, name) for name in COLUMNS]
            out.writerow([_cell(cell) for cell in cells])


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}" if value.lstrip().startswith(FORMULA) else value
    return f"{value:.4f}" if isinstance(value, float) else str(value)
