import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from distill.evaluation.calibration import (
    FEW,
    NEVER,
    Calibration,
    best_threshold,
    best_thresholds,
    calibrate,
    threshold_of_precision,
    validation_quality,
)
from distill.evaluation.metrics import probabilities, quality
from distill.heads import UNKNOWN, UNLABELLED, Head

INTENT = Head("intent", "single_label", ("a", "b", "c"))
FLAGS = Head("flags", "multi_label", ("x", "y", "z"))


def drawn(head: Head, sharpness: float, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax or sigmoid of logits, and those logits times `sharpness`."""
    draw = np.random.default_rng(0)
    z = draw.normal(0, 1.5, (rows, 3))
    p = probabilities(z, head)
    if head.kind == "single_label":
        y = np.array([draw.choice(3, p=row) for row in p])
    else:
        y = (draw.random(p.shape) < p).astype(np.int8)
    return (sharpness * z).astype(np.float32), y


@pytest.mark.parametrize("head", [INTENT, FLAGS], ids=lambda head: head.kind)
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_calibration_finds_the_temperature_and_lowers_log_loss(head: Head, sharpness: float) -> None:
    z, y = drawn(head, sharpness)
    found = calibrate(head, z, y)
    assert found.temperature == pytest.approx(sharpness, rel=0.2)
    before, after = quality(head, z, y), quality(head, z, y, temperature=found.temperature)
    assert after["log_loss"] < before["log_loss"]
    if head.kind == "single_label":
        assert after["ece"] < before["ece"] and after["accuracy"] == before["accuracy"]
    grid = np.geomspace(0.1, 10, 300)
    losses = [quality(head, z, y, temperature=t)["log_loss"] for t in grid[::10]]
    assert after["log_loss"] <= min(losses) + 1e-6


@pytest.mark.parametrize("head", [INTENT, FLAGS], ids=lambda head: head.kind)
def test_without_labels_a_student_takes_its_teachers_confidence(head: Head) -> None:
    z, y = drawn(head, 1.0)
    none = np.full_like(y, -100 if head.kind == "single_label" else -1)
    assert calibrate(head, 0.25 * z, none, z).temperature == pytest.approx(0.25, rel=0.01)
    assert calibrate(head, 0.25 * z, none).temperature == 1
    assert calibrate(head, 0.25 * z, y, z) == calibrate(head, 0.25 * z, y)  # labels come first


def test_the_temperature_stays_between_a_tenth_and_ten() -> None:
    z = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    assert 0.1 <= calibrate(INTENT, z, np.arange(30) % 3).temperature < 0.11
    assert 9.9 < calibrate(INTENT, 50 * z, (np.arange(30) + 1) % 3).temperature <= 10


@pytest.mark.parametrize("seed", range(8))
def test_best_threshold_maximises_f1_by_brute_force(seed: int) -> None:
    draw = np.random.default_rng(seed)
    p = draw.random(40).round(1 + seed % 3)  # with ties
    y = draw.random(40) < p**2
    found = best_threshold(p, y)
    brute = max(f1_score(y, p >= t, zero_division=0) for t in np.unique(p))
    assert f1_score(y, p >= found) == pytest.approx(brute)


def test_a_threshold_is_the_midpoint_of_two_probabilities() -> None:
    p, y = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False])
    assert best_threshold(p, y) == pytest.approx(0.55)
    assert best_threshold(p, ~y & False) == 0.5
    assert best_threshold(p, y | True) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("p", "y"),
    [
        ([1 - 1e-8, 1 - 3e-8, 1 - 5e-8], [True, True, False]),
        ([3e-7, 1e-7, 1e-9], [True, False, False]),
    ],
    ids=["near one", "near zero"],
)
def test_a_threshold_separates_probabilities_closer_than_its_rounding(p: list[float], y: list[bool]) -> None:
    assert (np.array(p) >= best_threshold(np.array(p), np.array(y))).tolist() == y


def test_no_other_threshold_of_a_label_gives_a_higher_micro_f1() -> None:
    z, y = drawn(FLAGS, 2.0)
    z[:, 2] -= 3  # a label whose best threshold is far from the shared one
    found = calibrate(FLAGS, z, y)
    assert found.thresholds is not None and len(found.thresholds) == 3
    p = probabilities(z, FLAGS, found.temperature)
    best = f1_score(y, p >= found.thresholds, average="micro")
    shared = f1_score(y, p >= best_threshold(p.ravel(), y.ravel() == 1), average="micro")
    assert best > shared + 0.01
    for i in range(3):
        for other in p[::4, i]:
            thresholds = np.array(found.thresholds)
            thresholds[i] = other
            assert f1_score(y, p >= thresholds, average="micro") <= best + 1e-12
    tuned = quality(FLAGS, z, y, temperature=found.temperature, thresholds=found.thresholds)
    assert tuned["micro_f1"] == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_of_two_labels_by_brute_force(seed: int) -> None:
    draw = np.random.default_rng(seed)
    p = draw.random((24, 2)).round(1)  # with ties
    y = draw.random((24, 2)) < p**2
    y[:FEW] = True
    brute = max(
        f1_score(y, p >= (s, t), average="micro") for s in np.unique(p[:, 0]) for t in np.unique(p[:, 1])
    )
    assert f1_score(y, p >= best_thresholds(p, y), average="micro") == pytest.approx(brute, abs=0.01)


def test_a_rare_label_has_the_shared_threshold() -> None:
    z, y = drawn(FLAGS, 1.0)
    y[:, 1] = 0
    y[: FEW - 1, 1] = 1
    found = calibrate(FLAGS, z, y)
    assert found.thresholds is not None
    p = probabilities(z, FLAGS, found.temperature)
    shared = best_threshold(p.ravel(), y.ravel() == 1)
    assert found.thresholds[1] == shared and found.thresholds[0] != shared


def test_every_label_can_be_predicted() -> None:
    z, y = drawn(FLAGS, 1.0)
    z[:, 1], y[:, 1] = -np.abs(z[:, 1]), 0
    y[np.argsort(z[:, 1])[:FEW], 1] = 1  # where its probability is lowest
    found = calibrate(FLAGS, z, y)
    assert (probabilities(z, FLAGS, found.temperature) >= found.thresholds).any(0).all()


@pytest.mark.parametrize("head", [INTENT, FLAGS], ids=lambda head: head.kind)
def test_unlabelled_texts_are_ignored(head: Head) -> None:
    z, y = drawn(head, 2.0)
    hidden = y.copy()
    hidden[200:] = UNLABELLED if head.kind == "single_label" else UNKNOWN
    assert calibrate(head, z, hidden) == calibrate(head, z[:200], y[:200])


def test_calibration_without_labels() -> None:
    z = np.zeros((4, 3), np.float32)
    assert calibrate(INTENT, z, np.full(4, UNLABELLED)) == Calibration()
    assert calibrate(FLAGS, z, np.full((4, 3), UNKNOWN)) == Calibration(1.0, (0.5, 0.5, 0.5))


def test_json() -> None:
    assert json.loads(json.dumps(Calibration(1.5, (0.2, 0.4)).to_json())) == {
        "temperature": 1.5,
        "thresholds": [0.2, 0.4],
    }


def test_validation_quality_uses_the_best_threshold() -> None:
    z = np.full((20, 3), -4.0)
    y = np.zeros((20, 3), np.int8)
    y[:4, 1] = 1
    z[:3, 1] = -1.0  # positives far from 0.5
    y[19] = -1  # unlabelled
    found = validation_quality([FLAGS], z, {"flags": y})
    assert quality(FLAGS, z, y)["micro_f1"] == 0
    assert found["flags.micro_f1"] == found["mean"] == pytest.approx(6 / 7)
    assert found["flags.log_loss"] == quality(FLAGS, z, y)["log_loss"]


# a wanted precision


@pytest.mark.parametrize("precision", [0.3, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_threshold_is_the_lowest_whose_lower_bound_is_the_wanted_precision(
    precision: float, confidence: float
) -> None:
    z, labels = drawn(FLAGS, 1.0, 300)
    p, y = np.round(probabilities(z, FLAGS)[:, 0], 2), labels[:, 0] == 1

    def bound(threshold: float) -> float:
        chosen = p >= threshold
        interval = binomtest(int(y[chosen].sum()), int(chosen.sum()), alternative="greater")
        return interval.proportion_ci(confidence, "exact").low if chosen.any() else 0.0

    reached = [threshold for threshold in np.unique(p) if bound(threshold) >= precision]
    found = threshold_of_precision(p, y, precision, confidence)
    if not reached:
        assert found == NEVER
    else:
        assert ((p >= found) == (p >= min(reached))).all() and bound(found) >= precision


def test_a_label_of_few_texts_has_no_precision() -> None:
    p, y = np.linspace(0, 1, 100), np.arange(100) >= 96
    assert threshold_of_precision(p, y, 0.9, 0.95) == NEVER, "four of four are no proof of nine of ten"
    assert threshold_of_precision(p, y, 0.9, 0.5) == NEVER
    assert threshold_of_precision(p, y, 0.4, 0.95) < 0.99
    assert threshold_of_precision(p, np.zeros(100, bool), 0.1, 0.5) == NEVER
    assert threshold_of_precision(p, np.ones(100, bool), 0.9, 0.95) == pytest.approx(0, abs=1e-6)


def test_thresholds_of_a_wanted_precision_and_of_f1_in_one_head() -> None:
    z, y = drawn(FLAGS, 1.0, 400)
    f1 = calibrate(FLAGS, z, y)
    found = calibrate(FLAGS, z, y, wanted={"y": 0.8})
    assert found.temperature == f1.temperature and found.precision == {"y": 0.8}
    assert (found.thresholds[0], found.thresholds[2]) == (f1.thresholds[0], f1.thresholds[2])
    assert f1.thresholds[1] < found.thresholds[1] < NEVER
    p = probabilities(z, FLAGS, found.temperature)[:, 1]
    assert y[p >= found.thresholds[1], 1].mean() > 0.8
    assert Calibration(**json.loads(json.dumps(found.to_json()))).precision == {"y": 0.8}
    assert "precision" not in f1.to_json()
    unknown = np.full_like(y, UNKNOWN)
    assert calibrate(FLAGS, z, unknown, wanted={"y": 0.8}).thresholds == (0.5, NEVER, 0.5)
