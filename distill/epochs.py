"""Which epoch of a training is kept, and when patience with it ends.

What is known of the epochs stands in the training's state, which a checkpoint holds as JSON.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

LOSSES = (".log_loss", ".ece")  # metrics of which less is better
NO_EPOCHS = MappingProxyType({"best": -math.inf, "best_epoch": 0, "kept_epoch": 0})


def keeps(state: dict[str, Any], metric: str, texts: int | None) -> bool:
    """Whether the epoch that ended is kept: as the best, or as one within a standard error of the best.

    Of epochs that validation cannot tell apart the last has learnt longest, at the lowest rates; an earlier
    one was best by chance (the rule of Breiman et al. 1984, CART, section 3.4.3).

    Args:
        state: Of the training; figures of its epochs in `epochs`. The best and the kept one are noted there.
        metric: What is compared, as a share of texts; of losses the lowest is best, and has no error.
        texts: How many it is a share of; None: only a better epoch is kept.
    """
    epoch, score, loss = len(state["epochs"]), state["epochs"][-1][metric], metric.endswith(LOSSES)
    score = -score if loss else score
    kept = epoch == 1 or score > state["best"]
    if kept:
        state |= {"best": score, "best_epoch": epoch}
    elif texts and not loss:
        share = min(1.0, max(0.0, state["best"]))
        kept = score >= state["best"] - math.sqrt(share * (1 - share) / texts)
    if kept:
        state["kept_epoch"] = epoch
    return bool(kept)


def patience_ends(state: dict[str, Any], patience: int | None) -> bool:
    """Whether so many epochs have gone by without a better one."""
    return patience is not None and len(state["epochs"]) - state["best_epoch"] >= patience
