import math

import numpy as np
import pytest
from sklearn import metrics as sk

from distill.evaluation.metrics import (
    average_precision,
    decisions,
    expected_calibration_error,
    labelled,
    probabilities,
    quality,
)
from distill.evaluation.module import HeadQuality
from distill.heads import METRICS, UNKNOWN, UNLABELLED, Head

INTENT = Head("intent", "single_label", ("a", "b", "c", "d"))
FLAGS = Head("flags", "multi_label", ("x", "y", "z"))
ROWS = 200
UNDEFINED = ("roc_auc", "average_precision")  # where a label occurs in no text, or in every one


def logits(head: Head, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (ROWS, len(head.labels))).astype(np.float32)


def labels(head: Head, seed: int = 1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    if head.kind == "single_label":
        return draw.integers(0, len(head.labels), ROWS)
    return draw.integers(0, 2, (ROWS, len(head.labels))).astype(np.int8)


def test_the_first_metric_of_each_kind_comes_first() -> None:
    assert (INTENT.first_metric, FLAGS.first_metric) == ("accuracy", "micro_f1")
    for head in (INTENT, FLAGS):
        assert tuple(quality(head, logits(head), labels(head))) == METRICS[head.kind]


def test_single_label_against_scikit_learn() -> None:
    z, y = logits(INTENT), labels(INTENT)
    p, predicted = probabilities(z, INTENT), z.argmax(-1)
    found = quality(INTENT, z, y)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p))
    assert found["ece"] == pytest.approx(naive_ece(p, y))


def test_at_a_threshold_of_1_a_label_never_applies() -> None:
    sure = np.full((2, 3), 40.0)  # a sigmoid that rounds to 1
    assert probabilities(sure, FLAGS)[0, 0] == 1
    assert decisions(FLAGS, sure, (0.5, 1.0, 0.9), 1.0).tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("thresholds", [None, (0.2, 0.5, 0.9)])
def test_multi_label_against_scikit_learn(thresholds: tuple[float, ...] | None) -> None:
    z, y = logits(FLAGS), labels(FLAGS)
    p = probabilities(z, FLAGS)
    predicted = p >= np.array(thresholds or 0.5)
    found = quality(FLAGS, z, y, thresholds=thresholds)
    assert found["micro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert found["label_accuracy"] == pytest.approx(1 - sk.hamming_loss(y, predicted))
    assert found["log_loss"] == pytest.approx(np.mean([sk.log_loss(y[:, i], p[:, i]) for i in range(3)]))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p, average="macro"))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(y, p, average="macro"))


def test_labels_of_no_text_or_of_every_text() -> None:
    z, y = logits(FLAGS), labels(FLAGS)
    y[:, 0], y[:, 1] = 0, 1
    p = probabilities(z, FLAGS)
    found = quality(FLAGS, z, y)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y[:, 2], p[:, 2]))
    occur = [sk.average_precision_score(y[:, i], p[:, i]) for i in (1, 2)]
    assert found["average_precision"] == pytest.approx(np.mean(occur))
    expected = sk.f1_score(y, p >= 0.5, average="macro", zero_division=0.0)
    assert found["macro_f1"] == pytest.approx(expected)
    nothing = quality(FLAGS, np.full_like(z, -9), np.zeros_like(y))
    assert nothing["micro_f1"] == 0 and nothing["subset_accuracy"] == 1
    assert math.isnan(nothing["roc_auc"]) and math.isnan(nothing["average_precision"])


def test_equal_probabilities_are_one_point_of_the_average_precision() -> None:
    y = labels(FLAGS)[:, 0] == 1
    p = np.round(probabilities(logits(FLAGS), FLAGS)[:, 0], 1)
    assert average_precision(p, y) == pytest.approx(sk.average_precision_score(y, p))
    assert average_precision(np.full(len(y), 0.5), y) == pytest.approx(y.mean())
    assert average_precision(p, np.zeros_like(y)) is None


@pytest.mark.parametrize("head", [INTENT, FLAGS], ids=lambda head: head.kind)
def test_unlabelled_texts_are_ignored(head: Head) -> None:
    z, y = logits(head), labels(head)
    hidden = y.copy()
    hidden[50:] = UNLABELLED if head.kind == "single_label" else UNKNOWN
    assert labelled(hidden, head).tolist() == [True] * 50 + [False] * 150
    assert quality(head, z, hidden) == quality(head, z[:50], y[:50])


