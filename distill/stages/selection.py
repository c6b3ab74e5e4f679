"""Which of the texts that only the teacher labelled a student reads: the surest ones, classes in balance.

Where a teacher is unsure a text is mostly out of its domain (Noisy Student, Xie et al. 2020,
arXiv:1911.04252, appendix A.1, which also balances the classes that the teacher chose).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.evaluation.metrics import probabilities
from distill.heads import Head, columns
from distill.recipe.data_section import Augment
from distill.run import written_whole

Array = NDArray[Any]
FILE = "kept.npy"
MOST = 2  # medians that a class may be large


def confidence(heads: Sequence[Head], logits: Array) -> Array:
    """How sure a teacher is of each text, float64 `[texts]`, 0 to 1: the mean over its heads.

    Of a single_label head the largest probability, of a multi_label head the mean over its labels of
    max(p, 1 - p).

    Args:
        heads: The teacher's, each of them with labels.
        logits: `[texts, sum of labels]`.
    """
    sure = np.zeros(len(logits))
    for head, part in columns(heads):
        p = probabilities(logits[:, part], head)
        sure += p.max(-1) if head.kind == "single_label" else np.maximum(p, 1 - p).mean(-1)
    return sure / len(heads)


def surest(sure: Array, keep: float) -> Array:
    """The numbers of the `keep` share of texts, rounded up, that are highest in `sure`, the highest first."""
    count = math.ceil(round(keep * len(sure), 6))
    return np.argsort(-sure, kind="stable")[:count]


def balanced(sure: Array, classes: Array, keep: float) -> tuple[Array, int]:
    """The numbers of the texts that stay where classes are balanced, and how many that cut off.

    The `keep` share of each class stays, as in `surest`. Of what that leaves, no class has more than
    twice the median over the classes that have any, the lower of two middle ones: the rest of a larger
    class goes, what the teacher is least sure of first.

    Args:
        sure: Of each text, `[texts]`.
        classes: That the teacher chose, int `[texts]`.
        keep: Share of each class.
    """
    kept = []
    for number in np.unique(classes):
        rows = np.flatnonzero(classes == number)
        kept.append(rows[surest(sure[rows], keep)])
    sizes = [len(rows) for rows in kept]
    most = MOST * statistics.median_low(sizes) if sizes else 0
    left = [rows[:most] for rows in kept]
    return np.concatenate([np.empty(0, np.int64), *left]), sum(sizes) - sum(map(len, left))


def select(
    folder: Path, settings: Augment, heads: Sequence[Head], logits: Iterable[Array], first: int
) -> dict[str, int]:
    """Write to `folder` which rows of the transfer set are kept; returns how many are not, and why.

    Args:
        folder: Of the stage; nothing is written where the settings drop no text.
        settings: With `keep` and `balance`; classes are those of the first single_label head.
        heads: The teacher's.
        logits: Of every row, in chunks `[texts, sum of labels]`; read only if needed.
        first: The number of training texts, which come first and stay.
    """
    if settings.keep == 1 and not settings.balance:
        return {"dropped_unsure": 0, "dropped_balanced": 0}
    part = next((part for head, part in columns(heads) if head.kind == "single_label"), slice(1))
    chunks = [(confidence(heads, some), some[:, part].argmax(-1)) for some in logits]
    sure, classes = (np.concatenate(arrays)[first:] for arrays in zip(*chunks, strict=True))
    cut = 0
    if settings.balance:
        others, cut = balanced(sure, classes, settings.keep)
    else:
        others = surest(sure, settings.keep)
    rows = np.concatenate([np.arange(first), first + np.sort(others)])
    with written_whole(folder / FILE) as temporary, temporary.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    return {"dropped_unsure": len(sure) - len(others) - cut, "dropped_balanced": cut}


def kept_rows(folder: Path) -> Array | None:
    """The rows that `select` kept, int64 and rising; None where it kept all."""
    path = folder / FILE
    return np.asarray(np.load(path, allow_pickle=False)) if path.exists() else None
