"""Which epoch's weights a training keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from distill.evaluation.metrics import Array, labelled
from distill.heads import Head
from distill.training.checkpoint import TrainingState


def compared_texts(heads: Sequence[Head], labels: Mapping[str, Array], metric: str) -> int:
    """The number of texts that a metric stands on: the labelled texts of its head, or their mean over heads.

    Args:
        heads: All heads.
        labels: Labels of each head, as in `metrics.quality`.
        metric: HEAD.METRIC, or `mean` over the heads that have labelled texts.
    """
    chosen = [head for head in heads if metric in ("mean", f"{head.name}.{metric.rpartition('.')[2]}")]
    counts = [int(labelled(labels[head.name], head).sum()) for head in chosen]
    return round(sum(counts) / max(1, sum(map(bool, counts))))


def end_epoch(state: TrainingState, metrics: Mapping[str, float], metric: str, texts: int) -> bool:
    """Add an epoch's validation metrics to the state; returns whether its weights are the ones to keep.

    The best epoch's weights are kept, and after it those of every epoch that is less than one standard error
    worse: so few texts cannot distinguish the two, and as the learning rate falls the later one is usually
    better.

    Args:
        state: Updated in place.
        metrics: The metrics of the epoch on validation.
        metric: The name of the metric that compares epochs.
        texts: The number of texts that the metric is a share of; 0 keeps the best epoch itself.
    """
    state.history.append(dict(metrics))
    epoch = len(state.history)
    score = _score(metrics, metric)
    improves = score > state.best
    if improves:
        state.best = score
    best = state.best[0]
    error = math.sqrt(best * (1 - best) / texts) if texts and 0 <= best <= 1 else 0.0
    if improves or score[0] > best - error:
        state.kept_epoch = epoch
    return state.kept_epoch == epoch


def _score(metrics: Mapping[str, float], metric: str) -> list[float]:
    """The metric and, for ties or NaN, the negative log loss or cross-entropy; larger is better.

    A metric that the texts cannot move, such as F1 without a positive text, thus does not keep the first
    epoch.
    """
    sign = -1 if metric.endswith((".log_loss", ".ece")) else 1
    losses = [value for name, value in metrics.items() if name.endswith((".log_loss", ".cross_entropy"))]
    scores = [sign * metrics[metric], -sum(value for value in losses if not math.isnan(value))]
    return [-math.inf if math.isnan(score) else score for score in scores]
