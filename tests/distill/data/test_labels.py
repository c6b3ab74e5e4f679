"""Labels: cells that look the same, or are the same number, are one label."""

import json
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.dataset import load_heads, load_split
from distill.data.labels import are_whole_numbers, label_key
from distill.data.prepare import prepare
from distill.data.sources import DataError
from distill.recipe.load import load_yaml, parse_recipe
from export.bundle.manifest import Head as ManifestHead

SPLITS = ("train", "validation", "test")
CAFE, THE = "caf\u00e9", "th\u00e9"
NFD = {word: unicodedata.normalize("NFD", word) for word in (CAFE, THE)}
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one sign, of three and two joiners
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # spelled with a non-joiner


def prepared(
    folder: Path, cells: list[Any], kind: str = "single_label", max_bad_rows: float = 0.01, **head: Any
) -> tuple[Any, Any, Any]:
    """The labels, the first rows of train and the report, for cells that are in every split, each twice."""
    for split in SPLITS:
        rows = [{"text": f"{split} {i}", "label": cell} for i, cell in enumerate(cells * 2)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = {"root": str(folder), **{split: f"{split}.jsonl" for split in SPLITS}}
    data["max_bad_rows"] = max_bad_rows
    heads = {"label": {"column": "label", "kind": kind, **head}}
    out = folder / "out"
    out.mkdir()
    prepare(parse_recipe({"name": "x", "data": data, "heads": heads}), out, folder / "report.json")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    rows = load_split(out, "train")["head_label"][: len(cells)]
    return load_heads(out)[0].labels, rows, report


@pytest.mark.parametrize(
    ("cells", "labels", "rows"),
    [
        ([CAFE, NFD[CAFE], THE, NFD[THE]], (CAFE, THE), [0, 0, 1, 1]),
        ([NFD[CAFE], NFD[THE]], (CAFE, THE), [0, 1]),
        (["ham", "ham ", "\u200bham", "h\u200bam", "spam"], ("ham", "spam"), [0, 0, 0, 0, 1]),
        (["ham", "ham\ufeff", "\xa0ham", "ha\xadm", "spam"], ("ham", "spam"), [0, 0, 0, 0, 1]),
        (["new york", "new\xa0york", "new  york", "oslo"], ("new york", "oslo"), [0, 0, 0, 1]),
        ([1, 1.0, "1", "1.0", True, "1,0", 0, False], ("0", "1"), [1] * 6 + [0, 0]),
        (["1.0", "0.0"], ("0", "1"), [1, 0]),
        ([10, 9, 2, -1], ("-1", "2", "9", "10"), [3, 2, 1, 0]),
        ([True, "true", "TRUE", False, "False"], ("False", "True"), [1, 1, 1, 0, 0]),
        (["true", "mixed", "false"], ("false", "mixed", "true"), [2, 1, 0]),
        (["true", "mixed", "1", 0, False], ("0", "1", "mixed"), [1, 2, 1, 0, 0]),
        (["1.0", "1.5", "2.0", "1.0"], ("1.0", "1.5", "2.0"), [0, 1, 2, 0]),
        (["007", "7", "1"], ("007", "1", "7"), [0, 2, 1]),
        ([FAMILY, PERSIAN], tuple(sorted([FAMILY, PERSIAN])), [1, 0]),
        ([PERSIAN, PERSIAN.replace("\u200c", ""), PERSIAN, "x"], ("x", PERSIAN), [1, 1, 1, 0]),
        (["Spam", "spam"], ("Spam", "spam"), [0, 1]),
    ],
)  # fmt: skip
def test_cells_that_are_one_label(tmp_path: Path, cells: list[Any], labels: Any, rows: Any) -> None:
    assert prepared(tmp_path, cells)[:2] == (labels, rows)


def test_other_spellings_are_said_once(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "tinyheads")
    report = prepared(tmp_path, [CAFE, CAFE, NFD[CAFE], THE, "the\u0301 ", " plain "])[2]
    # the files are read in the order test, validation, train
    assert report["spellings"]["label"] == [
        {"label": CAFE, "spelling": "cafe\\u0301", "cells": 6, "file": "test.jsonl", "line": 3},
        {"label": THE, "spelling": "the\\u0301 ", "cells": 6, "file": "test.jsonl", "line": 5},
    ]
    [line] = [line for line in caplog.messages if "spelling" in line]
    assert line == (
        "data: head 'label': 12 cells have another spelling of a label: "
        f"'cafe\\u0301' is {CAFE!r} (6, first test.jsonl:3), 'the\\u0301 ' is {THE!r} (6, first test.jsonl:5)"
    )


def test_many_other_spellings_are_one_line(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "tinyheads")
    cells = [f"{start}{number}\u200b" for number in range(50) for start in "ab"]
    report = prepared(tmp_path, cells + [cell.replace("\u200b", "") for cell in cells])[2]
    assert len(report["spellings"]["label"]) == 100
    [line] = [line for line in caplog.messages if "spelling" in line]
    assert line.endswith(", 97 more") and len(line) < 400


def test_labels_of_several_a_cell(tmp_path: Path) -> None:
    cells = [f"{CAFE}|{NFD[CAFE]}", [NFD[THE], THE], ["h\u200bam", 1, 1.0, True], "none\u200b", "1 | ham"]
    labels, rows, _ = prepared(tmp_path, cells, "multi_label", none="none")
    assert labels == ("1", CAFE, "ham", THE)
    assert rows == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]