@pytest.mark.parametrize("head", [INTENT, FLAGS], ids=lambda head: head.kind)
def test_nan_without_labelled_texts(head: Head) -> None:
    y = np.full_like(labels(head), UNLABELLED if head.kind == "single_label" else UNKNOWN)
    found = quality(head, logits(head), y)
    assert tuple(found) == METRICS[head.kind] and all(map(math.isnan, found.values()))
    assert all(map(math.isnan, quality(head, logits(head)[:0], y[:0]).values()))


@pytest.mark.parametrize("head", [INTENT, FLAGS], ids=lambda head: head.kind)
def test_one_text_is_enough(head: Head) -> None:
    found = quality(head, logits(head)[:1], labels(head)[:1])
    assert all(math.isfinite(value) for name, value in found.items() if name not in UNDEFINED)


def test_probabilities() -> None:
    z = np.array([[1000.0, 0.0, -1000.0, 999.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    p = probabilities(z, INTENT)
    assert p.dtype == np.float64 and p.sum(-1) == pytest.approx([1, 1])
    assert p[0] == pytest.approx([1 / (1 + np.exp(-1)), 0, 0, 1 - 1 / (1 + np.exp(-1))])
    assert p[1] == pytest.approx([0.25] * 4)
    assert probabilities(z / 2, INTENT) == pytest.approx(probabilities(z, INTENT, 2.0))
    q = probabilities(np.array([[-800.0, 0.0, 800.0]], np.float32), FLAGS)
    assert q[0] == pytest.approx([0, 0.5, 1]) and np.isfinite(q).all()
    assert z[0, 0] == 1000  # the logits are not changed


def test_the_temperature_changes_only_confidence() -> None:
    z, y = logits(INTENT), labels(INTENT)
    one, three = quality(INTENT, z, y), quality(INTENT, z, y, temperature=3.0)
    assert one["accuracy"] == three["accuracy"] and one["macro_f1"] == three["macro_f1"]
    assert three["log_loss"] == pytest.approx(sk.log_loss(y, probabilities(z, INTENT, 3.0)))


def naive_ece(p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    confidence, right = p.max(-1), p.argmax(-1) == y
    total = 0.0
    for low in range(bins):
        inside = (confidence >= low / bins) & (confidence < (low + 1) / bins)
        if inside.any():
            total += inside.sum() / len(y) * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_ece_of_a_perfectly_calibrated_head_is_0() -> None:
    """Seven of ten texts with confidence 0.7 are correct, and nine of ten with 0.9."""
    p = np.array([[0.7, 0.3]] * 10 + [[0.1, 0.9]] * 10)
    y = np.array([0] * 7 + [1] * 3 + [1] * 9 + [0])
    assert expected_calibration_error(p, y) == pytest.approx(0, abs=1e-12)


def test_ece_of_an_over_confident_head() -> None:
    certain = np.eye(2)[[0] * 10]
    assert expected_calibration_error(certain, np.array([1] * 10)) == 1
    assert expected_calibration_error(certain, np.array([0] * 8 + [1] * 2)) == pytest.approx(0.2)


def test_decisions() -> None:
    z = logits(INTENT)
    assert decisions(INTENT, z, None, 3.0).tolist() == z.argmax(-1).tolist()
    z = np.array([[0.0, -1.0, 1.0]])
    assert decisions(FLAGS, z, None, 1.0).tolist() == [[True, False, True]]
    assert decisions(FLAGS, z, (0.6, 0.2, 0.9), 1.0).tolist() == [[False, True, False]]
    assert decisions(FLAGS, z, (0.6, 0.2, 0.9), 0.1).tolist() == [[False, False, True]]


@pytest.mark.parametrize("head", [INTENT, FLAGS], ids=["single_label", "multi_label"])
def test_the_module_of_evaluate_computes_the_same(head, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nothing"))
    module = HeadQuality(head, tmp_path / "scratch")
    z, y = logits(head), labels(head)
    y[:20] = UNLABELLED if head.kind == "single_label" else UNKNOWN
    thresholds = (0.2, 0.5, 0.9) if head.kind == "multi_label" else None
    found = module.compute(predictions=z, references=y, temperature=1.7, thresholds=thresholds)
    assert found == quality(head, z, y, temperature=1.7, thresholds=thresholds)
    assert not (tmp_path / "nothing").exists()
