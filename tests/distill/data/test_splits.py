import json
from collections import Counter

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from distill.data.rows import LabelsOfText as Labels
from distill.data.rows import RowIssues, Text
from distill.data.splits import count_labels, make_heads, remove_leaks, stratified
from distill.heads import Head
from distill.recipe.data_section import HeadRecipe
from distill.recipe.load import parse_recipe


def corpus(sizes: dict[str, int]) -> tuple[list[str], list[Labels]]:
    names = [name for name, size in sizes.items() for _ in range(size)]
    return [f"text {i}" for i in range(len(names))], [((name,),) for name in names]


def classes(labels: list[Labels], rows: list[int]) -> Counter[str]:
    return Counter(labels[row][0][0] for row in rows if labels[row][0])


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.37, 0.5])
def test_each_class_is_within_one_of_its_share(fraction: float) -> None:
    sizes = {"a": 997, "b": 100, "c": 31, "d": 10, "e": 4}
    texts, labels = corpus(sizes)
    rows = stratified(texts, labels, fraction, 3)
    assert len(rows) == round(fraction * len(texts))
    for name, size in sizes.items():
        assert abs(classes(labels, rows)[name] - fraction * size) <= 1


def test_the_same_seed_and_file_give_the_same_rows() -> None:
    texts, labels = corpus({"a": 50, "b": 50})
    assert stratified(texts, labels, 0.2, 7) == stratified(texts, labels, 0.2, 7)
    assert stratified(texts, labels, 0.2, 7) != stratified(texts, labels, 0.2, 8)
    assert stratified(texts, labels, 0.2, "7 test") != stratified(texts, labels, 0.2, "7 validation")


def test_the_first_two_texts_of_each_label_of_each_head_stay() -> None:
    texts = [f"text {i}" for i in range(40)]
    labels: list[Labels] = [
        ((("even", "odd")[i % 2],), ("rare",) if i in (20, 30) else ()) for i in range(40)
    ]
    rows = stratified(texts, labels, 0.9, 0)
    assert not {0, 1, 2, 3, 20, 30} & {*rows}
    assert len(rows) == 34


def test_rows_with_the_same_text_go_together() -> None:
    texts = [f"text {i % 30}" for i in range(90)]
    labels: list[Labels] = [((("a", "b", "c")[i % 3],),) for i in range(90)]
    rows = stratified(texts, labels, 0.2, 1)
    sample = {texts[row] for row in rows}
    assert len(sample) == 6 and rows == [i for i in range(90) if texts[i] in sample]


def test_unlabelled_rows_and_further_heads_are_stratified_too() -> None:
    texts = [f"text {i}" for i in range(200)]
    labels: list[Labels] = [
        (None if i % 4 == 0 else ("a",), ("x",) if i % 8 < 4 else ("y",)) for i in range(200)
    ]
    rows = stratified(texts, labels, 0.2, 0)
    assert sum(labels[row][0] is None for row in rows) == pytest.approx(10, abs=1)
    assert sum(labels[row][1] == ("x",) for row in rows) == pytest.approx(20, abs=3)


def test_fraction_of_a_larger_whole_and_of_nothing() -> None:
    texts, labels = corpus({"a": 40, "b": 40})
    assert len(stratified(texts, labels, 0.1, 0, of=100)) == 10
    assert stratified([], [], 0.1, 0) == []
    assert stratified(texts[:1], labels[:1], 0.1, 0) == []
    assert stratified(texts[:2], labels[:2], 0.9, 0) == []  # both are kept back


def test_a_text_of_two_splits_stays_in_test_then_validation() -> None:
    def text(word: str, file: str) -> Text:
        return Text(word, (("a",),), file, 1)

    splits = {
        "train": [text(w, "train") for w in ("a", "b", "b", "c", "d")],
        "validation": [text(w, "validation") for w in ("b", "c", "e", "e")],
        "test": [text(w, "test") for w in ("c", "f", "f")],
    }
    leaked = RowIssues()
    remove_leaks(splits, leaked)
    assert {s: [t.text for t in items] for s, items in splits.items()} == {
        "train": ["a", "d"],
        "validation": ["b", "e", "e"],
        "test": ["c", "f", "f"],
    }
    assert leaked.counts() == {
        "text of validation in test": 1,
        "text of train in test": 1,
        "text of train in validation": 2,
    }


