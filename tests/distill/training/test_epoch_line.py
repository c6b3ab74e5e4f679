import logging

import numpy as np
import pytest
import torch

from distill.heads import Head
from distill.run import progress
from distill.training.epoch_line import counts, log_epoch, split_counts, validation_loss

INTENT, FLAGS = Head("intent", "single_label", ("a", "b")), Head("flags", "multi_label", ("x", "y"))


def test_counts_of_the_labels_that_a_batch_has() -> None:
    logits = torch.tensor([[1.0, 0, 2, -1e4], [0, 1, 2, -3], [1, 0, 1, 1]])
    hard = {"intent": torch.tensor([0, 0, -100]), "flags": torch.tensor([[1, 0], [1, 1], [-1, -1]])}
    found = counts(logits, hard, (INTENT, FLAGS))
    assert {name: float(x) for name, x in found.items()} == {
        "intent/right": 1,
        "intent/labelled": 2,
        "flags/right": 2,
        "flags/labelled": 3,  # a label that was not scored is none
    }
    means = {"loss": 0.5, "intent/hard": 0.25, **{name: float(x) / 2 for name, x in found.items()}}
    losses, accuracies = split_counts({**means, "other/right": 0.0, "other/labelled": 0.0})
    assert losses == {"loss": 0.5, "intent/hard": 0.25}
    assert accuracies == {"intent": 0.5, "flags": pytest.approx(2 / 3)}


def test_the_loss_of_a_head_without_labels_is_that_of_distillation() -> None:
    logits = np.float32([[1.0, 0], [0, 1]])
    teacher = np.float16([[1.0, 0], [0, 1]])
    loss = validation_loss((INTENT,), logits, {"intent": teacher}, {}, {"soft_weight": 1.0, "loss": "kl"})
    assert loss == pytest.approx(0, abs=1e-6)
    hard = {"intent": np.array([0, 1])}
    mixed = validation_loss((INTENT,), logits, hard, {"intent": teacher}, {"soft_weight": 0.5, "loss": "kl"})
    assert mixed == pytest.approx(0.5 * np.log(1 + np.exp(-1)), abs=1e-5)


def line(caplog: pytest.LogCaptureFixture, means: dict[str, float], validation: dict[str, float]) -> str:
    caplog.set_level("INFO", "tinyheads")
    heads = [Head(name, "single_label", ("a", "b")) for name in "abcdef"]
    log_epoch("teacher: epoch 2/5", heads, means, validation, 0.28)
    return caplog.messages[-1]


def test_a_line_of_one_head(caplog: pytest.LogCaptureFixture) -> None:
    means = {"loss": 0.31, "a/right": 9, "a/labelled": 10}
    assert line(caplog, means, {"a.accuracy": 0.9123, "a.ece": 0.1, "mean": 0.5}) == (
        "teacher: epoch 2/5: loss 0.3100, accuracy 0.900 (a); validation: loss 0.2800, accuracy 0.912 (a)"
    )
    assert line(caplog, {"loss": 0.31}, {"a.accuracy": float("nan")}) == (
        "teacher: epoch 2/5: loss 0.3100; validation: loss 0.2800"
    )


def test_a_line_of_many_heads_is_short(caplog: pytest.LogCaptureFixture) -> None:
    found = line(caplog, {"loss": 1.0}, {f"{name}.accuracy": 0.9 for name in "abcdef"} | {"c.accuracy": 0.3})
    assert found.endswith("validation: loss 0.2800, mean 0.800 of 6 heads, lowest accuracy 0.300 (c)")
    two = line(caplog, {"loss": 1.0}, {"a.accuracy": 0.5, "b.accuracy": 0.25, "c.micro_f1": 1.0})
    assert two.endswith("accuracy 0.500 (a), 0.250 (b), micro_f1 1.000 (c)")


def test_the_line_stands_beside_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("tinyheads")
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        with progress(4, "teacher", "step") as bar:
            bar.update()
            bar.refresh()
            log_epoch("teacher: epoch 1/2", [INTENT], {"loss": 1.0}, {}, 1.0)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    written = capsys.readouterr().err
    assert "\rteacher: epoch 1/2: loss 1.0000; validation: loss 1.0000\n" in written
