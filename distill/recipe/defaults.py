"""Default values that depend on the training texts, or on the shapes of teacher and student.

The token budgets of a student take two CPU cores about half an hour. The budgets and the learning rates were
chosen in trials on validation splits (docs/ablation.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TEXT_LENGTHS = (128, 256, 512)  # tokens; a longer limit costs more per step than it gains
UNTRUNCATED = 0.95  # share of the texts that the limit should not truncate
TRANSFER_TOKENS = 6_000_000  # of the transfer set, augmented texts included
STUDENT_TOKENS = 36_000_000  # that a student reads in all epochs
PRETRAINING_TOKENS = 300_000_000  # that a pretrained student reads in all epochs
ROUNDED = 1.5  # texts per text that round to 2
MAX_COPIES, MAX_STUDENT_EPOCHS = 160, 20
MANY_LABELS = 10
MIXING = 0.5  # an epoch reads of a source in proportion to (its texts)^mixing
HEADS = 30  # times the learning rate of an encoder is that of heads beside it, and of heads on a frozen one
REPLAY = 0.25  # share of the learning rate where heads of an earlier run are kept
NEGATIVES = 7  # labels besides its own that a packed network reads for a text in training


def max_length(lengths: NDArray[np.int64]) -> int:
    """Tokens read of a text: the least of 128, 256 and 512 that does not truncate 95 % of the texts."""
    fit = (limit for limit in TEXT_LENGTHS if np.mean(lengths <= limit) >= UNTRUNCATED)
    return next(fit, TEXT_LENGTHS[-1])


def teacher_epochs(texts: int, batch: int) -> int:
    """Epochs of a teacher with `batch` texts a step: 75,000 texts in 3 to 5 epochs, but at least 300 steps.

    Few texts are read in up to 20 epochs.
    """
    return min(20, max(3, min(5, 75_000 // texts), math.ceil(300 * batch / texts)))


def teacher_lr(hidden: int) -> float:
    """Peak learning rate of a teacher: inversely proportional to its width, 5e-5 for BERT-base (768)."""
    return 5e-5 * 768 / hidden


def teacher_head_lr(lr: float) -> float:
    """Peak learning rate of the teacher's heads: 30 times that of the encoder.

    The heads are initialised at random. At the encoder's rate, the weights of many labels are still too small
    to separate them after a thousand steps.
    """
    return HEADS * lr


def student_lr(
    hidden: int, *, trained_layers: bool, keeps_heads: bool = False, encoder: bool = True
) -> float:
    """Peak learning rate of a student: inversely proportional to its width, given here for width 128.

    It is 1e-3 if the layers come from a checkpoint or the teacher, and 2e-3 if they are new or from a
    pretrained student. It is a quarter of that beside heads that the student keeps from an earlier run, which
    then lose nothing. If the encoder is frozen, it is the rate of heads.
    """
    lr = (1e-3 if trained_layers else 2e-3) * 128 / hidden
    if not encoder:
        return HEADS * lr
    return REPLAY * lr if keeps_heads else lr


def copies(tokens: int, unlabelled: int = 0) -> int:
    """Augmented texts per text: as many as bring the transfer set to 6 million tokens.

    Where the budget has not one for each text, unlabelled texts get none and are not counted.

    Args:
        tokens: Of the training texts, in all.
        unlabelled: Tokens of the unlabelled texts, in all.
    """
    counted = tokens + unlabelled
    if counted * ROUNDED > TRANSFER_TOKENS:  # not one for each text
        counted = tokens
    return max(0, min(MAX_COPIES, round(TRANSFER_TOKENS / counted) - 1))


def unlabelled_copies(copies: int, tokens: int, unlabelled: int) -> int:
    """Augmented texts per unlabelled text: as many as of a training text, or none if they exceed the budget.

    Args:
        copies: Augmented texts per training text.
        tokens: Of the training texts, in all.
        unlabelled: Tokens of the unlabelled texts, in all.
    """
    return copies if (tokens + unlabelled) * (1 + copies) <= TRANSFER_TOKENS * 2 / ROUNDED else 0


def mixed_copies(tokens: Sequence[int], texts: Sequence[int], mixing: float) -> tuple[int, ...]:
    """Augmented texts per text of each source: as many as bring the transfer set to 6 million tokens.

    The transfer set then has the texts of the sources in the proportion in which an epoch reads them. Where
    the budget has not one for each unlabelled text, these get none and are not counted.

    Args:
        tokens: Of the training texts of each source in all, and last of the unlabelled texts.
        texts: The number of training texts of each source, and last of the unlabelled texts.
        mixing: The exponent of the number of texts.
    """
    most = max(texts)
    weights = [(n / most) ** (mixing - 1) if n else 0.0 for n in texts]
    found: list[int] = []
    for counted in (len(texts), len(texts) - 1):
        unit = TRANSFER_TOKENS / sum(w * n for w, n in zip(weights[:counted], tokens, strict=False))
        found = [max(0, min(MAX_COPIES, round(unit * w) - 1)) for w in weights[:counted]]
        if found[-1]:
            break
    return (*found, *[0] * (len(texts) - len(found)))


def student_epochs(tokens: int) -> int:
    """Epochs of a student, for a transfer set of `tokens` tokens: 36 million tokens in 3 to 20 epochs."""
    return min(MAX_STUDENT_EPOCHS, max(3, round(STUDENT_TOKENS / tokens)))


def pretraining_epochs(tokens: int) -> int:
    """Epochs of a pretrained student, for `tokens` tokens of text: 300 million tokens in 3 to 20 epochs."""
    return min(MAX_STUDENT_EPOCHS, max(3, round(PRETRAINING_TOKENS / tokens)))


def matched_layers(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer for each of the student's, counted from 1: evenly spaced, ending with the last."""
    return tuple(max(1, round(i * teacher / student)) for i in range(1, student + 1))


def distillation_loss(kind: str, labels: int) -> Literal["kl", "standardized"]:
    """The loss of a head: "standardized" for single_label heads with at least ten labels, otherwise "kl".

    With few labels, standardising removes most of the teacher's confidence.
    """
    return "standardized" if kind == "single_label" and labels >= MANY_LABELS else "kl"


def distillation_temperature(loss: str) -> float:
    """The distillation temperature: 2 for "standardized", 1 for every other loss."""
    return 2.0 if loss == "standardized" else 1.0
