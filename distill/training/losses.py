"""Hard loss, distillation loss, and their mix a head; nothing else.

Rows without a label for a head are skipped by the hard loss; the distillation loss needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.heads import UNKNOWN, UNLABELLED, Head, Kind, columns
from distill.recipe import defaults

Loss = Literal["kl", "mse", "dkd", "standardized"]


def hard_loss(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The mean over labelled rows of -log p(labels of the row).

    Cross-entropy for single_label; for multi_label the sum of its labels' binary cross-entropies. Both
    are nats a text, so that heads of different kinds and sizes weigh alike.

    Args:
        logits: `[batch, labels]`.
        labels: Class indices `[batch]`, -100 where unlabelled; or 0/1 `[batch, labels]`, -1 where
            unlabelled.
        kind: The head's kind.

    Returns:
        A scalar; 0 where no row is labelled.
    """
    if kind == "single_label":
        known = (labels != UNLABELLED).sum()
        total = F.cross_entropy(logits, labels.long(), ignore_index=UNLABELLED, reduction="sum")
    else:
        mask = (labels != UNKNOWN).to(logits.dtype)
        known = mask[:, 0].sum()
        targets = labels.clamp(min=0).to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(logits, targets, weight=mask, reduction="sum")
    return total / known.clamp(min=1)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    kind: Kind,
    *,
    temperature: float = 1.0,
    loss: Loss = "kl",
    beta: float = 8.0,
) -> Tensor:
    """How far the student's logits are from the teacher's, both `[batch, labels]`; a scalar.

    `kl`: `T^2 * KL(teacher || student)` at temperature T, the mean over rows (Hinton et al. 2015,
    arXiv:1503.02531, section 2: T^2 keeps the gradient's scale as T changes). A multi_label head
    takes the KL of a Bernoulli a label, summed over labels, the mean over rows.
    `mse`: the mean squared difference of the logits, without temperature (Ba and Caruana 2014,
    arXiv:1312.6184).
    `dkd`: `kl` parted into that of the target class against the rest and `beta` times that among the rest
    (Zhao et al. 2022, arXiv:2203.08679, eq. 7, alpha 1), with the teacher's choice as the target. A
    multi_label head has no rest, so there it is `kl`.
    `standardized`: `kl` of each row's logits less their mean, over their standard deviation (Sun et al.
    2024, arXiv:2403.01265, eq. 9), so that a small student need not reach the teacher's range; for heads of
    three labels and more: of two labels it would leave the sign alone, so they and multi_label take `kl`.
    """
    teacher = teacher.to(student.dtype)
    if loss == "mse":
        return F.mse_loss(student, teacher)
    if loss == "standardized" and _standardizable(kind, student.shape[-1]):
        student, teacher = _standardized(student), _standardized(teacher)
    s, t = student / temperature, teacher / temperature
    if loss == "dkd" and kind == "single_label":
        return temperature**2 * _decoupled(s, t, beta)
    if kind == "single_label":
        log_t = t.log_softmax(-1)
        kl = (log_t.exp() * (log_t - s.log_softmax(-1))).sum(-1).mean()
    else:
        p = t.sigmoid()
        on = p * (F.logsigmoid(t) - F.logsigmoid(s))
        off = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
        kl = (on + off).sum(-1).mean()
    return temperature**2 * kl


def _standardizable(kind: Kind, labels: int) -> bool:
    return kind == "single_label" and labels > 2


def _loss_of(head: Head, asked: Loss | None) -> Loss:
    """The distillation loss of a head: that asked for where the head can take it."""
    loss = asked or defaults.distillation_loss(head.kind, len(head.labels))
    return "kl" if loss == "standardized" and not _standardizable(head.kind, len(head.labels)) else loss


def _decoupled(s: Tensor, t: Tensor, beta: float) -> Tensor:
    """The mean over rows of KL(target or not) + beta * KL(among the others), of scaled logits."""
    log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
    target = F.one_hot(t.argmax(-1), t.shape[-1]).bool()
    # of the target against all others; log(1 - p) as the others' log-sum-exp, which stays finite
    pairs = [
        torch.stack([z[target], z.masked_fill(target, -torch.inf).logsumexp(-1)], -1) for z in (log_s, log_t)
    ]
    target_kl = (pairs[1].exp() * (pairs[1] - pairs[0])).sum(-1)
    rest_s, rest_t = (z.masked_fill(target, -1e4).log_softmax(-1) for z in (s, t))
    rest_kl = (rest_t.exp() * (rest_t - rest_s)).sum(-1)
    return (target_kl + beta * rest_kl).mean()


def _standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True, correction=0) + 1e-7)


def total_loss(
    logits: Tensor,
    hard: Mapping[str, Tensor],
    soft: Tensor | None,
    heads: Sequence[Head],
    *,
    temperature: float | None = None,
    soft_weight: float = 0.0,
    loss: Loss | None = None,
    beta: float = 8.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise and its parts, `{"HEAD/hard": x, "HEAD/distillation": y}`.

    Args:
        logits: Of all heads side by side, `[batch, sum of labels]`.
        hard: Labels a head, as `hard_loss` takes them.
        soft: The teacher's logits as `logits`, or None without a teacher.
        heads: In order, with their weights.
        temperature: Of distillation; by default what `defaults` finds for each head.
        soft_weight: Share of the distillation loss, 0 to 1; taken as 0 without a teacher.
        loss: Which distillation loss; by default what `defaults` finds for each head.
        beta: Of `dkd`.
    """
    logits = logits.float()  # softmax in float32, also under autocast
    w = soft_weight if soft is not None else 0.0
    total = logits.new_zeros(())
    parts: dict[str, Tensor] = {}
    for head, part in columns(heads):
        mixed = logits.new_zeros(())
        if w < 1:
            parts[f"{head.name}/hard"] = hard_loss(logits[:, part], hard[head.name], head.kind)
            mixed = mixed + (1 - w) * parts[f"{head.name}/hard"]
        if soft is not None and w > 0:
            of_head = _loss_of(head, loss)
            t = temperature or defaults.distillation_temperature(of_head)
            parts[f"{head.name}/distillation"] = distillation_loss(
                logits[:, part], soft[:, part], head.kind, temperature=t, loss=of_head, beta=beta
            )
            mixed = mixed + w * parts[f"{head.name}/distillation"]
        total = total + head.weight * mixed
    return total, {name: value.detach() for name, value in parts.items()}