@pytest.mark.parametrize("separator", ["\n", "\t", "  ", ", "])
def test_a_separator_of_white_space(tmp_path: Path, separator: str) -> None:
    cells = [f"a{separator}b", "b", f"{separator}a{separator}"]
    assert prepared(tmp_path, cells, "multi_label", separator=separator)[1] == [[1, 1], [0, 1], [1, 0]]


def test_labels_are_one_line_without_control_characters(tmp_path: Path) -> None:
    """A manifest refuses others, which no run may find out after its training."""
    labels, rows, _ = prepared(tmp_path, ["a\nb", "a b", "\x07c", "d\x85\x1fe", "\x01", "f\u2028g"])
    assert labels == ("a b", "c", "d e", "f g")
    assert rows == [0, 0, 1, 2, -100, 3]
    columns = ["Toxic\n(yes/no)", "Insult\x00"]
    for split in SPLITS:
        lines = [{"text": f"{split} {i}", columns[0]: i % 2, columns[1]: "true"} for i in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    data = {"root": str(tmp_path), **{split: f"{split}.jsonl" for split in SPLITS}}
    recipe = {"name": "x", "data": data, "heads": {"flags": {"columns": columns}}}
    (tmp_path / "flags").mkdir()
    prepare(parse_recipe(recipe), tmp_path / "flags", tmp_path / "report.json")
    assert load_heads(tmp_path / "flags")[0].labels == ("Toxic (yes/no)", "Insult")
    assert load_split(tmp_path / "flags", "train")["head_flags"][:2] == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("listed", "cells", "labels"),
    [
        ("[0, 1]", ["1.0", 0, True, "0"], ("0", "1")),
        ("[false, true]", ["1.0", 0, True, "FALSE"], ("False", "True")),
        ("[2.0, 1]", [1, "2.0"], ("2", "1")),
        ("[b, a]", ["a ", "b\u200b"], ("b", "a")),
        (f"['{NFD[THE]}', '{CAFE}']", [THE, NFD[CAFE]], (THE, CAFE)),
    ],
)
def test_labels_of_the_recipe_mean_the_same(tmp_path: Path, listed: str, cells: Any, labels: Any) -> None:
    found, rows, report = prepared(tmp_path, cells, labels=load_yaml(listed))
    assert found == labels and report["dropped"] == {}
    assert {*rows} == {0, 1}


def test_a_label_that_the_recipe_lists_twice(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="label '1' is listed twice"):
        prepared(tmp_path, ["1", "0"], labels=["1", 1.0, "0"])


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("{columns: [2020, 2021]}", {"columns": ("2020", "2021")}),
        ("{column: 7, kind: multi_label, none: 0}", {"column": "7", "none": "0"}),
    ],
)
def test_other_names_may_be_numbers_in_yaml(head: str, names: dict[str, Any]) -> None:
    recipe = {"name": "x", "data": {"train": "a.csv"}, "heads": {"h": load_yaml(head)}}
    found = parse_recipe(recipe).heads["h"]
    assert {name: getattr(found, name) for name in names} == names


def test_whole_numbers() -> None:
    assert are_whole_numbers(["0", "-1", "10"]) and are_whole_numbers([])
    for word in ("007", "1.0", "+1", "-0", "", "1e3", "\u0661", "1" * 16):
        assert not are_whole_numbers([word])


@given(st.text())
def test_the_key_of_a_label(word: str) -> None:
    key = label_key(word)
    assert label_key(key) == key
    assert label_key(unicodedata.normalize("NFD", word)) == key
    assert label_key(f" \u200b{word}\ufeff\n") == key


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from(["1.0", "true", "01", "-0", "1,0", "h\u200bam", "ham", "\x00", "a\nb", "nan", "[]"]),
    st.text(max_size=4),
    st.lists(st.one_of(st.text(max_size=2), st.integers(0, 3), st.booleans()), max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(cells=st.lists(CELLS, min_size=2, max_size=8), kind=st.sampled_from(["single_label", "multi_label"]))
def test_the_labels_of_any_cells_are_those_of_a_manifest(cells: list[Any], kind: str) -> None:
    """A manifest takes them, and the same cells with these labels listed give the same rows."""
    try:
        with TemporaryDirectory() as folder:
            labels, rows, _ = prepared(Path(folder), cells, kind, max_bad_rows=1)
    except DataError:
        return
    numbers = are_whole_numbers(labels)
    about = {"name": "x", "kind": kind, "labels": [*labels], "output": "logits"}
    head = ManifestHead.from_json(
        {**about, "label_type": "integer" if numbers else "string"}, "manifest.json"
    )
    with TemporaryDirectory() as folder:
        assert prepared(Path(folder), cells, kind, max_bad_rows=1, labels=[*head.values])[:2] == (
            labels,
            rows,
        )
