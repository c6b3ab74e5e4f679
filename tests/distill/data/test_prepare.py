import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.prepare import _abstain_errors, contents, prepare
from distill.data.sources import DataError
from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.recipe.load import parse_recipe
from distill.recipe.schema import Recipe

SPLITS = ("train", "validation", "test", "unlabeled")


class Workspace:
    """A folder with data files, and the splits and report that `prepare` writes."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.runs = root, root / "out0", 0
        self.report: dict[str, Any] = {}
        self.sources: dict[str, Any] = {"train": "train.csv", "test": "test.csv"}
        self.teacher: dict[str, Any] = {}

    def recipe(self, heads: dict[str, Any], **data: Any) -> Recipe:
        data = {"root": str(self.root), **self.sources, **data}
        return parse_recipe({"name": "room", "data": data, "heads": heads, "teacher": self.teacher})

    def prepare(self, heads: dict[str, Any], **data: Any) -> dict[str, Any]:
        self.runs += 1
        self.folder = self.root / f"out{self.runs}"
        self.folder.mkdir()
        path = self.root / "data_report.json"
        path.unlink(missing_ok=True)
        try:
            return prepare(self.recipe(heads, **data), self.folder, path)
        finally:
            self.report = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def error(self, heads: dict[str, Any], **data: Any) -> str:
        with pytest.raises(DataError) as caught:
            self.prepare(heads, **data)
        assert list(self.folder.iterdir()) == []
        return str(caught.value)

    def texts(self, split: str) -> list[str]:
        return list(load_split(self.folder, split)["text"])

    def cells(self, split: str, head: str) -> list[Any]:
        return list(load_split(self.folder, split)[f"head_{head}"])

    def write(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def csv(self, name: str, labels: str, header: str = "text,label") -> None:
        self.write(name, header, *(f"{name} {i},{label}" for i, label in enumerate(labels.split(" "))))


@pytest.fixture
def room(tmp_path: Path) -> Workspace:
    """Files of two classes: 40 train, 4 validation, 4 test."""
    room = Workspace(tmp_path)
    room.csv("train.csv", " ".join(["b", "a"] * 20))
    room.csv("validation.csv", "a b a b")
    room.csv("test.csv", "a b a b")
    return room


LABEL = {"label": {"column": "label"}}
FILES = {"validation": "validation.csv"}


def test_what_prepare_writes(room: Workspace) -> None:
    counts = room.prepare({"label": {"column": "label", "weight": 2.0}}, **FILES)
    assert counts == {
        "rows": {"train": 40, "validation": 4, "test": 4, "unlabeled": 0},
        "dropped": {},
        "leaked": 0,
        "heads": {"label": 2},
        "labelled": {"label": {"train": 40, "validation": 4, "test": 4}},
    }
    assert sorted(p.name for p in room.folder.iterdir()) == sorted(
        [*(f"{s}.arrow" for s in SPLITS), "heads.json"]
    )
    assert load_heads(room.folder) == (Head("label", "single_label", ("a", "b"), 2.0),)
    train = load_split(room.folder, "train")
    assert train.column_names == ["text", "head_label"]
    assert train.features["head_label"].dtype == "int32"
    assert train[0] == {"text": "train.csv 0", "head_label": 1}
    assert load_split(room.folder, "unlabeled").column_names == ["text"]
    assert room.report == {
        "rows": counts["rows"],
        "dropped": {},
        "leaked": {},
        "rare": {},
        "labels": {
            "label": {
                "a": {"train": 20, "validation": 2, "test": 2},
                "b": {"train": 20, "validation": 2, "test": 2},
            }
        },
        "labelled": counts["labelled"],
        "spellings": {},
    }


def test_texts_are_stripped_outside_only(room: Workspace) -> None:
    room.write("test.csv", "text,label", '" a  b\n c ",a', "x,b")
    room.prepare(LABEL, **FILES)
    assert room.texts("test") == ["a  b\n c", "x"]


def test_fractions_are_stratified_disjoint_and_the_same_each_time(room: Workspace) -> None:
    data: dict[str, Any] = {"test": {"from": "train", "fraction": 0.2}}
    assert room.prepare(LABEL, **data)["rows"] == {"train": 28, "validation": 4, "test": 8, "unlabeled": 0}
    first = {split: room.texts(split) for split in SPLITS}
    assert len({text for split in SPLITS for text in first[split]}) == 40
    assert sorted(room.cells("test", "label")) == [0] * 4 + [1] * 4
    assert sorted(room.cells("validation", "label")) == [0] * 2 + [1] * 2
    room.prepare(LABEL, **data)
    assert first == {split: room.texts(split) for split in SPLITS}


def test_labels_that_look_like_missing_values_are_labels(room: Workspace) -> None:
    words = ["NA", "None", "null", "nan", "1.0"]
    room.csv("train.csv", " ".join(words * 3))
    room.csv("test.csv", "NA null")
    room.prepare(LABEL, validation={"from": "train", "fraction": 0.2})
    assert load_heads(room.folder)[0].labels == tuple(sorted(words))


def test_empty_labels_are_unlabelled_rows(room: Workspace) -> None:
    room.csv("test.csv", "a b  a")
    room.prepare(LABEL, **FILES)
    assert room.cells("test", "label") == [0, 1, UNLABELLED, 0]
    labels = hard_labels(load_split(room.folder, "test"), load_heads(room.folder))["label"]
    assert labels.dtype == np.int64 and labels.tolist() == [0, 1, -100, 0]


def test_the_recipe_gives_the_order_of_the_labels(room: Workspace) -> None:
    head = {"label": {"column": "label", "labels": ["b", "a"]}}
    room.prepare(head, **FILES)
    assert load_heads(room.folder)[0].labels == ("b", "a") and room.cells("test", "label") == [1, 0, 1, 0]


def test_typed_columns_become_labels(room: Workspace) -> None:
    columns = {
        "text": [f"t {i}" for i in range(12)],
        "gap": [1.0, 2.0, None] * 4,  # pandas makes floats of integers with gaps
        "flag": [True, False] * 6,
        "half": [0.5, 1.5] * 6,
        "whole": [3, 4] * 6,
    }
    pq.write_table(pa.table(columns), room.root / "train.parquet")
    heads = {name: {"column": name} for name in ("gap", "flag", "half", "whole")}
    split = {"from": "train", "fraction": 0.2}
    room.prepare(heads, train="train.parquet", validation=split, test=split)
    labels = [head.labels for head in load_heads(room.folder)]
    assert labels == [("1", "2"), ("False", "True"), ("0.5", "1.5"), ("3", "4")]


def multi(room: Workspace, cells: list[str], **head: Any) -> list[Any]:
    """The prepared rows of a multi_label column, which are in every split."""
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"text": f"{split} {i}", "tags": json.loads(c)}) for i, c in enumerate(cells * 2)]
        room.write(f"{split}.jsonl", *lines)
    files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    room.prepare({"tags": {"column": "tags", "kind": "multi_label", **head}}, **files)
    return room.cells("train", "tags")[: len(cells)]


def test_separated_cells(room: Workspace) -> None:
    rows = multi(room, ['"a| c"', '"b"', '""', '"c|a|a|"', "null"])
    assert load_heads(room.folder)[0].labels == ("a", "b", "c")
    assert rows == [[1, 0, 1], [0, 1, 0], [UNKNOWN] * 3, [1, 0, 1], [UNKNOWN] * 3]
    assert load_split(room.folder, "train").features["head_tags"].length == 3
    labels = hard_labels(load_split(room.folder, "train"), load_heads(room.folder))["tags"]
    assert labels.dtype == np.int8 and labels.shape == (10, 3) and labels[2].tolist() == [-1, -1, -1]


def test_the_cell_that_means_no_label(room: Workspace) -> None:
    cells = ['"a,b"', '"-"', '""', '"b"']
    assert multi(room, cells, none="-", separator=",") == [[1, 1], [0, 0], [UNKNOWN] * 2, [0, 1]]
    cells = ['"a"', '""', "null", '"b"']
    assert multi(room, cells, none="") == [[1, 0], [0, 0], [UNKNOWN] * 2, [0, 1]]


def test_lists_of_labels(room: Workspace) -> None:
    assert multi(room, ['["b", 1]', "[]", "null", '["b"]']) == [[1, 1], [0, 0], [UNKNOWN] * 2, [0, 1]]


def test_hard_labels_follow_a_selection(room: Workspace) -> None:
    multi(room, ['"a"', '"b"', '"a|b"'])
    split = load_split(room.folder, "train").select([2, 0])
    assert hard_labels(split, load_heads(room.folder))["tags"].tolist() == [[1, 1], [1, 0]]


def test_columns_of_flags(room: Workspace) -> None:
    header = "id,comment_text,toxic,insult,threat"
    rows = ["1,0,0", "0,0,0", "True,false,0.0", "1.0,1,0", "1,,0", "0,1,0"]
    for split in ("train", "validation", "test"):
        room.write(f"{split}.csv", header, *(f"{split}{i},{split} {i},{row}" for i, row in enumerate(rows)))
    heads = {"flags": {"columns": ["toxic", "insult", "threat"]}}
    counts = room.prepare(heads, text="comment_text", id="id", **FILES)
    assert counts["heads"] == {"flags": 3} and counts["dropped"] == {}
    assert load_heads(room.folder)[0] == Head("flags", "multi_label", ("toxic", "insult", "threat"))
    cells = room.cells("train", "flags")
    assert cells == [
        [1, 0, 0],
        [0, 0, 0],
        [1, 0, 0],
        [1, 1, 0],
        [-1, -1, -1],
        [0, 1, 0],
    ]


def test_class_folders_and_saved_data_sets(room: Workspace) -> None:
    for split in ("train", "test"):
        (room.root / split).mkdir()
        for label in ("ham", "spam"):
            room.write(f"{split}/{label}.txt", *(f"{split} {label} {i}" for i in range(4)))
    features = datasets.Features(
        {"body": datasets.Value("string"), "label": datasets.ClassLabel(names=["spam", "ham"])}
    )
    saved = datasets.Dataset.from_dict({"body": ["x", "y"], "label": [0, 1]}, features=features)
    saved.save_to_disk(room.root / "saved")
    room.prepare(LABEL, train="train", test="test", validation="saved", text="body")
    assert room.texts("validation") == ["x", "y"] and room.cells("validation", "label") == [1, 0]
    assert room.cells("test", "label") == [0] * 4 + [1] * 4


def test_two_heads_of_one_column(room: Workspace) -> None:
    heads = {"one": {"column": "label"}, "two": {"column": "label", "kind": "multi_label"}}
    room.prepare(heads, **FILES)
    assert room.cells("test", "one") == [0, 1, 0, 1] and room.cells("test", "two")[:2] == [[1, 0], [0, 1]]


def test_invalid_rows_are_counted_and_listed(room: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinyheads")
    lines = [
        '{"id": 1, "text": "fine", "label": "a", "x": 1}',
        '{"id": 2, "text": " \\n", "label": "a", "x": 1}',
        '{"id": 3, "text": null, "label": "a", "x": 1}',
        '{"id": 4, "text": "caf@", "label": "a", "x": 1}',
        '{"id": 5, "text": "half \\ud800", "label": "a", "x": 1}',
        '{"id": 6, "text": "' + "é" * 600_000 + '", "label": "a", "x": 1}',
        '{"id": 1, "text": "again", "label": "a", "x": 1}',
        '{"id": 7, "text": "unknown", "label": "z", "x": 1}',
        '{"id": 8, "text": "two", "label": "a", "x": 2}',
        '{"id": 9, "text": "fine too", "label": "b", "x": 0}',
        '{"id": 10, "text": ["list"], "label": "b", "x": 0}',
        '{"id": 11, "text": "bad label", "label": "@", "x": 0}',
    ]
    content = "\n".join(lines).encode().replace(b"@", b"\xff")
    (room.root / "test.jsonl").write_bytes(content)
    for split in ("train", "validation"):
        rows = [
            {"id": f"{split}{i}", "text": f"{split} {i}", "label": "ab"[i % 2], "x": i % 2} for i in range(6)
        ]
        room.write(f"{split}.jsonl", *map(json.dumps, rows))
    heads = {"label": {"column": "label", "labels": ["a", "b"]}, "x": {"columns": ["x"]}}
    data = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    counts = room.prepare(heads, id="id", max_bad_rows=0.9, **data)
    expected = {
        "empty text": [2, 3],
        "undecodable bytes": [4, 5, 12],
        "text over 1 MB": [6],
        "duplicate id": [7],
        "label not in the recipe's list": [8],
        "value not 0 or 1": [9],
        "text is a list or an object": [11],
    }
    assert counts["dropped"] == {kind: len(lines) for kind, lines in expected.items()}
    places = {kind: [f["line"] for f in e["first"]] for kind, e in room.report["dropped"].items()}
    assert places == expected
    assert room.report["dropped"]["value not 0 or 1"]["first"] == [
        {"file": "test.jsonl", "line": 9, "excerpt": "x: 2"}
    ]
    assert room.texts("test") == ["fine", "fine too"]
    printed = caplog.messages
    assert len(printed) == len(expected)
    assert "data: dropped 1 row: duplicate id; first test.jsonl:7: '1'" in printed


def test_minus_one_among_0_and_1_is_no_label(room: Workspace) -> None:
    """A row with it is unlabelled, as one with an empty cell."""
    for split in ("train", "validation", "test"):
        flags = [(i % 2, i % 3 // 2) for i in range(6)] + [(-1, -1), (1, -1), ("-1.0", None)]
        rows = [{"text": f"{split} {i}", "x": x, "y": y} for i, (x, y) in enumerate(flags)]
        room.write(f"{split}.jsonl", *map(json.dumps, rows))
    data = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    counts = room.prepare({"x": {"columns": ["x", "y"]}}, max_bad_rows=0, **data)
    assert counts["labelled"]["x"] == dict.fromkeys(("train", "validation", "test"), 6)
    assert counts["rows"]["train"] == 9


def test_a_none_cell_beside_labels_is_invalid(room: Workspace) -> None:
    room.csv("test.csv", "a b a|- -")
    room.prepare(
        {"label": {"column": "label", "kind": "multi_label", "none": "-"}}, max_bad_rows=0.5, **FILES
    )
    assert room.report["dropped"]["`none` beside labels"]["first"][0]["line"] == 4


def test_too_many_invalid_rows_are_an_error(room: Workspace) -> None:
    room.csv("train.csv", " ".join(["b", "a"] * 20))
    with (room.root / "train.csv").open("a") as file:
        file.write(",a\n")
    message = room.error(LABEL, **FILES)
    assert message == (
        "train.csv: train: 1 of 41 rows are invalid, mostly empty text (1), expected a share of at most "
        "0.01 (fix the rows, which a run lists in data_report.json, or raise data.max_bad_rows in the recipe)"
    )
    assert room.report["dropped"]["empty text"]["first"] == [{"file": "train.csv", "line": 42, "excerpt": ""}]
    assert room.prepare(LABEL, max_bad_rows=0.03, **FILES)["dropped"] == {"empty text": 1}


def test_an_id_column_without_a_name(room: Workspace) -> None:
    for split in ("train", "validation", "test"):
        room.write(f"{split}.csv", ",text,label", *(f"{i},{split} {i},{'ab'[i % 2]}" for i in range(6)))
    assert "mostly duplicate id (6)" in room.error(LABEL, id="", **FILES)


def test_ids_across_splits(room: Workspace) -> None:
    for split in ("train", "validation", "test"):
        room.write(f"{split}.csv", "id,text,label", *(f"{i},{split} {i},{'ab'[i % 2]}" for i in range(6)))
    assert "6 of 6 rows are invalid, mostly duplicate id (6)" in room.error(LABEL, id="id", **FILES)


def test_texts_of_two_splits_are_kept_in_test_then_validation(
    room: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tinyheads")
    room.write("validation.csv", "text,label", "train.csv 3,a", " test.csv 1 ,b", "v,a", "w,b")
    room.write("inbox.txt", "new", "v", "test.csv 0", "train.csv 0", "new", "newer")
    counts = room.prepare(LABEL, unlabeled=["inbox.txt"], **FILES)
    assert counts["rows"] == {"train": 39, "validation": 3, "test": 4, "unlabeled": 2}
    assert counts["leaked"] == 4
    assert "test.csv 1" in room.texts("test") and room.texts("validation") == ["train.csv 3", "v", "w"]
    assert "train.csv 3" not in room.texts("train") and room.texts("unlabeled") == ["new", "newer"]
    assert room.report["leaked"]["text of unlabeled in validation"] == {
        "count": 1,
        "first": [{"file": "inbox.txt", "line": 2, "excerpt": "v"}],
    }
    assert "data: removed 1 row: text of validation in test; first validation.csv:3" in caplog.text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"validation": "valid.csv"}, r"valid.csv: no such file .*did you mean 'validation.csv'"),
        ({"text": "txt"}, r"test.csv: no column 'txt' \(did you mean 'text'\?\), the columns are: "),
        ({"id": "key"}, "test.csv: no column 'key'"),
        ({"unlabeled": ["gone.txt"]}, "gone.txt: no such file"),
        ({"unlabeled": ["odd.csv"]}, "odd.csv: no column 'text'"),
        ({"unlabeled": ["ragged.csv"]}, "ragged.csv:3: 2 cells, expected 1"),
        ({"unlabeled": ["bytes.txt"]}, "data.unlabeled: 1 of 2 rows are invalid, mostly undecodable"),
        ({"validation": "header.csv"}, "header.csv: validation has no rows"),
        ({"validation": {"from": "train", "fraction": 0.01}}, "data.validation: no rows are left"),
    ],
)
def test_errors_leave_the_folder_empty(room: Workspace, change: dict[str, Any], what: str) -> None:
    room.write("odd.csv", "body", "x")
    room.write("ragged.csv", "text", "x", "y,z")
    room.write("header.csv", "text,label")
    (room.root / "bytes.txt").write_bytes(b"fine\nfin\xe9\n")
    with pytest.raises(DataError, match=what):
        room.prepare(LABEL, **{**FILES, **change})
    assert list(room.folder.iterdir()) == []


def test_all_label_errors_are_reported_together(room: Workspace) -> None:
    header = "text,label,topic,flag"
    rows = {"train": ["a,x,1", "a,y,1", "b,y,1", "a,x,1"], "validation": ["c,x,1"], "test": ["a,,0", "d,,0"]}
    for split, cells in rows.items():
        room.write(f"{split}.csv", header, *(f"{split} {i},{cell}" for i, cell in enumerate(cells)))
    heads = {"label": {"column": "label"}, "topic": {"column": "topic"}, "flag": {"columns": ["flag"]}}
    assert room.error(heads, **FILES).splitlines() == [
        "validation.csv:2: head 'label': labels of validation that are not in train: 'c' (1) "
        "(add texts of them to train, or set heads.label.min_texts: 2, which leaves them out)",
        "test.csv:3: head 'label': labels of test that are not in train: 'd' (1) "
        "(add texts of them to train, or set heads.label.min_texts: 2, which leaves them out)",
        "head 'label': labels with fewer than 2 texts in train: 'b' (1) "
        "(add texts of them to train, or set heads.label.min_texts: 2, which leaves them out)",
        "head 'flag': its one label always applies in train, expected both",
    ]
    assert room.report["labels"]["label"]["a"] == {"train": 3, "validation": 0, "test": 1}


def test_rare_labels_are_left_out(room: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    room.csv("train.csv", "a a b b c")
    room.csv("validation.csv", "a b c d")
    room.csv("test.csv", "a b a d")
    head = {"label": {"column": "label", "min_texts": 2}}
    with caplog.at_level("INFO"):
        room.prepare(head, **FILES)
    assert load_heads(room.folder)[0].labels == ("a", "b")
    assert room.cells("train", "label") == [0, 0, 1, 1, UNLABELLED]
    assert room.cells("validation", "label") == [0, 1, UNLABELLED, UNLABELLED]
    assert room.report["rare"] == {"label": {"c": 1, "d": 0}}
    assert set(room.report["labels"]["label"]) == {"a", "b"}
    line = "data: head 'label': labels with fewer than 2 texts in train are left out: 'c' (1), 'd' (0)"
    assert [record.message for record in caplog.records] == [line]
    message = room.error({"label": {"column": "label", "min_texts": 3}}, **FILES)
    assert "head 'label': no text of train is labelled" in message


def test_listed_labels_without_a_text_are_said_to_be_left_out(room: Workspace) -> None:
    for split in ("train", "validation", "test"):
        room.csv(f"{split}.csv", "a a b b")
    room.prepare({"label": {"column": "label", "min_texts": 2, "labels": ["b", "a", "lost"]}}, **FILES)
    assert load_heads(room.folder)[0].labels == ("b", "a")
    assert room.report["rare"] == {"label": {"lost": 0}}


def test_rare_labels_of_multi_label_heads(room: Workspace) -> None:
    assert multi(room, ['"a|c"', '"b"', '"b|a"'], min_texts=3) == [[1, 0], [0, 1], [1, 1]]
    assert room.report["rare"] == {"tags": {"c": 2}}
    assert multi(room, ['"a"', '"b"', '"a|b"', '"c"'], min_texts=3)[3] == [0, 0]  # neither a nor b applies
    header = "text,x,y,z"
    for split in ("train", "validation", "test"):
        room.write(f"{split}.csv", header, *(f"{split} {i},{i % 2},{int(i == 3)},1" for i in range(6)))
    room.prepare({"flags": {"columns": ["x", "y", "z"], "min_texts": 2}}, **FILES)
    assert load_heads(room.folder)[0].labels == ("x", "z") and room.cells("test", "flags")[3] == [1, 1]


def test_errors_of_many_labels_are_one_line(room: Workspace) -> None:
    room.csv("train.csv", "a a b b " + " ".join(f"once{i}" for i in range(50)))
    (line,) = room.error(LABEL, **FILES).splitlines()
    assert line.startswith("head 'label': labels with fewer than 2 texts in train: 'once0' (1), ")
    assert line.endswith(
        "'once17' (1) and 40 more (add texts of them to train, or set heads.label.min_texts: 2, "
        "which leaves them out)"
    )


def test_a_text_of_several_columns(room: Workspace) -> None:
    for split in ("train", "validation", "test"):
        rows = [f'{split} {i}," body, as sent ",{"ab"[i % 2]}' for i in range(4)]
        room.write(f"{split}.csv", "title,body,label", *rows)
    room.write("test.csv", "title,body,label", "only a title,,a", ",only a body,b", "both,of them,a")
    room.write("inbox.csv", "body,title", "first,second")
    room.write("inbox.txt", "plain")
    unlabelled = {"unlabeled": ["inbox.csv", "inbox.txt"]}
    room.prepare(LABEL, text=["title", "body"], **FILES, **unlabelled)
    assert room.texts("train")[0] == "train.csv 0\nbody, as sent".replace(".csv", "")
    assert room.texts("test") == ["only a title", "only a body", "both\nof them"]
    assert room.texts("unlabeled") == ["second\nfirst", "plain"]
    assert "no column 'subject'" in room.error(LABEL, text=["subject", "body"], **FILES)


def test_a_file_of_another_encoding(room: Workspace) -> None:
    rows = [f"größe {i},{'ab'[i % 2]}" for i in range(40)]
    (room.root / "train.csv").write_text("\n".join(["text,label", *rows]), encoding="cp1252")
    message = room.error(LABEL, **FILES)
    assert message.endswith("(set data.encoding, probably to cp1252, or save the file as UTF-8)")
    room.prepare(LABEL, encoding="cp1252", **FILES)
    assert room.texts("train")[0] == "größe 0"


def test_a_list_in_a_single_label_column(room: Workspace) -> None:
    room.write("test.jsonl", '{"text": "a", "label": ["b", "a"]}')
    message = room.error(LABEL, test="test.jsonl", **FILES)
    assert message.startswith("test.jsonl:1: column 'label' has a list, expected one label (set `heads.label")


def test_lists_of_one_label(room: Workspace) -> None:
    labels = ('["a"]', "[]", '["b"]')
    room.write("test.jsonl", *(f'{{"text": "{i}", "label": {cell}}}' for i, cell in enumerate(labels)))
    room.prepare(LABEL, test="test.jsonl", **FILES)
    assert room.cells("test", "label") == [0, UNLABELLED, 1]


def test_contents_follow_every_source(room: Workspace) -> None:
    room.write("inbox.txt", "a")
    recipe = room.recipe(LABEL, unlabeled=["inbox.txt"], **FILES)
    seen = [contents(recipe.data)]
    assert seen == [contents(recipe.data)]
    for name in ("train.csv", "validation.csv", "test.csv", "inbox.txt"):
        with (room.root / name).open("a") as file:
            file.write("more\n")
        seen.append(contents(recipe.data))
    assert len({str(one) for one in seen}) == 5
    assert seen[3][0] == seen[4][0]  # more unlabelled texts do not change the labelled ones


def test_unlabelled_texts_stream(room: Workspace) -> None:
    with (room.root / "inbox.txt").open("w") as file:
        for i in range(100_000):
            file.write(f"text number {i} {'of some length ' * 60}\n")  # 92 MB
    tracemalloc.start()
    try:
        counts = room.prepare(LABEL, unlabeled=["inbox.txt"], **FILES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts["rows"]["unlabeled"] == 100_000
    assert peak < 45e6  # a chunk of 10,000 texts and the digests of those seen


# texts without labels

NETWORKS = {"networks": ["runs/old/stages/fit_teacher"]}
LISTED = {"label": {"column": "label", "labels": ["a", "b", "c"]}, "mood": {"labels": ["bad", "good"]}}


@pytest.fixture
def unlabelled_room(room: Workspace) -> Workspace:
    """A room whose recipes have networks as the teacher, and 50 texts, of which one occurs twice."""
    room.write("texts.txt", *(f"text {i}" for i in range(50)), "text 7", "test.csv 1", "")
    room.teacher = NETWORKS
    room.sources = {"unlabeled": ["texts.txt"]}
    return room


def test_unlabelled_texts_are_the_training_texts(unlabelled_room: Workspace) -> None:
    counts = unlabelled_room.prepare(LISTED)
    assert counts["rows"] == {"train": 41, "validation": 5, "test": 5, "unlabeled": 0}
    assert counts["heads"] == {"label": 3, "mood": 2}
    assert load_heads(unlabelled_room.folder)[0].labels == ("a", "b", "c")
    assert {*unlabelled_room.cells("train", "label")} == {UNLABELLED}
    every = [text for split in SPLITS for text in unlabelled_room.texts(split)]
    assert len(every) == len({*every}) == 51


def test_labelled_test_texts_beside_unlabelled_ones(unlabelled_room: Workspace) -> None:
    counts = unlabelled_room.prepare(LISTED, test="test.csv")
    assert counts["labelled"]["label"] == {"train": 0, "validation": 0, "test": 4}
    assert unlabelled_room.cells("test", "label") == [0, 1, 0, 1] and counts["leaked"] == 1
    assert "test.csv 1" not in unlabelled_room.texts("train")
    # what no head's list has is invalid, as in any recipe
    unlabelled_room.csv("test.csv", "a b a z")
    assert "label not in the recipe's list (1)" in unlabelled_room.error(LISTED, test="test.csv")


def test_a_column_that_no_labelled_source_has_is_an_error(unlabelled_room: Workspace) -> None:
    both = {"test": "test.csv", "validation": "validation.csv"}
    unlabelled_room.csv("test.csv", "a b", header="text,mood")
    unlabelled_room.prepare(LISTED, **both)
    unlabelled_room.csv("validation.csv", "a b", header="text,mood")
    assert "validation.csv: no column 'label'" in unlabelled_room.error(LISTED, **both)
    unlabelled_room.prepare({"label": {"labels": ["a", "b"]}}, **both)


def test_new_labels_beside_labelled_training_texts(unlabelled_room: Workspace) -> None:
    """The networks know labels that train lacks, and heads that no file labels."""
    counts = unlabelled_room.prepare(LISTED, train="train.csv", test="test.csv")
    assert counts["labelled"]["label"]["train"] > 30 and counts["labelled"]["mood"]["train"] == 0
    assert counts["heads"] == {"label": 3, "mood": 2} and counts["rows"]["unlabeled"] == 50
    unlabelled_room.teacher = {}
    assert "labels with fewer than 2 texts in train: 'c' (0)" in unlabelled_room.error(
        {"label": LISTED["label"]}, train="train.csv", test="test.csv"
    )


def test_too_few_texts_or_labels(unlabelled_room: Workspace) -> None:
    one = {"label": {"labels": ["a"]}}
    assert unlabelled_room.error(one) == "head 'label': one label, 'a', expected two or more (list them)"
    twice = {"label": {"labels": ["a", "a "]}}
    assert "label 'a' is listed twice" in unlabelled_room.error(twice)
    unlabelled_room.write("texts.txt", "one", "two", "three")
    assert "data.test: no rows are left" in unlabelled_room.error(LISTED)
    unlabelled_room.write("texts.csv", "text,id", ",1", ",2")
    error = unlabelled_room.error(LISTED, unlabeled=["texts.csv"])
    assert error.startswith("data.unlabeled: 2 of 2 rows are invalid, mostly empty text")
    assert "no texts" in unlabelled_room.error(LISTED, unlabeled=["texts.csv"], max_bad_rows=1)


def test_no_labels_under_a_teacher_that_needs_them(room: Workspace) -> None:
    room.csv("train.csv", " ".join(["", ""] * 20))
    assert "data.train: no text is labelled for any head" in room.error(LABEL)
    assert "head 'label': no text of train is labelled" in room.error({"label": LISTED["label"]})


def test_other_unlabelled_training_texts_are_other_data(unlabelled_room: Workspace) -> None:
    before = contents(unlabelled_room.recipe(LISTED).data)[0]
    assert contents(unlabelled_room.recipe(LISTED).data)[0] == before
    unlabelled_room.write("texts.txt", "another text")
    assert contents(unlabelled_room.recipe(LISTED).data)[0] != before


def test_a_coverage_that_no_labelled_validation_text_can_tell_is_refused_in_a_line() -> None:
    head = {"column": "intent", "abstain": {"coverage": 0.8}}
    recipe = parse_recipe({"name": "x", "data": {"train": "x.csv"}, "heads": {"intent": head}})
    (line,) = _abstain_errors(recipe, {"intent": {"validation": 0}})
    assert line == (
        "head 'intent': abstain: 0 texts of validation are labelled, expected 1 or more (label more of them, "
        "or leave abstain out)"
    )
