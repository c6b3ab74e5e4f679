"""Which epoch's weights a training keeps, and when it waits no longer for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

START: dict[str, Any] = {"best": [], "best_epoch": 0, "risen": 0, "epochs": []}


def keeps(state: dict[str, Any], figures: Mapping[str, float], metric: str, texts: int) -> bool:
    """Note an epoch's figures in `state`; whether its weights are the ones to keep.

    The best epoch's are, and after it those of every epoch that is less than a standard error worse: so many
    texts cannot tell the two apart, and as the learning rate falls the later one is as a rule the better.

    Args:
        state: What `START` holds: the merit of the best epoch, the number of the one that is kept and of the
            one at which the best last rose, from 1, and the figures of all.
        figures: Of the epoch, on validation.
        metric: Their name by which epochs are compared.
        texts: How many the metric is a share of; 0 keeps the best epoch itself.
    """
    state["epochs"].append(figures)
    merit = _merit(figures, metric)
    rises = merit > state["best"]
    if rises:
        state |= {"best": merit, "risen": len(state["epochs"])}
    best = state["best"][0]
    error = math.sqrt(best * (1 - best) / texts) if texts and 0 <= best <= 1 else 0.0
    if rises or merit[0] > best - error:
        state["best_epoch"] = len(state["epochs"])
    return bool(state["best_epoch"] == len(state["epochs"]))


def patience_ends(state: Mapping[str, Any], patience: int | None) -> bool:
    """Whether so many epochs have passed since the best one rose."""
    return patience is not None and len(state["epochs"]) - state["risen"] >= patience


def _merit(figures: Mapping[str, float], metric: str) -> list[float]:
    """What epochs are compared by, more is better: the metric, and where it is the same or NaN the log loss.

    So a metric that the texts cannot move, such as F1 without a positive one, does not keep the first epoch.
    """
    sign = -1 if metric.endswith((".log_loss", ".ece")) else 1
    losses = [value for name, value in figures.items() if name.endswith(".log_loss")]
    merits = [sign * figures[metric], -sum(value for value in losses if not math.isnan(value))]
    return [-math.inf if math.isnan(merit) else merit for merit in merits]
