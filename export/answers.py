"""Logits into answers: probabilities by the head's calibration, then labels and scores."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from export.bundle import SINGLE_LABEL, Head

Floats: TypeAlias = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """The softmax over the last axis, computed in float64."""
    wide = np.asarray(logits, np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    """The logistic function of each element, computed in float64, without overflow."""
    wide = np.asarray(logits, np.float64)
    power = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1 / (1 + power), power / (1 + power))


def probabilities(logits: Floats, head: Head) -> npt.NDArray[np.float64]:
    """The calibrated probabilities [texts, labels]: softmax or sigmoid of logits / temperature."""
    scaled = np.asarray(logits, np.float64) / head.temperature
    return softmax(scaled) if head.kind == SINGLE_LABEL else sigmoid(scaled)


def answers(head: Head, logits: Floats, top_k: int | None, scores: bool) -> list[Any]:
    """The answer of one head to each row of logits, in Python values."""
    shares, ranked = probabilities(logits, head), scores or top_k is not None
    if head.kind == SINGLE_LABEL and not ranked:
        best = logits.argmax(axis=-1)
        found = zip(best.tolist(), shares[np.arange(len(best)), best].tolist(), strict=True)
        return [{"label": head.labels[label], "score": score} for label, score in found]
    # by logits: probabilities near 0 and 1 tie
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    kept = shares >= (0.0 if ranked else np.asarray(head.thresholds or 0.5))
    return [
        [{"label": head.labels[i], "score": float(row[i])} for i in ranks.tolist() if keep[i]]
        for row, ranks, keep in zip(shares, order, kept, strict=True)
    ]
