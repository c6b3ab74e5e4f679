"""How far what lies inside a student's encoder is from the teacher's: hidden states, attention relations.

Real tokens alone count; padding is left out on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean squared difference of hidden states over real tokens and the width; a scalar.

    `MSE(H_S W_h, H_T)` of a layer's output, `MSE(E_S W_e, E_T)` of the embeddings layer's (Jiao et al. 2020,
    arXiv:1909.10351, eq. 8 and 9).

    Args:
        student: Already projected, `[batch, length, teacher width]`.
        teacher: `[batch, length, teacher width]`.
        mask: 1 at a token, 0 at padding, `[batch, length]`.
    """
    return _over_tokens((student.float() - teacher.float()).square().mean(-1), mask)


def relation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor, relation_heads: int
) -> Tensor:
    """KL(teacher || student) of self-attention relations, summed over queries, keys and values; a scalar.

    The relations of vectors A are `softmax(A A^T / sqrt(d))` in each relation head, d being its width, among
    queries, among keys and among values; the KL is the mean over heads and real tokens (MiniLMv2, Wang et al.
    2021, arXiv:2012.15828, section 3).

    Args:
        student: Queries, keys, values, `[batch, length, student width]` each.
        teacher: Queries, keys, values, `[batch, length, teacher width]` each.
        mask: 1 at a token, 0 at padding, `[batch, length]`.
        relation_heads: In how many equal parts each width is split.

    Raises:
        ValueError: `relation_heads` divides one of the widths unevenly.
    """
    total = mask.new_zeros((), dtype=torch.float32)
    with torch.autocast(mask.device.type, enabled=False):  # half precision would round the scores
        for mine, theirs in zip(student, teacher, strict=True):
            log_s, log_t = (_log_relations(states, mask, relation_heads) for states in (mine, theirs))
            kl = (log_t.exp() * (log_t - log_s)).sum(-1)
            total = total + _over_tokens(kl.mean(1), mask)
    return total


def _log_relations(states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Log relations `[batch, heads, length, length]` of states `[batch, length, width]`."""
    width = states.shape[-1]
    if width % heads:
        raise ValueError(f"relation_heads: {heads} does not divide the width {width}")
    parts = states.float().reshape(*states.shape[:2], heads, width // heads).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / math.sqrt(width // heads)
    lowest = torch.finfo(scores.dtype).min  # finite: padding then adds 0 to the KL, and not 0 times infinity
    relations: Tensor = scores.masked_fill(mask[:, None, None] == 0, lowest).log_softmax(-1)
    return relations


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values `[batch, length]` over real tokens."""
    return (values * mask).sum() / mask.sum()
