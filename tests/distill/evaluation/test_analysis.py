import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from distill.evaluation import analysis
from distill.evaluation.analysis import Answers, analyse, disagreements, label_counts
from distill.evaluation.metrics import quality
from distill.heads import UNKNOWN, UNLABELLED, Head

NAMES = tuple("abcde")
INTENT = Head("intent", "single_label", NAMES)
FLAGS = Head("flags", "multi_label", ("x", "y", "z"))
TEXTS = [f"text {number}" for number in range(400)]


@pytest.fixture
def intents() -> tuple[Answers, np.ndarray]:
    """Answers to 400 texts, of which 40 are unlabelled; no text has the label e."""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 4, 400)
    logits = draw.normal(np.eye(5)[labels] * 2, 1.0)
    logits[:, 4] -= 5
    labels[::10] = UNLABELLED
    return Answers(INTENT, logits, 1.5), labels


@pytest.fixture
def flags() -> tuple[Answers, np.ndarray]:
    draw = np.random.default_rng(2)
    labels = (draw.random((400, 3)) < 0.3).astype(np.int8)
    logits = draw.normal(labels * 3.0 - 1.5, 1.0)
    labels[::10] = UNKNOWN
    return Answers(FLAGS, logits, 1.2, (0.5, 0.3, 0.7)), labels


def test_classes_are_those_of_scikit_learn(intents, flags) -> None:
    for answers, labels in (intents, flags):
        known = labels.reshape(400, -1)[:, 0] >= 0
        found = {row["label"]: row for row in analyse(answers, labels, TEXTS)["classes"]}
        names = answers.head.labels
        decided, true = answers.decisions[known], labels[known]
        expected = precision_recall_fscore_support(
            true, decided, labels=range(len(names)), zero_division=np.nan
        )
        for label, *values in zip(names, *expected, strict=True):
            own = [found[label][name] for name in ("precision", "recall", "f1", "support")]
            assert [np.nan if x is None else x for x in own] == pytest.approx(values, nan_ok=True)
            if answers.head is FLAGS:
                column = names.index(label)
                expected_ap = average_precision_score(true[:, column], answers.p[known, column])
                assert found[label]["average_precision"] == pytest.approx(expected_ap)
            else:
                assert "average_precision" not in found[label]
        f1 = [row["f1"] for row in analyse(answers, labels, TEXTS)["classes"] if row["f1"] is not None]
        assert f1 == sorted(f1)
    assert found.keys() == {*FLAGS.labels}


def test_the_confusion_matrix_and_its_largest_confusions(intents) -> None:
    answers, labels = intents
    found, known = analyse(answers, labels, TEXTS), labels >= 0
    expected = confusion_matrix(labels[known], answers.decisions[known], labels=range(5))
    assert found["confusion"] == {"labels": [*NAMES], "counts": expected.tolist()}
    first = found["confusions"][0]
    wrong = expected - np.diag(np.diag(expected))
    true, predicted = NAMES.index(first["label"]), NAMES.index(first["predicted"])
    assert first["texts"] == wrong.max() == wrong[true, predicted]
    assert first["share"] == pytest.approx(wrong.max() / expected[true].sum())
    assert sum(row["texts"] for row in found["confusions"]) == wrong.sum()
    assert [row["texts"] for row in found["confusions"]] == sorted(wrong[wrong > 0], reverse=True)


def test_of_many_labels_those_with_the_most_errors_are_shown() -> None:
    head = Head("many", "single_label", tuple(map(str, range(2000))))
    true = np.arange(2000).repeat(2)
    logits = np.zeros((4000, 2000), np.float32)
    logits[np.arange(4000), true] = 1
    for label in range(100, 140):  # each is wrong once, 139 three times
        logits[2 * label] = np.eye(2000)[139]
    found = analyse(Answers(head, logits), true, ["text"] * 4000)
    assert len(found["confusion"]["labels"]) == analysis.MATRIX and "139" in found["confusion"]["labels"]
    assert [*map(int, found["confusion"]["labels"])] == sorted(map(int, found["confusion"]["labels"]))
    assert len(found["confusions"]) == analysis.CONFUSIONS and len(found["classes"]) == 2000
    assert len(json.dumps(found)) < 500_000


def test_the_gaps_of_the_reliability_diagram_are_the_calibration_error(intents) -> None:
    answers, labels = intents
    bins = analyse(answers, labels, TEXTS)["reliability"]
    gap = sum(abs(row["confidence"] - row["accuracy"]) * row["texts"] for row in bins) / 360
    assert gap == pytest.approx(quality(INTENT, answers.logits, labels, temperature=1.5)["ece"])
    assert sum(row["texts"] for row in bins) == 360


