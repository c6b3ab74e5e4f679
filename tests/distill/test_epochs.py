"""Which epoch is kept."""

from typing import Any

import pytest

from distill.epochs import NO_EPOCHS, keeps, patience_ends

SCORES = (0.70, 0.90, 0.88, 0.86, 0.91, 0.89, 0.87)  # the error of 0.9 over 150 texts is 0.024


@pytest.mark.parametrize(
    ("metric", "texts", "kept"),
    [("mean", 150, [1, 2, 3, 5, 6]), ("mean", None, [1, 2, 5]), ("intent.log_loss", 150, [1])],
)
def test_of_epochs_within_a_standard_error_of_the_best_the_last_is_kept(
    metric: str, texts: int | None, kept: list[int]
) -> None:
    state: dict[str, Any] = {**NO_EPOCHS, "epochs": []}
    found = []
    for epoch, score in enumerate(SCORES, 1):
        state["epochs"].append({metric: score})
        if keeps(state, metric, texts):
            found.append(epoch)
    assert found == kept and state["kept_epoch"] == kept[-1]


def test_patience_waits_for_a_better_epoch_not_for_one_alike() -> None:
    state: dict[str, Any] = {**NO_EPOCHS, "epochs": []}
    ends = []
    for score in SCORES:
        state["epochs"].append({"mean": score})
        keeps(state, "mean", 150)
        ends.append(patience_ends(state, 2))
    assert ends == [False, False, False, True, False, False, True]
    assert not patience_ends(state, None)
