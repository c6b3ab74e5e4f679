"""What a recipe leaves open, found from the training texts and from the shapes of teacher and student.

Fixed here and nowhere else. The budgets of a student are what two cores do in half an hour; they and the
rates were found in trials on validation splits (docs/ablation.md).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TEXT_LENGTHS = (128, 256, 512)  # tokens; beyond 512 a step costs more than most texts' ends are worth
WHOLE = 0.95  # share of the texts that are read to their end
LABELLED_TOKENS = 6_000_000  # of the transfer set, made up to by copies
READ_TOKENS = 36_000_000  # by the student in all its epochs
START_TOKENS = 300_000_000  # read by a general start, which is learnt once for many jobs
MOST_COPIES, MOST_STUDENT_EPOCHS = 160, 20
MANY_LABELS = 10


def max_length(lengths: NDArray[np.int64]) -> int:
    """Tokens read of a text: the least of 128, 256 and 512 that 95 % of texts of such lengths fit in."""
    fit = (limit for limit in TEXT_LENGTHS if np.mean(lengths <= limit) >= WHOLE)
    return next(fit, TEXT_LENGTHS[-1])


def teacher_epochs(texts: int, batch: int) -> int:
    """Epochs of a teacher of so many texts a step: 75,000 read in 3 to 5 epochs, 300 steps to 20 epochs."""
    return min(20, max(3, min(5, 75_000 // texts), math.ceil(300 * batch / texts)))


def teacher_lr(hidden: int) -> float:
    """Peak rate of a teacher: 5e-5 at BERT-base's width of 768, and inversely as the width."""
    return 5e-5 * 768 / hidden


def teacher_head_lr(lr: float) -> float:
    """Peak rate of a teacher's heads: 30 times the encoder's, as they start from nothing.

    At the encoder's rate, weights for many labels are still too small after a thousand steps to part them.
    """
    return 30 * lr


def student_lr(hidden: int, *, learnt: bool) -> float:
    """Peak rate of a student at BERT-tiny's width of 128, and inversely as the width.

    2e-3 for fresh layers and general starts, 1e-3 for layers of a checkpoint or of the teacher.
    """
    return (1e-3 if learnt else 2e-3) * 128 / hidden


def copies(tokens: int) -> int:
    """Copies of each of texts of so many tokens: up to a set of 6 million tokens, 160 at most."""
    return max(0, min(MOST_COPIES, round(LABELLED_TOKENS / tokens) - 1))


def student_epochs(tokens: int) -> int:
    """Epochs of a student over a transfer set of so many tokens: 36 million read, 3 to 20 epochs."""
    return min(MOST_STUDENT_EPOCHS, max(3, round(READ_TOKENS / tokens)))


def start_epochs(tokens: int) -> int:
    """Epochs of a general start over texts of so many tokens: 300 million read, 3 to 20 epochs.

    An hour of two cores, eight times a student's reading: a start is learnt once for many jobs.
    """
    return min(MOST_STUDENT_EPOCHS, max(3, round(START_TOKENS / tokens)))


def matched_layers(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer for each of the student's, from 1: evenly spaced, the last for the last."""
    return tuple(max(1, round(i * teacher / student)) for i in range(1, student + 1))


def distillation_loss(kind: str, labels: int) -> Literal["kl", "standardized"]:
    """The loss of a head: standardised KD for single_label heads of ten labels and more, else KL.

    Over few labels a row's deviation is most of what it says: standardised, sure and unsure look alike.
    """
    return "standardized" if kind == "single_label" and labels >= MANY_LABELS else "kl"


def distillation_temperature(loss: str) -> float:
    """2 for standardised KD, 1 for every other loss."""
    return 2.0 if loss == "standardized" else 1.0
