"""What a student reads of the transfer set: the surest texts, classes in balance, training texts always."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.heads import Head
from distill.recipe.data_section import Augment
from distill.stages.selection import FILE, balanced, confidence, kept_rows, select, surest

HEADS = (
    Head("flags", "multi_label", ("x", "y")),
    Head("intent", "single_label", ("a", "b", "c")),
    Head("mood", "single_label", ("m", "n")),
)


def logits(count: int = 200, seed: int = 0) -> Any:
    """As soft labels are: float16, and of like ones some."""
    drawn = np.random.default_rng(seed).normal(0, 3, (count, 7)).astype(np.float16)
    drawn[50:60] = drawn[20:30]
    return drawn


def sure(row: Any) -> float:
    """The confidence of one text, by the plain formulas."""
    z = [float(value) for value in row]
    flags = [1 / (1 + math.exp(-value)) for value in z[:2]]
    heads = [sum(max(p, 1 - p) for p in flags) / 2]
    for part in (z[2:5], z[5:7]):
        heads.append(max(math.exp(value) for value in part) / sum(math.exp(value) for value in part))
    return sum(heads) / 3


def test_confidence_is_the_mean_over_heads() -> None:
    found = confidence(HEADS, logits())
    assert found.shape == (200,) and found.dtype == np.float64
    assert found == pytest.approx([sure(row) for row in logits()])


def test_confidence_of_the_certain_and_the_undecided() -> None:
    rows = np.array([[0, 0, 0, 0, 0, 0, 0], [60000, -60000, 60000, 0, 0, -60000, 0]], np.float16)
    assert confidence(HEADS, rows).tolist() == pytest.approx([(1 / 2 + 1 / 3 + 1 / 2) / 3, 1])


@pytest.mark.parametrize(("keep", "count"), [(1.0, 10), (0.7, 7), (0.29, 3), (0.01, 1), (0.5, 5)])
def test_the_surest_are_kept_and_of_like_ones_the_first(keep: float, count: int) -> None:
    some = np.array([0.5, 0.9, 0.5, 0.7, 0.9, 0.1, 0.2, 0.5, 0.3, 0.4])
    expected = sorted(range(10), key=lambda row: (-some[row], row))[:count]
    assert surest(some, keep).tolist() == expected


def classes_of(sizes: list[int]) -> Any:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize(
    ("sizes", "keep", "left"),
    [
        ([100, 10, 8], 1.0, [20, 10, 8]),
        ([100, 10, 8], 0.5, [10, 5, 4]),
        ([100, 10], 1.0, [20, 10]),  # of two the lower is the median
        ([100, 0, 10, 30], 1.0, [60, 0, 10, 30]),  # a class without texts is no class
        ([1, 1, 1, 9], 0.1, [1, 1, 1, 1]),
        ([5], 1.0, [5]),
        ([], 1.0, []),
    ],
)
def test_no_class_is_over_twice_the_median(sizes: list[int], keep: float, left: list[int]) -> None:
    classes = classes_of(sizes)
    some = np.random.default_rng(2).random(len(classes))
    rows, cut = balanced(some, classes, keep)
    counts = Counter(classes[rows].tolist())
    assert [counts[number] for number in range(len(sizes))] == left
    assert cut == sum(math.ceil(round(keep * size, 6)) for size in sizes) - sum(left)
    for number in range(len(sizes)):  # and of each class the surest are left
        here = np.flatnonzero(classes == number)
        best = sorted(here.tolist(), key=lambda row: -some[row])[: left[number]]
        assert set(rows[classes[rows] == number].tolist()) == set(best)


def chunked(rows: Any, size: int = 37) -> Any:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def test_training_texts_stay_and_the_least_sure_of_the_others_go(tmp_path: Path) -> None:
    figures = select(tmp_path, Augment(keep=0.25), HEADS, chunked(logits()), 40)
    assert figures == {"dropped_unsure": 120, "dropped_balanced": 0}
    found = [sure(row) for row in logits()]
    others = sorted(range(40, 200), key=lambda row: (-round(found[row], 9), row))[:40]
    rows = kept_rows(tmp_path)
    assert rows is not None and rows.dtype == np.int64
    assert rows.tolist() == [*range(40), *sorted(others)]


def test_classes_are_those_of_the_first_single_label_head(tmp_path: Path) -> None:
    some = logits(400)
    some[:, 2] += 4  # `a` is what the teacher mostly chooses
    figures = select(tmp_path, Augment(keep=0.5, balance=True), HEADS, chunked(some), 100)
    rows = kept_rows(tmp_path)
    assert rows is not None and rows[:100].tolist() == list(range(100)) and (np.diff(rows) > 0).all()
    before, after = (np.bincount(some[r, 2:5].argmax(-1)) for r in (slice(100, None), rows[100:]))
    halves = [math.ceil(count / 2) for count in before]
    most = 2 * sorted(halves)[1]
    assert after.tolist() == [min(half, most) for half in halves] and halves[0] > most
    assert figures == {"dropped_unsure": 300 - sum(halves), "dropped_balanced": halves[0] - most}


def test_nothing_is_read_or_written_by_default(tmp_path: Path) -> None:
    def unread() -> Any:
        raise AssertionError("the logits were read")
        yield

    figures = select(tmp_path, Augment(), HEADS, unread(), 40)
    assert figures == {"dropped_unsure": 0, "dropped_balanced": 0}
    assert not (tmp_path / FILE).exists() and kept_rows(tmp_path) is None


@pytest.mark.parametrize("balance", [False, True])
def test_training_texts_alone_all_stay(tmp_path: Path, balance: bool) -> None:
    figures = select(tmp_path, Augment(keep=0.1, balance=balance), HEADS, chunked(logits()), 200)
    assert figures == {"dropped_unsure": 0, "dropped_balanced": 0}
    rows = kept_rows(tmp_path)
    assert rows is not None and rows.tolist() == list(range(200))


def test_heads_without_classes_are_kept_by_confidence(tmp_path: Path) -> None:
    select(tmp_path, Augment(keep=0.5), HEADS[:1], chunked(logits()[:, :2]), 0)
    rows = kept_rows(tmp_path)
    assert rows is not None and len(rows) == 100