def test_the_first_ten_rows_of_a_kind_are_listed_with_short_excerpts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    issues = RowIssues()
    for i in range(12):
        issues.add("empty text", "a.csv", i, "x" * 200)
    issues.add("other", "b.csv", "row 3", "half \ud800")
    entry = issues.kinds["empty text"]
    assert entry["count"] == 12 and [f["line"] for f in entry["first"]] == list(range(10))
    assert len(entry["first"][0]["excerpt"]) == 80
    caplog.set_level("INFO", "tinyheads")
    issues.log("dropped")
    lines = caplog.messages
    assert len(lines) == 2 and lines[0].startswith("data: dropped 12 rows: empty text; first a.csv:0: ")
    assert lines[1] == "data: dropped 1 row: other; first b.csv:row 3: 'half ?'"


Rows = list[tuple[str, ...] | None]


def errors_of(train: Rows, test: Rows, **head: object) -> list[str]:
    return made(train, test, **head)[1]


def made(train: Rows, test: Rows, **head: object) -> tuple[tuple[Head, ...], list[str]]:
    recipe = parse_recipe({"name": "r", "data": {"train": "t"}, "heads": {"h": {"column": "c", **head}}})
    assert isinstance(recipe.heads["h"], HeadRecipe)
    splits = {
        name: [Text(f"{name} {i}", (labels,), f"{name}.csv", i + 2) for i, labels in enumerate(rows)]
        for name, rows in {"train": train, "validation": test, "test": test}.items()
    }
    return make_heads(recipe, splits, count_labels(recipe, splits))


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    rows = [("a",)] * 6 + [("b",)] * 3 + [("c",)] * 2 + [None]
    labels = [row[0] for row in rows if row]
    weights = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    ((head,), _) = made(rows, [("a",)], class_weight="balanced")
    assert head.class_weights == pytest.approx(tuple(weights))
    assert Head.from_json(json.loads(json.dumps(head.to_json()))) == head
    ((head,), _) = made(rows, [("a",)], class_weight={"b": 2})
    assert head.class_weights == (1, 2, 1)
    ((head,), _) = made(rows, [("a",)])
    assert head.class_weights is None and "class_weights" not in head.to_json()


def test_balanced_weights_of_a_multi_label_head_are_negatives_over_positives() -> None:
    rows = [("a",)] * 6 + [("a", "b")] * 2 + [()] * 392 + [None] * 9
    settings = {"kind": "multi_label", "class_weight": "balanced", "labels": ["a", "b", "never"]}
    ((head,), _) = made(rows, [("a",)], **settings)
    assert head.class_weights == pytest.approx((392 / 8, 100, 1)), "at most 100, and 1 of no text"


def test_labels_that_a_setting_names_must_exist() -> None:
    a, b = ("a",), ("bank",)
    for settings in (
        {"class_weight": {"banc": 2}},
        {"thresholds": {"precision": {"banc": 0.9}}, "kind": "multi_label"},
    ):
        (line,) = errors_of([a, a, b, b], [a], **settings)
        where = ".precision" if "kind" in settings else ""
        key = f"{next(iter(settings))}{where}"
        assert line == f"head 'h': {key}: no text of train has label 'banc' (did you mean 'bank'?)"


def test_label_errors() -> None:
    a, b, c = ("a",), ("b",), ("c",)
    assert errors_of([a, a, b, b, None], [a, None]) == []
    assert "h': one class in train, 'a'" in errors_of([a, a], [a])[0]
    assert "labels with fewer than 2 texts in train: 'b' (1) (add" in errors_of([a, a, b], [a])[0]
    assert "data.test: no text is labelled for any head" in "".join(errors_of([a, a, b, b], [None]))
    assert "head 'h': no text of train is labelled" in "".join(errors_of([None], [a]))
    assert len(errors_of([a, a, ("b" * 9_000,)], [a])[0]) < 300
    only = errors_of([a, a, b, b], [c])
    assert len(only) == 2 and only[1].startswith("test.csv:2: head 'h': labels of test that")
    assert "'c' (0)" in errors_of([a, a, b, b], [a], labels=["a", "b", "c"])[0]
    assert "listed twice" in errors_of([a, a, b, b], [a], labels=["a", "b", "a"])[0]
    assert "data.test: no rows are left" in "".join(errors_of([a, a, b, b], []))


def test_label_errors_of_multi_label_heads() -> None:
    a, ab, none = ("a",), ("a", "b"), ()
    multi = {"kind": "multi_label"}
    assert errors_of([a, ab, ab, none], [a], **multi) == []
    assert "'b' (1)" in errors_of([a, ab], [a], **multi)[0]
    assert "its one label always applies" in errors_of([a, a], [a], **multi)[0]
    assert "its one label never applies" in errors_of([none, none], [none], labels=["a"], **multi)[0]
    assert errors_of([a, a, none], [a], **multi) == []
    assert errors_of([a, a], [a], labels=["b", "a"], **multi) == []  # never and always, of two
