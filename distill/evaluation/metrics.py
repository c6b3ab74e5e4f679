"""Metrics of a head on labelled texts, in numpy alone, so that `distill evaluate` needs no extra.

`heads.METRICS` lists them. The tests compare them with scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.heads import METRICS, UNKNOWN, UNLABELLED, Head

Array = NDArray[Any]


def probabilities(logits: Array, head: Head, temperature: float = 1.0) -> Array:
    """The softmax or sigmoid of logits `[texts, labels]` divided by the temperature, in float64."""
    scaled = logits.astype(np.float64) / temperature
    if head.kind == "multi_label":
        return np.asarray(np.exp(-np.logaddexp(0, -scaled)))
    scaled -= scaled.max(-1, keepdims=True)
    exp = np.exp(scaled)
    return np.asarray(exp / exp.sum(-1, keepdims=True))


def labelled(labels: Array, head: Head) -> Array:
    """A mask `[texts]` of the texts that have a label, or a teacher's logits; labels as in `quality`."""
    if labels.dtype.kind == "f":
        return np.asarray(~np.isnan(labels).any(-1))
    if head.kind == "single_label":
        return np.asarray(labels != UNLABELLED)
    return np.asarray((labels != UNKNOWN).all(-1))


def quality(
    head: Head,
    logits: Array,
    labels: Array,
    *,
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> dict[str, float]:
    """The metrics of a head on the labelled texts; NaN if no text is labelled.

    The metric of an embedding head is the mean cosine similarity. Its logits and labels are embeddings
    `[texts, dimensions]`. Where the labels are the logits of a teacher, the metrics are the `agreement` with
    its decisions and the `cross_entropy` of its probabilities.

    Args:
        head: The head.
        logits: Logits `[texts, labels]`.
        labels: Class indices `[texts]`, or 0 and 1 `[texts, labels]`; UNLABELLED or UNKNOWN without a label.
            Or a teacher's logits, floats `[texts, labels]`; NaN for a text that it does not know.
        temperature: Calibration temperature.
        thresholds: Probability from which each label of a multi_label head applies; by default 0.5.
    """
    if head.kind == "embedding":
        lengths = np.linalg.norm(logits, axis=-1) * np.linalg.norm(labels, axis=-1)
        return {"cosine": float(((logits * labels).sum(-1) / np.maximum(lengths, 1e-12)).mean())}
    if labels.dtype.kind == "f":
        rows = labelled(labels, head)
        if not rows.any():
            return {"agreement": float("nan"), "cross_entropy": float("nan")}
        logits, labels = logits[rows], labels[rows]
        return {
            "agreement": agreement(*(decisions(head, x, thresholds, temperature) for x in (logits, labels))),
            "cross_entropy": cross_entropy(head, logits, labels),
        }
    rows = labelled(labels, head)
    if not rows.any():
        return dict.fromkeys(METRICS[head.kind], float("nan"))
    p = probabilities(logits[rows], head, temperature)
    if head.kind == "multi_label":
        return _multi_label(p, labels[rows] == 1, thresholds)
    return _single_label(p, labels[rows])


def without_nan(quality: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON values, which have no NaN: None instead."""
    return {name: None if math.isnan(value) else value for name, value in quality.items()}


def decisions(head: Head, logits: Array, thresholds: Sequence[float] | None, temperature: float) -> Array:
    """The predicted labels: class indices `[texts]`, or bools `[texts, labels]`."""
    if head.kind == "single_label":
        return np.asarray(logits.argmax(-1))
    return _applies(probabilities(logits, head, temperature), thresholds)


def agreement(first: Array, second: Array) -> float:
    """The share of texts whose `decisions` are the same."""
    same = np.equal(first, second)
    return float((same if same.ndim == 1 else same.all(-1)).mean())


def expected_calibration_error(p: Array, labels: Array, bins: int = 15) -> float:
    """The mean gap between confidence and accuracy (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    confidence, correct = p.max(-1), p.argmax(-1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def log_losses(p: Array, y: Array) -> Array:
    """The negative log likelihood of each label, in the shape of `y`.

    Args:
        p: Probabilities `[texts, labels]`.
        y: Class indices `[texts]`, or 0 and 1 `[texts, labels]`, of labelled texts.
    """
    likelihood = p[np.arange(len(y)), y] if y.ndim == 1 else np.where(y == 1, p, 1 - p)
    return np.asarray(-np.log(np.maximum(likelihood, 1e-12)))


def cross_entropy(head: Head, logits: Array, teacher: Array, temperature: float = 1.0) -> float:
    """The mean cross-entropy of the teacher's probabilities and those of logits at a temperature.

    That of a multi_label head is summed over its labels.
    """
    p, q = probabilities(logits, head, temperature), probabilities(teacher, head)
    p, q = np.clip(p, 1e-12, 1), np.clip(q, 1e-12, 1)
    entropy = -q * np.log(p)
    if head.kind == "multi_label":
        entropy -= (1 - q) * np.log(np.maximum(1 - p, 1e-12))
    return float(entropy.sum(-1).mean())


def _single_label(p: Array, y: Array) -> dict[str, float]:
    """Metrics of class probabilities `[texts, labels]` against class indices `[texts]`."""
    predicted = p.argmax(-1)
    sets = (y[predicted == y], predicted, y)
    hits, chosen, true = (np.bincount(some, minlength=p.shape[1]) for some in sets)
    occurs = chosen + true > 0  # as in scikit-learn, a label that is neither predicted nor true is left out
    return {
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float((2 * hits[occurs] / (chosen + true)[occurs]).mean()),
        "log_loss": float(log_losses(p, y).mean()),
        "ece": expected_calibration_error(p, y),
    }


def _multi_label(p: Array, y: Array, thresholds: Sequence[float] | None) -> dict[str, float]:
    """Metrics of label probabilities `[texts, labels]` against bools `[texts, labels]`."""
    predicted = _applies(p, thresholds)
    each = (average_precision(p[:, i], y[:, i]) for i in range(y.shape[1]))
    precisions = [value for value in each if value is not None]
    auc = [_roc_auc(y[:, i], p[:, i]) for i in range(y.shape[1]) if 0 < y[:, i].sum() < len(y)]
    return {
        "micro_f1": _f1(predicted.ravel(), y.ravel()),
        "macro_f1": float(np.mean([_f1(predicted[:, i], y[:, i]) for i in range(y.shape[1])])),
        "subset_accuracy": float((predicted == y).all(-1).mean()),
        "label_accuracy": float((predicted == y).mean()),
        "log_loss": float(log_losses(p, y).mean()),
        "roc_auc": float(np.mean(auc)) if auc else float("nan"),
        "average_precision": float(np.mean(precisions)) if precisions else float("nan"),
    }


def average_precision(p: Array, y: Array) -> float | None:
    """The mean of the precisions at each recall, of probabilities `[n]` against bools `[n]`.

    None without positives.
    """
    if not y.any():
        return None
    order = np.argsort(-p, kind="stable")
    hits, ranked = np.cumsum(y[order]), p[order]
    ends = np.append(np.flatnonzero(ranked[1:] < ranked[:-1]), len(p) - 1)  # equals are together
    return float((np.diff(hits[ends], prepend=0) * hits[ends] / (ends + 1)).sum() / hits[-1])


def _roc_auc(y: Array, p: Array) -> float:
    """The area under the ROC curve, from the ranks of the positives, where ties have their mean rank."""
    _, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(y.sum())
    above = ranks[y].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(y) - positives)))


def _applies(p: Array, thresholds: Sequence[float] | None) -> Array:
    limits = np.asarray(0.5 if thresholds is None else thresholds, np.float64)
    return np.asarray((p >= limits) & (limits < 1))  # a sigmoid may round to 1, where no label applies


def _f1(predicted: Array, y: Array) -> float:
    """F1 of bools; 0 without true positives, like scikit-learn with zero_division=0."""
    wrong, hits = int((predicted != y).sum()), int((predicted & y).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0
