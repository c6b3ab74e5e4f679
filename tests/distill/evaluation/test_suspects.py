import csv
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from distill.evaluation import suspects as module
from distill.evaluation.analysis import Answers
from distill.evaluation.suspects import COLUMNS, Suspect, ranked, suspects, write_review
from distill.heads import UNKNOWN, UNLABELLED, Head

INTENT = Head("intent", "single_label", ("a", "b", "c"))
FLAGS = Head("flags", "multi_label", ("x", "y"))
TEXTS = ["zero", "one", "two", "three", "four"]


MANY = {(split, head): 10_000 for split in ("train", "validation", "test") for head in ("intent", "flags")}


def test_the_surest_of_another_label_is_first() -> None:
    logits = np.array([[4.0, 0, 0], [0, 6, 0], [0, 0, 5], [0, 3, 0], [9, 0, 0]])
    found = suspects("train", Answers(INTENT, logits), np.array([0, 0, 2, 0, UNLABELLED]), TEXTS)
    assert [(row.row, row.text, row.label, row.suggested) for row in found] == [
        (2, "one", "a", "b"),
        (4, "three", "a", "b"),
    ]
    assert found[0].probability > found[0].label_probability and found[0].score > found[1].score
    assert found[0].to_json() == {
        "split": "train",
        "row": 2,
        "text": "one",
        "label": "a",
        "suggested": "b",
        "probability": found[0].probability,
    }


def test_the_labels_of_a_multi_label_head() -> None:
    logits = np.array([[4.0, -4], [-4, -4], [4, 4], [-4, 1]])
    labels = np.array([[1, 0], [1, 0], [0, 0], [UNKNOWN] * 2], np.int8)
    found = suspects("test", Answers(FLAGS, logits), labels, TEXTS)
    assert [(row.row, row.label, row.suggested) for row in found] == [(3, "none", "x, y"), (2, "x", "none")]


def test_the_confidence_while_learning_counts_for_what_is_memorised() -> None:
    """Of two labels that the teacher has memorised, the one that it learnt last is suspect."""
    logits = np.array([[9.0, 1, 0], [9, 1, 0], [0, 9, 0], [0, 9, 0]])
    labels, confidence = np.array([0, 0, 0, 0]), np.array([0.2, 0.9, 0.4, np.nan], np.float32)
    assert [row.row for row in suspects("train", Answers(INTENT, logits), labels, TEXTS)] == [3, 4]
    found = suspects("train", Answers(INTENT, logits), labels, TEXTS, confidence)
    assert [(row.row, row.label, row.suggested) for row in found] == [(n, "a", "b") for n in (4, 1, 3)]
    assert [row.label_probability for row in found[1:]] == pytest.approx([0.2, 0.4])
    share = np.exp(1) / (np.exp(1) + 1)  # of b in what is not a
    assert found[1].probability == pytest.approx(0.8 * share)
    flags = np.array([[1, 0], [1, 0]], np.int8)
    logits, confidence = np.array([[9.0, -2], [9, -2]]), np.array([0.1, 0.9])
    (only,) = suspects("train", Answers(FLAGS, logits), flags, TEXTS, confidence)
    assert (only.row, only.label, only.suggested) == (1, "x", "x, y")  # y is the least sure


def test_training_labels_are_reviewed_first() -> None:
    rows = [row("a", probability=0.99), row("b", probability=0.6), row("c", probability=0.7)]
    rows[0] = replace(rows[0], split="test")
    assert [one.text for one in ranked(rows, MANY)] == ["c", "b", "a"]


def test_a_head_has_so_many_rows_and_no_more(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    logits = np.eye(3)[[1] * 5] * np.arange(1, 6)[:, None]
    found = suspects("train", Answers(INTENT, logits), np.zeros(5, int), TEXTS)
    assert [row.text for row in found] == ["four", "three", "two"]
    one = np.zeros(1, int)
    by_chunk = [
        suspects("train", Answers(INTENT, logits[[i]]), one, TEXTS[i:], first=i + 1) for i in range(5)
    ]
    assert ranked(chain(*by_chunk), MANY) == found
    # a tenth of the labelled texts of all chunks
    assert ranked(chain(*by_chunk), {("train", "intent"): 11}) == found[:2]


def row(text: str, label: str = "a", probability: float = 0.9) -> Suspect:
    return Suspect("train", 1, "intent", text, label, "b", probability, 0.05)


def test_the_review_file(tmp_path) -> None:
    texts = [
        "plain",
        'with "quotes", commas\nand lines',
        "späte 😀",
        "-1",
        "=1+1",
        "  @SUM(A1)",
        "+1",
        "\t=1",
        "a=1",
    ]
    rows = [row(text, probability=0.9 - i / 100) for i, text in enumerate(texts)]
    write_review(tmp_path / "a.csv", ranked([*reversed(rows), row("low", "=x", 0.2)], MANY))
    content = (tmp_path / "a.csv").read_bytes()
    assert content.startswith(",".join(COLUMNS).encode()) and content == content.decode().encode()
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        found = [*csv.DictReader(file)]
    assert [line["text"].removeprefix("'") for line in found] == [*texts, "low"]
    assert [line["text"].startswith("'") for line in found] == [False] * 3 + [True] * 5 + [False] * 2
    assert found[-1]["label"] == "'=x" and found[-1]["probability"] == "0.2000"
    assert found[0]["row"] == "1" and ranked(rows, MANY)[0].text == "plain"