def test_the_reliability_of_a_multi_label_head_is_over_texts_and_labels(flags) -> None:
    bins = analyse(*flags, TEXTS)["reliability"]
    assert sum(row["texts"] for row in bins) == 360 * 3
    known = flags[1][:, 0] >= 0
    low = (flags[0].p[known] < 1 / 15).ravel()
    assert bins[0]["accuracy"] == pytest.approx((flags[1][known].ravel()[low] == 1).mean())


def test_coverage_against_accuracy(intents) -> None:
    answers, labels = intents
    points, known = analyse(answers, labels, TEXTS)["coverage"], labels >= 0
    confidence, right = answers.p[known].max(-1), (answers.decisions == labels)[known]
    assert len(points) == analysis.POINTS and points[-1]["coverage"] == 1
    for point in points:
        above = confidence >= point["threshold"]
        assert point["coverage"] == pytest.approx(above.mean())
        assert point["accuracy"] == pytest.approx(right[above].mean())


def test_equally_confident_texts_are_one_point_of_coverage() -> None:
    logits, labels = np.tile([2.0, 0, 0, 0, 0], (30, 1)), np.arange(30) % 2
    points = analyse(Answers(INTENT, logits), labels, TEXTS[:30])["coverage"]
    assert [(p["coverage"], p["accuracy"]) for p in points] == [(1.0, 0.5)]


def test_the_confident_errors(intents, flags) -> None:
    answers, labels = intents
    found = analyse(answers, labels, TEXTS)["confident_errors"]
    wrong = np.flatnonzero((labels >= 0) & (answers.decisions != labels))
    worst = max(wrong, key=lambda i: answers.p[i].max())
    assert found[0] == {
        "text": TEXTS[worst],
        "label": NAMES[labels[worst]],
        "predicted": NAMES[answers.decisions[worst]],
        "probability": pytest.approx(answers.p[worst].max()),
    }
    assert len(found) == min(analysis.TEXTS, len(wrong))
    answers, labels = flags
    for row in analyse(answers, labels, TEXTS)["confident_errors"]:
        i = int(row["text"].split()[1])
        p = np.where(answers.decisions[i], answers.p[i], 1 - answers.p[i])
        assert row["probability"] == pytest.approx(p.prod()) and row["label"] != row["predicted"]


def test_the_disagreements_need_no_labels(intents, flags) -> None:
    for answers, labels in (intents, flags):
        head = answers.head
        teacher = Answers(head, answers.logits[::-1], 1.0, answers.thresholds)
        found = disagreements(answers, teacher, labels, TEXTS)
        differs = (answers.decisions != teacher.decisions).reshape(400, -1).any(-1)
        rows = max(np.flatnonzero(differs), key=lambda i: np.abs(answers.p[i] - teacher.p[i]).max())
        assert found[0]["text"] == TEXTS[rows] and len(found) == analysis.TEXTS
        assert all(row["teacher"] != row["student"] for row in found)
        unlabelled = {TEXTS[i] for i in range(0, 400, 10)}
        assert all((row["label"] is None) == (row["text"] in unlabelled) for row in found)
    assert disagreements(answers, answers, labels, TEXTS) == []


def test_a_head_without_labels_has_no_figures() -> None:
    for head, labels in (
        (INTENT, np.full(3, UNLABELLED)),
        (FLAGS, np.full((3, 3), UNKNOWN, np.int8)),
    ):
        found = analyse(Answers(head, np.zeros((3, len(head.labels)))), labels, ["a", "b", "c"])
        assert found["texts"] == 3 and found["labelled"] == 0
        assert found["reliability"] == found["confident_errors"] == []
        assert not found["coverage"] and not found["confusions"]
        assert all(row["f1"] is None and row["support"] == 0 for row in found["classes"])
        assert Answers(head, np.zeros((3, len(head.labels)))).interval(labels) is None
        json.dumps(found, allow_nan=False)


def test_logits_that_are_not_finite_are_no_error() -> None:
    for head, labels in ((INTENT, np.array([0, 1, 2])), (FLAGS, np.eye(3, dtype=np.int8))):
        logits = np.zeros((3, len(head.labels)))
        logits[0], logits[1, 0] = np.nan, np.inf
        found = analyse(Answers(head, logits), labels, ["a", "b", "c"])
        found["others"] = disagreements(
            Answers(head, logits), Answers(head, -logits), labels, ["a", "b", "c"]
        )
        json.dumps(found, allow_nan=False)


def test_counts_and_long_texts() -> None:
    assert label_counts(INTENT, np.array([0, 0, 3, UNLABELLED])) == {"a": 2, "b": 0, "c": 0, "d": 1, "e": 0}
    assert label_counts(FLAGS, np.array([[1, 0, 1], [UNKNOWN] * 3])) == {"x": 1, "y": 0, "z": 1}
    assert len(analysis.short("x" * 1000)) == 300 and analysis.short("x" * 300) == "x" * 300
