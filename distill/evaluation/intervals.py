"""95 % confidence intervals of a head's first metric over labelled texts, in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.evaluation.metrics import Array, decisions, labelled
from distill.heads import Head

RESAMPLES = 1000
Z = 1.959964  # 97.5 % of the standard normal distribution

Interval = tuple[float, float]


def interval(
    head: Head,
    logits: Array,
    labels: Array,
    *,
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> Interval | None:
    """The interval of accuracy or micro F1, None if no text is labelled.

    The arguments are those of `metrics.quality`.
    """
    rows = labelled(labels, head)
    if not rows.any():
        return None
    found, true = decisions(head, logits[rows], thresholds, temperature), labels[rows]
    if head.kind == "single_label":
        return wilson(int((found == true).sum()), len(true))
    true = true == 1
    return bootstrap_f1((found & true).sum(-1), (found != true).sum(-1))


def wilson(hits: int, texts: int) -> Interval:
    """The interval of a share of texts (Wilson 1927)."""
    share, square = hits / texts, Z * Z / texts
    middle, half = share + square / 2, Z * ((share * (1 - share) + square / 4) / texts) ** 0.5
    low, high = ((middle + side * half) / (1 + square) for side in (-1, 1))
    # rounding must not leave 0 to 1, nor the share outside
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def bootstrap_f1(hits: Array, wrong: Array) -> Interval:
    """The percentile interval of micro F1 over texts drawn with replacement, the same on every call.

    Texts of equal counts are one category of a multinomial distribution, so the cost hardly depends on the
    number of texts.

    Args:
        hits: Labels of each text that are predicted and true, `[texts]`.
        wrong: Labels of each text that are either predicted or true, `[texts]`.
    """
    pairs, texts = np.unique(np.stack([hits, wrong], -1), axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(hits), texts / len(hits), RESAMPLES)
    sums = draws @ pairs
    f1 = 2 * sums[:, 0] / np.maximum(2 * sums[:, 0] + sums[:, 1], 1)
    low, high = np.percentile(f1, [2.5, 97.5])
    return float(low), float(high)
