"""Whether what int8, or a training, changes of a head is more than the noise of the texts it was measured on.

A drop of a metric and a rise of the log loss are tested by approximate randomization (Yeh 2000,
arXiv:cs/0008005): if both forms were alike, swapping their answers to any text would change nothing. For
accuracy this is McNemar's test. The share of changed decisions is tested against its limit as a binomial.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest

from distill.evaluation import metrics
from distill.evaluation.calibration import Calibration
from distill.evaluation.metrics import Array
from distill.heads import Head

ROUNDS = 2000  # random swaps; p is known to about 0.005 where it is 0.05
CHUNK = 1000  # texts whose random signs are in memory at a time

Statistic = Callable[[Array], Array]  # of sums over texts `[..., counts]`, larger is better


def drop_p_value(
    head: Head,
    fp32: Array,
    int8: Array,
    labels: Array,
    fitted: Calibration,
    second: Calibration | None = None,
) -> float:
    """The p-value of a drop of the head's first metric from fp32 to int8, one-sided.

    Args:
        head: The head.
        fp32: Logits `[texts, labels]`.
        int8: Logits `[texts, labels]` of the same texts.
        labels: Hard labels as in `metrics.quality`; unlabelled texts do not count.
        fitted: Calibration of both forms.
        second: Calibration of the second form, if it has another.
    """
    known = metrics.labelled(labels, head)
    labels = labels[known]

    def counts(logits: Array, own: Calibration) -> Array:
        found = metrics.decisions(head, logits[known], own.thresholds, own.temperature)
        if head.kind == "single_label":
            return np.asarray(found == labels, float)[:, None]
        return np.stack([(found & (labels == 1)).sum(-1), (found != labels).sum(-1)], -1).astype(float)

    def accuracy(sums: Array) -> Array:
        return np.asarray(sums[..., 0] / max(1, len(labels)))

    def micro_f1(sums: Array) -> Array:
        hits, wrong = 2 * sums[..., 0], sums[..., 1]
        return np.asarray(hits / np.maximum(hits + wrong, 1))

    statistic = accuracy if head.kind == "single_label" else micro_f1
    return randomization_test(counts(fp32, fitted), counts(int8, second or fitted), statistic)


def log_loss_p_value(head: Head, fp32: Array, int8: Array, labels: Array, fitted: Calibration) -> float:
    """The p-value of a rise of the head's log loss from fp32 to int8; arguments as in `drop_p_value`."""
    known = metrics.labelled(labels, head)
    labels = labels[known]

    def losses(logits: Array) -> Array:
        p = metrics.probabilities(logits[known], head, fitted.temperature)
        each = metrics.log_losses(p, labels)
        return each[:, None] if each.ndim == 1 else np.asarray(each.mean(-1, keepdims=True))

    return randomization_test(losses(fp32), losses(int8), lambda sums: -sums[..., 0])


def changed_p_value(changed: int, decisions: int, limit: float) -> float:
    """The p-value of so many changed decisions where `limit` is the true share and they are independent."""
    return float(binomtest(changed, decisions, limit, alternative="greater").pvalue) if decisions else 1.0


def randomization_test(first: Array, second: Array, statistic: Statistic) -> float:
    """The p-value of `statistic(first) - statistic(second)` being so large by chance, one-sided.

    Args:
        first: What the statistic sums over the texts, `[texts, counts]`.
        second: The same of the other form.
        statistic: A function of the sums.
    """
    middle, half = (first.sum(0) + second.sum(0)) / 2, (first - second) / 2
    half = half[(half != 0).any(-1)]
    generator, swing = np.random.default_rng(0), np.zeros((ROUNDS, half.shape[-1]))
    for start in range(0, len(half), CHUNK):
        some = half[start : start + CHUNK]
        swing += (generator.integers(0, 2, (ROUNDS, len(some)), np.int8) * 2.0 - 1) @ some
    observed = statistic(middle + half.sum(0)) - statistic(middle - half.sum(0))
    drops = statistic(middle + swing) - statistic(middle - swing)
    return float((1 + (drops >= observed - 1e-9).sum()) / (1 + ROUNDS))
