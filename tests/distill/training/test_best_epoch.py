"""Which epoch's weights a training keeps."""

from __future__ import annotations

import numpy as np
import pytest

from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.training.best_epoch import compared_texts, end_epoch
from distill.training.checkpoint import TrainingState


def kept(scores: list[float], texts: int, metric: str = "mean", losses: list[float] | None = None) -> int:
    """The epoch, from 1, that is kept of epochs that score so."""
    state = TrainingState()
    seen = []
    for score, loss in zip(scores, losses or [1.0] * len(scores), strict=True):
        seen.append(end_epoch(state, {metric: score, "head.log_loss": loss}, metric, texts))
    assert max(number for number, keep in enumerate(seen, 1) if keep) == state.kept_epoch
    return state.kept_epoch


@pytest.mark.parametrize(
    "scores, texts, epoch",
    [
        ([0.5, 0.8, 0.7], 0, 2),
        ([0.5, 0.8, 0.8], 0, 2),
        # of 400 texts one standard error of 0.8 is 0.02
        ([0.5, 0.8, 0.781], 400, 3),
        ([0.5, 0.8, 0.779], 400, 2),
        ([0.5, 0.8, 0.779, 0.781], 400, 4),
        ([0.5, 0.8, 0.781], 4000, 2),
        # measured from the best, not from the one kept last
        ([0.8, 0.785, 0.77], 400, 2),
        ([0.79, 0.8, 0.785, 0.81, 0.78], 400, 4),
    ],
)
def test_the_last_epoch_that_is_as_good_as_so_many_texts_can_tell(
    scores: list[float], texts: int, epoch: int
) -> None:
    assert kept(scores, texts) == epoch


@pytest.mark.parametrize("same", [0.0, 1.0, float("nan")])
def test_where_the_metric_tells_nothing_the_log_loss_does(same: float) -> None:
    assert kept([same] * 3, 400, losses=[0.5, 0.2, 0.3]) == 2


@pytest.mark.parametrize("metric", ["head.log_loss", "head.ece"])
def test_what_is_no_share_is_compared_exactly(metric: str) -> None:
    assert kept([0.5, 0.2, 0.2001], 400, metric, [0.5, 0.2, 0.2001]) == 2


@pytest.mark.parametrize(
    ("metric", "texts"), [("a.accuracy", 2), ("b.micro_f1", 4), ("mean", 3), ("none.accuracy", 0)]
)
def test_a_metric_stands_on_labelled_texts(metric: str, texts: int) -> None:
    """A head that is half labelled has a larger standard error."""
    heads = [Head("a", "single_label", ("x", "y")), Head("b", "multi_label", ("x", "y"))]
    heads.append(Head("none", "single_label", ("x", "y")))
    labels = {
        "a": np.array([0, UNLABELLED, 1, UNLABELLED, UNLABELLED]),
        "b": np.array([[0, 1], [1, 1], [0, 0], [1, 0], [UNKNOWN, UNKNOWN]]),
        "none": np.full(5, UNLABELLED),
    }
    assert compared_texts(heads, labels, metric) == texts
