"""The line that a training logs after each epoch: loss and accuracy, of training and on validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.evaluation.metrics import Array
from distill.heads import NOT_SCORED, UNKNOWN, UNLABELLED, Head, columns
from distill.run import LOG
from distill.training.losses import HEAD_LOSSES, total_loss

RIGHT, LABELLED = "right", "labelled"
SHOWN = 4  # heads of one line


def counts(logits: Tensor, hard: Mapping[str, Tensor], heads: Sequence[Head]) -> dict[str, Tensor]:
    """How many labels of a batch are right, and how many it has, `{"HEAD/right": n, "HEAD/labelled": m}`.

    Those of a multi_label head are 0 and 1, all of a text's labels; a logit above 0 is a 1. The arguments are
    those of `losses.total_loss`.
    """
    found: dict[str, Tensor] = {}
    for head, part in columns(heads):
        if head.kind == "embedding":
            continue
        own, labels = logits[:, part].detach(), hard[head.name]
        if head.kind == "single_label":
            known, right = labels != UNLABELLED, own.argmax(-1) == labels
        else:
            known, right = (labels != UNKNOWN) & (own > NOT_SCORED / 2), (own > 0) == (labels > 0)
        found[f"{head.name}/{RIGHT}"] = (right & known).sum().float()
        found[f"{head.name}/{LABELLED}"] = known.sum().float()
    return found


def split_counts(means: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The means of losses and of `counts` over batches: the losses, and the accuracy of each head."""
    losses, accuracies = {}, {}
    for name, value in means.items():
        head, _, what = name.rpartition("/")
        if head and what == LABELLED:
            if value:
                accuracies[head] = means[f"{head}/{RIGHT}"] / value
        elif not (head and what == RIGHT):
            losses[name] = value
    return losses, accuracies


def of_all_heads(heads: Sequence[Head], losses: Mapping[str, float]) -> dict[str, float]:
    """The `loss` and its parts: `hard` and `distillation` summed over the weighted heads, and others."""
    found: dict[str, float] = {}
    weights = {f"{head.name}/{part}": (part, head.weight) for head in heads for part in HEAD_LOSSES}
    for name, value in split_counts(losses)[0].items():
        part, weight = weights.get(name, (name, 1.0))
        found[part] = found.get(part, 0.0) + weight * value
    return found


def validation_loss(
    heads: Sequence[Head],
    logits: Array,
    hard: Mapping[str, Array],
    soft: Mapping[str, Array],
    distillation: Mapping[str, object],
) -> float:
    """The loss of training, on validation; that of feature matching is not part of it.

    Args:
        heads: In order.
        logits: Of all heads side by side, `[texts, sum of labels]`.
        hard: The labels of each head; a teacher's logits where there are none.
        soft: The teacher's logits of each head that it knows.
        distillation: The settings of `losses.total_loss`.
    """
    labels: dict[str, Tensor] = {}
    teacher = {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in soft.items()}
    for head in heads:
        values = hard[head.name]
        if values.dtype.kind == "f":
            teacher[head.name] = torch.from_numpy(np.asarray(values, np.float32))
            single = head.kind == "single_label"
            values = np.full(len(values) if single else values.shape, UNLABELLED if single else UNKNOWN)
        labels[head.name] = torch.from_numpy(values)
    with torch.inference_mode():
        loss, _ = total_loss(torch.from_numpy(logits), labels, teacher, heads, **distillation)  # type: ignore[arg-type]
    return float(loss)


def log_epoch(
    title: str,
    heads: Sequence[Head],
    means: Mapping[str, float],
    validation: Mapping[str, float],
    loss: float,
) -> None:
    """Log the line of an epoch, beside progress bars.

    Args:
        title: Of the line, such as `teacher: epoch 2/5`.
        heads: In order.
        means: Of losses and `counts`, over the batches of the epoch.
        validation: The metrics on validation, `{"HEAD.METRIC": x}`, each head's first metric first.
        loss: The loss on validation.
    """
    losses, accuracies = split_counts(means)
    kinds = {head.name: "accuracy" if head.kind == "single_label" else "label_accuracy" for head in heads}
    trained = [(kinds[head], head, accuracy) for head, accuracy in accuracies.items()]
    measured: dict[str, tuple[str, str, float]] = {}
    for name, value in validation.items():
        head, dot, metric = name.partition(".")
        if dot and not math.isnan(value):
            measured.setdefault(head, (metric, head, value))
    line = f"{title}: {_part(losses['loss'], trained)}; validation: {_part(loss, [*measured.values()])}"
    with tqdm.external_write_mode():
        LOG.info(line)


def _part(loss: float, values: Sequence[tuple[str, str, float]]) -> str:
    """The loss, and the metric of each head; of many heads their mean and the lowest."""
    parts, before = [f"loss {loss:.4f}"], ""
    if len(values) > SHOWN:
        metric, head, lowest = min(values, key=lambda one: one[2])
        mean = sum(value for _, _, value in values) / len(values)
        parts += [f"mean {mean:.3f} of {len(values)} heads", f"lowest {metric} {lowest:.3f} ({head})"]
        return ", ".join(parts)
    for metric, head, value in values:
        parts.append(f"{'' if metric == before else f'{metric} '}{value:.3f} ({head})")
        before = metric
    return ", ".join(parts)
