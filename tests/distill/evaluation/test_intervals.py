import time

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from distill.evaluation.intervals import bootstrap_f1, interval, wilson
from distill.heads import UNKNOWN, UNLABELLED, Head

INTENT = Head("intent", "single_label", ("a", "b"))
FLAGS = Head("flags", "multi_label", ("x", "y", "z"))


@pytest.mark.parametrize("hits, texts", [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (812, 1000)])
def test_accuracy_has_the_interval_of_wilson(hits: int, texts: int) -> None:
    expected = binomtest(hits, texts).proportion_ci(method="wilson")
    low, high = wilson(hits, texts)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert 0 <= low <= hits / texts <= high <= 1


def test_unlabelled_texts_do_not_count() -> None:
    logits, labels = np.eye(2)[[0, 1, 0, 0]], np.array([0, 1, 1, UNLABELLED])
    assert interval(INTENT, logits, labels) == wilson(2, 3)
    assert interval(INTENT, logits, np.full(4, UNLABELLED)) is None
    assert interval(FLAGS, np.zeros((2, 3)), np.full((2, 3), UNKNOWN)) is None


def test_f1_has_the_interval_of_a_bootstrap_over_texts() -> None:
    draw = np.random.default_rng(3)
    labels = (draw.random((300, 3)) < 0.3).astype(np.int8)
    logits = np.where(draw.random((300, 3)) < 0.8, labels, 1 - labels) * 4.0 - 2.0
    low, high = interval(FLAGS, logits, labels, thresholds=(0.5, 0.4, 0.6)) or (0, 0)
    naive = []
    for _ in range(1000):
        rows = draw.integers(0, 300, 300)
        naive.append(f1_score(labels[rows], logits[rows] > 0, average="micro"))
    assert (low, high) == pytest.approx(tuple(np.percentile(naive, [2.5, 97.5])), abs=0.01)
    assert low < f1_score(labels, logits > 0, average="micro") < high
    assert interval(FLAGS, logits, labels, thresholds=(0.5, 0.4, 0.6)) == (low, high)  # the same again


def test_f1_without_a_label_has_an_interval() -> None:
    none = np.zeros(5, int)
    assert bootstrap_f1(none, none) == (0, 0)
    assert bootstrap_f1(none + 1, none) == (1, 1)


def test_many_labels_of_many_texts_take_no_time() -> None:
    draw = np.random.default_rng(0)
    labels = (draw.random((5000, 150)) < 0.02).astype(np.int8)
    head = Head("many", "multi_label", tuple(map(str, range(150))))
    logits = draw.normal(labels * 4.0 - 2.0)
    start = time.process_time()
    interval(head, logits, labels)
    assert time.process_time() - start < 1
