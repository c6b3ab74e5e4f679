from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from teachers.imported import ImportedError, ImportedHead, ImportedTeacher

INTENT = ImportedHead("intent", ("track", "refund", "thank"), single_label=True)
FLAGS = ImportedHead("flags", ("urgent", "polite"), single_label=False)


def key(word: str) -> str:
    return " ".join(word.split())


def teacher(*cells: Any, head: str = "intent", values: Any = None, texts: Any = None) -> ImportedTeacher:
    texts = texts or [f"text {number}" for number in range(len(cells))]
    rows = [
        (f"soft.jsonl:{n}", text, {head: cell})
        for n, (text, cell) in enumerate(zip(texts, cells, strict=True), 1)
    ]
    return ImportedTeacher("soft.jsonl", rows, [INTENT, FLAGS], values, key)


def softmax(logits: Any) -> Any:
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "cell",
    [
        {"track": 0.7, "refund": 0.2, "thank": 0.1},
        {"thank": 0.1, "refund": 0.2, "track": 0.7},
        {"Track": 0.7, "REFUND": 0.2, " thank ": 0.1},
        [0.7, 0.2, 0.1],
        [
            {"label": "refund", "score": 0.2},
            {"label": "track", "score": 0.7},
            {"label": "thank", "score": 0.1},
        ],
        [("track", 0.7), ("refund", 0.2), ("thank", 0.1)],
        {"track": 0.35, "refund": 0.1, "thank": 0.05},  # the rest went to other answers
    ],
)
def test_probabilities_become_logits_in_the_order_of_the_head(cell: Any) -> None:
    found = teacher(cell)
    assert found.values == {"intent": "probabilities"} and found.labels == {"intent": INTENT.labels}
    np.testing.assert_allclose(softmax(found.logits(["text 0"])["intent"]), [[0.7, 0.2, 0.1]], atol=1e-5)


def test_labels_left_out_have_probability_zero() -> None:
    logits = teacher({"track": 1.0}, {"track": 1.0, "refund": None, "thank": None}).logits(
        ["text 0", "text 1"]
    )
    np.testing.assert_allclose(softmax(logits["intent"]), [[1, 0, 0]] * 2, atol=1e-5)
    assert np.isfinite(logits["intent"]).all()
    flags = teacher({"urgent": 0.9}, head="flags").logits(["text 0"])["flags"]
    np.testing.assert_allclose(1 / (1 + np.exp(-flags)), [[0.9, 0]], atol=1e-5)


def test_logits_are_found_by_their_values_or_stated() -> None:
    cells = [{"track": 2.5, "refund": -1.0, "thank": 0.25}, [0.5, 0.25, 0.25], [9.0, 0.5, 0.25]]
    found = teacher(*cells)
    assert found.values == {"intent": "logits"}
    np.testing.assert_allclose(found.logits(["text 0", "text 1"])["intent"], [[2.5, -1.0, 0.25], cells[1]])
    assert teacher(cells[1], values="logits").logits(["text 0"])["intent"].tolist() == [cells[1]]
    assert teacher([3.0, -2.0], head="flags").logits(["text 0"])["flags"].tolist() == [[3.0, -2.0]]


def test_texts_and_heads_without_a_row_are_unknown() -> None:
    rows = [
        ("a:1", "one", {"intent": [1, 0, 0], "flags": None}),
        ("a:2", "two", {"intent": None, "flags": [0, 1]}),
        ("a:3", "three", {"intent": None, "flags": None}),
    ]
    found = ImportedTeacher("soft.jsonl", rows, [INTENT, FLAGS], None, key)
    logits = found.logits(["two", "zero", "three", "one"])
    assert np.isnan(logits["intent"]).all(-1).tolist() == [True, True, True, False]
    assert np.isnan(logits["flags"]).all(-1).tolist() == [False, True, True, True]
    assert found.known == {"intent": 1, "flags": 1}
    assert set(ImportedTeacher("soft.jsonl", rows[:1], [INTENT, FLAGS], None, key).labels) == {"intent"}
    assert ImportedTeacher("soft.jsonl", [], [INTENT], None, key).logits(["one"]) == {}


def test_a_text_that_occurs_twice_has_the_mean() -> None:
    found = teacher([1, 0, 0], [0, 1, 0], [0.2, 0.2, 0.6], texts=["a", "a", "b"])
    np.testing.assert_allclose(softmax(found.logits(["a"])["intent"]), [[0.5, 0.5, 0]], atol=1e-5)


def test_the_digest_is_of_texts_labels_and_values() -> None:
    first = teacher([0.5, 0.25, 0.25])
    assert first.digest == teacher({"track": 0.5, "refund": 0.25, "thank": 0.25}).digest
    others = [
        teacher([0.5, 0.3, 0.2]),
        teacher([0.5, 0.25, 0.25], texts=["b"]),
        teacher([0.5, 0.25, 0.25], values="logits"),
    ]
    assert len({first.digest, *(one.digest for one in others)}) == 4


@pytest.mark.parametrize(
    "cell, message",
    [
        (
            {"trakc": 1.0},
            "unknown label 'trakc' (did you mean 'track'?), expected the 3 labels of head 'intent'",
        ),
        ([0.5, 0.5], "2 values, expected one for each of the 3 labels of head 'intent' in order"),
        ("track", "'track' is no soft label, expected an object {label: value}, or a list"),
        (0.5, "0.5 is no soft label"),
        ({"track": "0.5"}, "'0.5', expected a finite number"),
        ({"track": True}, "True, expected a finite number"),
        ({"track": float("nan")}, "nan, expected a finite number"),
        ([None, 0.5, 0.5], "None, expected a finite number"),
        ({}, "has no label, expected at least one"),
        ({"track": None}, "has no label, expected at least one"),
        ({"track": 0.5, "Track": 0.5}, "has label 'Track' twice, expected it once"),
        ([0.1, 0.1, 0.1], "{'track': 0.1, 'refund': 0.1, 'thank': 0.1}: its probabilities do not sum to 1"),
        ([0.9, 0.9, 0.9], "its probabilities do not sum to 1"),
        ([1.2, 0.0, 0.0], "has values beyond 0 and 1, expected probabilities"),
        ([[0.1], 0.5, 0.4], "[0.1], expected a finite number"),
    ],
)
def test_a_cell_that_is_no_soft_label_is_refused_with_its_place(cell: Any, message: str) -> None:
    good = [0.4, 0.3, 0.3]
    with pytest.raises(ImportedError) as error:
        teacher(good, cell, good)
    assert str(error.value).startswith("soft.jsonl:2: intent: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_logits_must_be_complete() -> None:
    with pytest.raises(
        ImportedError, match=r"soft.jsonl:2: .+: lacks labels, expected a logit of every label"
    ):
        teacher([4.0, -2.0, 1.0], {"track": 3.0, "refund": -1.0})


def test_every_row_of_another_form_is_counted() -> None:
    good = [0.4, 0.3, 0.3]
    with pytest.raises(ImportedError, match=r"soft.jsonl:4: .+; 2 such rows"):
        teacher(good, good, good, [2.0, 0, 0], [3.0, 0, 0])
