"""Hard loss, distillation loss, and their mix for each head; nothing else.

The hard loss skips rows without a label for a head. The distillation loss needs no labels, and skips heads
that the teacher does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.heads import NOT_SCORED, UNKNOWN, UNLABELLED, Head, Kind, columns
from distill.recipe import defaults

Loss = Literal["kl", "mse", "standardized"]
HEAD_LOSSES = ("hard", "distillation")  # the parts of a head's loss


def hard_loss(logits: Tensor, labels: Tensor, kind: Kind, weights: Tensor | None = None) -> Tensor:
    """The mean over labelled rows of -log p(labels of the row); a scalar, 0 where no row is labelled.

    Cross-entropy for single_label; for multi_label the sum of the binary cross-entropies of its labels. Both
    are nats per text, so that heads of different kinds and sizes carry the same weight.

    Args:
        logits: `[batch, labels]`.
        labels: Class indices `[batch]`, -100 where unlabelled; or 0/1 `[batch, labels]`, -1 where unlabelled.
        kind: The head's kind.
        weights: Of the labels, `[labels]`. Those of a multi_label head weigh the texts that have the label.
    """
    if kind == "single_label":
        known = (labels != UNLABELLED).sum()
        total = F.cross_entropy(logits, labels.long(), weights, ignore_index=UNLABELLED, reduction="sum")
    else:
        mask = (labels != UNKNOWN).to(logits.dtype)
        known = mask[:, 0].sum()
        targets = labels.clamp(min=0).to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(
            logits, targets, weight=mask, reduction="sum", pos_weight=weights
        )
    return total / known.clamp(min=1)


def label_probabilities(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The probability of the labels of each row, `[batch]`; of no meaning where a row is unlabelled.

    The arguments are those of `hard_loss`. That of a multi_label row is the product over its labels.
    """
    labels = labels.clamp(min=0)
    if kind == "single_label":
        return F.cross_entropy(logits, labels.long(), reduction="none").neg().exp()
    losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return losses.sum(-1).neg().exp()


def distillation_loss(
    student: Tensor, teacher: Tensor, kind: Kind, *, temperature: float = 1.0, loss: Loss = "kl"
) -> Tensor:
    """The distance of the student's logits from the teacher's, both `[batch, labels]`; a scalar.

    `kl`: `T^2 * KL(teacher || student)` at temperature T, the mean over rows (Hinton et al. 2015,
    arXiv:1503.02531, section 2: T^2 keeps the gradient's scale as T changes). For a multi_label head, the KL
    divergence of one Bernoulli distribution per label, summed over labels.
    `mse`: the mean squared difference of the logits, without temperature (Ba and Caruana 2014,
    arXiv:1312.6184).
    `standardized`: `kl` of each row's logits minus their mean, divided by their standard deviation (Sun et
    al. 2024, arXiv:2403.01265, eq. 9), so that a small student need not reach the teacher's range. With two
    labels only the sign would remain, so heads of two labels and multi_label heads use `kl`.

    A row of NaN in `teacher` is a text that the teacher does not know; the mean is over the other rows, and 0
    without any.
    """
    known = ~teacher.isnan().any(-1)
    teacher = teacher.masked_fill(~known.unsqueeze(-1), 0.0)
    # a packed student scores a sample of the labels: the others drop out of both distributions
    teacher = teacher.to(student.dtype).masked_fill(student <= NOT_SCORED / 2, NOT_SCORED)
    if loss == "mse":
        return _mean((student - teacher).square().mean(-1), known)
    if loss == "standardized" and _standardizable(kind, student.shape[-1]):
        student, teacher = _standardized(student), _standardized(teacher)
    s, t = student / temperature, teacher / temperature
    if kind == "single_label":
        log_t = t.log_softmax(-1)
        kl = (log_t.exp() * (log_t - s.log_softmax(-1))).sum(-1)
    else:
        p = t.sigmoid()
        on = p * (F.logsigmoid(t) - F.logsigmoid(s))
        off = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
        kl = (on + off).sum(-1)
    return temperature**2 * _mean(kl, known)


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    """The mean of the losses `[batch]` of known rows."""
    return (losses * known).sum() / known.sum().clamp(min=1)


@cache
def _class_weights(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Class weights on a device, copied once: a copy in each step would make a GPU wait."""
    return torch.tensor(weights, device=device)


def _standardizable(kind: Kind, labels: int) -> bool:
    return kind == "single_label" and labels > 2


def loss_of(head: Head, loss: Loss | None) -> Loss:
    """The distillation loss of a head: the given one if the head supports it."""
    loss = loss or defaults.distillation_loss(head.kind, len(head.labels))
    return "kl" if loss == "standardized" and not _standardizable(head.kind, len(head.labels)) else loss


def _standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True, correction=0) + 1e-7)


def total_loss(
    logits: Tensor,
    hard: Mapping[str, Tensor],
    soft: Mapping[str, Tensor],
    heads: Sequence[Head],
    *,
    temperature: float | None = None,
    soft_weight: float = 0.0,
    loss: Loss | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise and its parts, `{"HEAD/hard": x, "HEAD/distillation": y}`.

    Args:
        logits: Of all heads side by side, `[batch, sum of labels]`.
        hard: The labels of each head, as `hard_loss` takes them.
        soft: The teacher's logits of each head that it knows, `[batch, labels]`. A head that is absent learns
            from hard labels alone.
        heads: In order, with their weights.
        temperature: Of distillation; by default what `defaults` gives for each head.
        soft_weight: The share of the distillation loss, 0 to 1.
        loss: The distillation loss; by default what `defaults` gives for each head.
    """
    logits = logits.float()  # softmax in float32, also under autocast
    total = logits.new_zeros(())
    parts: dict[str, Tensor] = {}
    for head, part in columns(heads):
        weight = soft_weight if head.name in soft else 0.0
        mixed = logits.new_zeros(())
        if weight < 1:
            weights = _class_weights(tuple(head.class_weights), logits.device) if head.class_weights else None
            parts[f"{head.name}/hard"] = hard_loss(logits[:, part], hard[head.name], head.kind, weights)
            mixed = mixed + (1 - weight) * parts[f"{head.name}/hard"]
        if weight > 0:
            of_head = loss_of(head, loss)
            t = temperature or defaults.distillation_temperature(of_head)
            parts[f"{head.name}/distillation"] = distillation_loss(
                logits[:, part], soft[head.name], head.kind, temperature=t, loss=of_head
            )
            mixed = mixed + weight * parts[f"{head.name}/distillation"]
        total = total + head.weight * mixed
    return total, {name: value.detach() for name, value in parts.items()}
