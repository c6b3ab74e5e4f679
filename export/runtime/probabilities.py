"""Computes calibrated probabilities from logits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from export.bundle.manifest import ENERGY, SINGLE_LABEL, Head

Floats: TypeAlias = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """The softmax over the last axis, computed in float64."""
    wide = np.asarray(logits, np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    """The logistic function of each element, computed in float64 without overflow."""
    wide = np.asarray(logits, np.float64)
    power = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1 / (1 + power), power / (1 + power))


def probabilities(logits: Floats, head: Head) -> npt.NDArray[np.float64]:
    """The calibrated probabilities `[texts, labels]`: softmax or sigmoid of logits / temperature."""
    scaled = np.asarray(logits, np.float64) / head.temperature
    return softmax(scaled) if head.kind == SINGLE_LABEL else sigmoid(scaled)


def confidence(scaled: Floats, score: str) -> npt.NDArray[np.float64]:
    """The score `[texts]` by which a head abstains, from logits / temperature `[texts, labels]`.

    It is the probability of the answer, or the energy; see `manifest.Abstain`.
    """
    wide = np.asarray(scaled, np.float64)
    best = wide.max(axis=-1)
    total: npt.NDArray[np.float64] = np.exp(wide - best[..., None]).sum(axis=-1)
    return best + np.log(total) if score == ENERGY else 1 / total
