"""Several sources in one recipe: the columns, splits and ids of each, and what they share."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distill.data.dataset import load_split
from distill.data.in_memory import has_data_in_memory, name_sources, write_sources
from distill.data.prepare import contents, prepare
from distill.data.sources import DataError
from distill.recipe.data_section import RecipeError
from distill.recipe.load import load_yaml, parse_recipe

HEADS = {"mood": {"column": "mood"}, "topic": {}}
SPLITS = ("train", "validation", "test")


class Bench:
    """A folder with sources; `prepare` gives the rows of each split: text, source and labels by head."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs = root, 0
        self.counts: Any = {}

    def write(self, name: str, header: str, *rows: str) -> None:
        (self.root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")

    def recipe(self, train: str | list[Any], heads: Any = HEADS, **data: Any) -> Any:
        sources = load_yaml(train) if isinstance(train, str) else train
        data = {"root": str(self.root), "train": sources, **data}
        return parse_recipe({"name": "many", "data": data, "heads": heads})

    def prepare(self, train: str | list[Any], heads: Any = HEADS, **data: Any) -> dict[str, list[Any]]:
        recipe = self.recipe(train, heads, **data)
        self.runs += 1
        self.folder = self.root / f"out{self.runs}"
        self.folder.mkdir()
        self.counts = prepare(recipe, self.folder, self.root / "data_report.json")
        return {split: load_split(self.folder, split).to_list() for split in SPLITS}

    def refused(self, train: str | list[Any], heads: Any = HEADS, **data: Any) -> str:
        with pytest.raises((DataError, RecipeError)) as caught:
            self.prepare(train, heads, **data)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """a.csv: 40 texts of two moods; b.csv: 60 sentences of three kinds, which are the topics."""
    made = Bench(tmp_path)
    made.write("a.csv", "text,mood", *(f"a{i},{'good' if i % 2 else 'bad'}" for i in range(40)))
    made.write("b.csv", "sentence,kind,mood", *(f"b{i},{'xyz'[i % 3]},good" for i in range(60)))
    return made


TWO = "[{file: a.csv}, {file: b.csv, text: sentence, columns: {topic: kind}}]"


def test_a_row_labels_the_heads_of_its_source_alone(bench: Bench) -> None:
    splits = bench.prepare(TWO)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 80, "validation": 10, "test": 10}
    for rows in splits.values():
        for row in rows:
            own = row["text"][0] == "b"
            assert (row["source"], row["head_mood"] == -100, row["head_topic"] == -100) == (own, own, not own)
    # each fraction is of its own source, in which the labels are balanced
    assert [source["rows"] for source in bench.counts["sources"]] == [
        {"train": 32, "validation": 4, "test": 4},
        {"train": 48, "validation": 6, "test": 6},
    ]
    topics = [row["head_topic"] for row in splits["test"] if row["source"] == 1]
    assert sorted(topics) == [0, 0, 1, 1, 2, 2]
    written = json.loads((bench.root / "data_report.json").read_text("utf-8"))["sources"]
    assert written == json.loads((bench.folder / "sources.json").read_text("utf-8"))
    assert written[1]["labelled"] == {
        "mood": {"train": 0, "validation": 0, "test": 0},
        "topic": {"train": 48, "validation": 6, "test": 6},
    }


def test_one_source_in_a_list_has_the_splits_of_a_plain_recipe(bench: Bench) -> None:
    heads = {"mood": {"column": "mood"}}
    plain, listed = bench.prepare("a.csv", heads), bench.prepare("[a.csv]", heads)
    assert not any("source" in row for rows in plain.values() for row in rows)
    without = {split: [{**row} for row in rows] for split, rows in listed.items()}
    assert {row.pop("source") for rows in without.values() for row in rows} == {0}
    assert without == plain


def test_files_and_fractions_of_each_source(bench: Bench) -> None:
    bench.write("a-test.csv", "text,mood", "new,good", "a1,good")
    splits = bench.prepare(
        "[{file: a.csv, validation: {from: train, fraction: 0.5}, test: a-test.csv}, "
        "{file: b.csv, text: sentence, columns: {topic: kind}}]"
    )
    rows = [source["rows"] for source in bench.counts["sources"]]
    assert rows == [{"train": 19, "validation": 20, "test": 2}, {"train": 48, "validation": 6, "test": 6}]
    assert "a1" not in {row["text"] for row in splits["train"] + splits["validation"]}


def test_a_text_is_in_one_split_over_all_sources(bench: Bench) -> None:
    """A fraction of one source may take a text that another has in train."""
    bench.write("c.csv", "text,kind", *(f"a{i},{'pq'[i % 2]}" for i in range(40)))
    splits = bench.prepare(
        "[{file: a.csv, test: {from: train, fraction: 0.4}}, {file: c.csv, columns: {topic: kind}}]"
    )
    held = [{row["text"] for row in splits[split]} for split in SPLITS]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    # both rows of a text stay, each with the labels of its own source
    both = [row for row in splits["train"] if row["text"] == splits["train"][0]["text"]]
    assert [row["source"] for row in both] == [0, 1] and both[0]["head_topic"] == both[1]["head_mood"] == -100


def test_columns_of_flags_and_of_lists(bench: Bench) -> None:
    """A head of labels may be 0/1 columns in one source and lists in another."""
    bench.write("flags.csv", "text,is_a,is_b", *(f"f{i},{i % 2},{int(i % 3 == 0)}" for i in range(30)))
    bench.write("named.csv", "text,b,a", *(f"n{i},{i % 2},{int(i % 3 == 0)}" for i in range(30)))
    bench.write("lists.csv", "text,tags", *(f"l{i},{('a', 'b', 'a|b')[i % 3]}" for i in range(30)))
    train = (
        "[{file: flags.csv, columns: {tags: [is_a, is_b]}}, {file: named.csv, columns: {tags: [b, a]}}, "
        "{file: lists.csv, columns: {tags: tags}}]"
    )
    expected = {"f3": [1, 1], "f4": [0, 0], "n3": [1, 1], "n1": [0, 1], "l0": [1, 0], "l2": [1, 1]}
    for head in ({"labels": ["a", "b"], "kind": "multi_label"}, {"columns": ["a", "b"]}):
        splits = bench.prepare(train, {"tags": head})
        found = {row["text"]: row["head_tags"] for rows in splits.values() for row in rows}
        assert {text: found[text] for text in expected} == expected
    bench.write("lists.csv", "text,tags", *(f"l{i},{'c' if i == 7 else 'a'}" for i in range(30)))
    bench.prepare(train, {"tags": {"columns": ["a", "b"]}}, max_bad_rows=0.1)
    assert bench.counts["dropped"] == {"label not in the recipe's list": 1}


def test_ids_are_unique_in_a_source(bench: Bench) -> None:
    bench.write("a.csv", "text,mood,id", *(f"a{i},{'good' if i % 2 else 'bad'},{i}" for i in range(40)))
    bench.write("b.csv", "text,kind,id", *(f"b{i},{'xyz'[i % 3]},{i % 59}" for i in range(60)))
    bench.prepare("[{file: a.csv}, {file: b.csv, columns: {topic: kind}}]", id="id", max_bad_rows=0.1)
    assert bench.counts["dropped"] == {"duplicate id": 1}
    bench.prepare("[{file: a.csv, id: id}, {file: b.csv, columns: {topic: kind}}]")
    assert bench.counts["dropped"] == {}


def test_labels_have_one_spelling_over_all_sources(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinyheads")
    bench.write("a.csv", "text,mood", *(f"a{i},{('café', '1.0')[i % 2]}" for i in range(40)))
    spellings = ("cafe\u0301", "1")
    bench.write("b.csv", "text,mood", *(f"b{i},{spellings[i % 2]}" for i in range(60)))
    bench.prepare("[a.csv, b.csv]", {"mood": {"column": "mood"}})
    assert bench.counts["heads"] == {"mood": 2} and "one source alone" not in caplog.text
    bench.write("b.csv", "text,mood", *(f"b{i},{('Café', '1')[i % 2]}" for i in range(60)))
    bench.prepare("[a.csv, b.csv]", {"mood": {"column": "mood"}})
    assert (
        "data: head 'mood': labels of one source alone, a.csv: 'café'; b.csv: 'Café' (if they mean the same, "
        "give them one name in the files)" in caplog.text
    )


def test_at_most_so_many_training_texts(bench: Bench) -> None:
    splits = bench.prepare(
        "[{file: a.csv, max_texts: 8}, {file: b.csv, text: sentence, columns: {topic: kind}}]", max_texts=24
    )
    assert [source["rows"]["train"] for source in bench.counts["sources"]] == [8, 24]
    assert [source["rows"]["test"] for source in bench.counts["sources"]] == [4, 6]
    moods = [row["head_mood"] for row in splits["train"] if row["source"] == 0]
    assert sorted(moods) == [0] * 4 + [1] * 4  # stratified
    assert splits == bench.prepare(
        "[{file: a.csv, max_texts: 8}, {file: b.csv, text: sentence, columns: {topic: kind}}]", max_texts=24
    )
    heads = {"mood": {"column": "mood"}}
    assert len(bench.prepare("a.csv", heads, max_texts=10)["train"]) == 10
    rows = [f"a{i % 30},{'good' if i % 2 else 'bad'}" for i in range(90)]
    bench.write("a.csv", "text,mood", *rows)  # every text three times
    texts = [row["text"] for row in bench.prepare("a.csv", heads, max_texts=10)["train"]]
    assert len(texts) == len({*texts}) == 10
    bench.write("a.csv", "text,mood", *(f"a{i},l{i % 20}" for i in range(100)))
    splits = bench.prepare("a.csv", heads, max_texts=10)
    assert sorted(row["head_mood"] for row in splits["train"]) == sorted(
        [*range(20)] * 2
    )  # two of each label


def test_a_source_may_be_in_another_encoding(bench: Bench) -> None:
    (bench.root / "b.csv").write_bytes(
        b"text,kind\n" + "".join(f"ż{i},{'pq'[i % 2]}\n" for i in range(30)).encode("cp1250")
    )
    splits = bench.prepare("[{file: a.csv}, {file: b.csv, encoding: cp1250, columns: {topic: kind}}]")
    assert {row["text"][0] for rows in splits.values() for row in rows if row["source"]} == {"ż"}


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("[]", "data.train: must not be empty"),
        (
            "[{file: a.csv, columns: {mod: mood}}]",
            "data.train.0.columns: no head 'mod' (did you mean 'mood'?)",
        ),
        (
            "{file: a.csv, columns: {mood: mood}}",
            "data.train: a source with settings of its own is in a list",
        ),
        ("[null]", "data.train.0: must be a file or a mapping such as `{file: ...}`, got None"),
        ("[[a.csv]]", "data.train.0: must be a file or a mapping such as `{file: ...}`, got ['a.csv']"),
        ("[{columns: {mood: mood}}]", "data.train.0: give either `file` or `hub`"),
        (
            "[{file: a.csv, colums: {mood: mood}}]",
            "data.train.0.colums: unknown key (did you mean 'columns'?)",
        ),
        ("[{file: a.csv, split: x}]", "data.train.0: `split` is for data sets on the hub (leave it out)"),
        ("[{file: a.csv, encoding: utf-9}]", "data.train.0.encoding: unknown encoding 'utf-9' (did you mean"),
        (
            "[{file: a.csv}, {file: ./a.csv}]",
            "data.train: sources 0 and 1 are both a.csv (name its heads in one)",
        ),
        (
            "[{file: a.csv, columns: {mood: []}}]",
            "data.train.0.columns.mood: must not be empty",
        ),
        (
            "[{file: a.csv, columns: {mood: [a, b]}}]",
            "data.train.0.columns.mood: a list of 0/1 columns is for a multi_label head that lists its "
            "labels (set heads.mood.labels)",
        ),
        ("[{file: a.csv}]", "heads.topic: give either `column` or `columns`, or `labels` alone"),
        (
            "[{file: a.csv, columns: {mood: moood, topic: mood}}]",
            "a.csv: no column 'moood' (did you mean 'mood'?), the columns are: 'text', 'mood'",
        ),
        (
            "[{file: a.csv, columns: {topic: mood}}, {file: b.csv, text: sentence, columns: {topic: kind}}]",
            "head 'mood': no text of train is labelled, expected some (name its column in a source of "
            "data.train)",
        ),
        (
            "[{file: a.csv}, {file: b.csv, columns: {topic: kind}}]",
            "b.csv: no column 'text', the columns are: 'sentence', 'kind', 'mood'",
        ),
        (
            "[{file: c.csv}, {file: b.csv, text: sentence, columns: {topic: kind}}]",
            "c.csv: no such file or folder",
        ),
        ("[{file: empty.csv}, {file: b.csv, text: sentence, columns: {topic: kind}}]", "empty.csv: is empty"),
        (
            "[{file: header.csv}, {file: b.csv, text: sentence, columns: {topic: kind}}]",
            "header.csv: train has no rows, expected labelled texts",
        ),
        (
            "[{file: a.csv}, {file: other.csv}, {file: b.csv, text: sentence, columns: {topic: kind}}]",
            "other.csv: train has the column of no head, the columns are: 'text', 'kind' (name those of "
            "its heads in `columns` of other.csv)",
        ),
        (
            "[{file: a.csv}, {file: b.csv, text: sentence, columns: {topic: kind}, test: other.csv}]",
            "other.csv: no column 'sentence', the columns are: 'text', 'kind'",
        ),
        (
            "[{file: a.csv, test: other.csv}, {file: b.csv, text: sentence, columns: {topic: kind}}]",
            "other.csv: test has the column of no head, the columns are: 'text', 'kind' (name those of its "
            "heads in `columns` of a.csv)",
        ),
    ],
)
def test_what_is_refused_in_a_line(bench: Bench, train: str, expected: str) -> None:
    bench.write("other.csv", "text,kind", "o1,p", "o2,q")
    bench.write("header.csv", "text,mood")
    (bench.root / "empty.csv").touch()
    assert bench.refused(train).removeprefix("recipe: ").startswith(expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"validation": "v.csv"},
            "data.validation: must be a fraction where train is a list (give the file in its source, `train: "
            "[{file: ..., validation: ...}]`)",
        ),
        ({"test": {"hub": "a/b"}}, "data.test: must be a fraction where train is a list"),
        ({"mixing": 2}, "data.mixing: must be <= 1.0, got 2"),
        ({"max_texts": 0}, "data.max_texts: must be > 0, got 0"),
    ],
)
def test_settings_of_all_sources(bench: Bench, data: dict[str, Any], expected: str) -> None:
    assert bench.refused(TWO, **data).startswith(f"recipe: {expected}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data": {"train": "a.csv", "mixing": 0.5}}, "data.mixing: is for several sources"),
        ({"distillation": {"fill": False}}, "distillation.fill: is for several sources (leave it out)"),
    ],
)
def test_settings_of_several_sources_alone(change: dict[str, Any], expected: str) -> None:
    plain = {"name": "one", "data": {"train": "a.csv"}, "heads": {"mood": {"column": "mood"}}}
    with pytest.raises(RecipeError, match=f"recipe: {expected.replace('(', '.').replace(')', '.')}"):
        parse_recipe(plain | change)


def test_a_list_of_flags_needs_a_column_for_each_label(bench: Bench) -> None:
    heads = {"tags": {"labels": ["a", "b"], "kind": "multi_label"}}
    assert bench.refused("[{file: a.csv, columns: {tags: [x, y, z]}}]", heads) == (
        "recipe: data.train.0.columns.tags: 3 columns, expected one for each of the 2 labels of the head, in "
        "their order"
    )


def test_the_content_of_every_file_counts(bench: Bench) -> None:
    bench.write("t.csv", "sentence,kind", "b1,x")
    train = TWO.replace("columns:", "test: t.csv, columns:")
    before = contents(bench.recipe(train).data)[0]
    assert len(before) == 6 and before[1:3] == [0.1, 0.1]
    for place, name in ((0, "a.csv"), (3, "b.csv"), (5, "t.csv")):
        old = (bench.root / name).read_text("utf-8")
        (bench.root / name).write_text(old + "more,x\n", "utf-8")
        changed = contents(bench.recipe(train).data)[0]
        assert [i for i in range(6) if changed[i] != before[i]] == [place]
        (bench.root / name).write_text(old, "utf-8")


def test_data_frames_in_a_list(bench: Bench) -> None:
    one = pd.DataFrame({"text": [f"a{i}" for i in range(40)], "mood": ["good", "bad"] * 20})
    other = pd.DataFrame({"body": [f"b{i}" for i in range(60)], "kind": ["x", "y", "z"] * 20})
    data = {
        "train": [one, {"file": other, "text": "body", "columns": {"topic": "kind"}, "test": other[:6]}],
        "unlabeled": [Path("inbox.txt"), pd.DataFrame({"text": ["c"]})],
    }
    assert has_data_in_memory(data) and not has_data_in_memory({"train": [{"file": "a.csv"}], "text": "t"})
    names = name_sources(data, Path("inputs"))
    assert names["train"] == [
        "inputs/train-0.parquet",
        {
            "file": "inputs/train-1-file.parquet",
            "text": "body",
            "columns": {"topic": "kind"},
            "test": "inputs/train-1-test.parquet",
        },
    ]
    assert names["unlabeled"] == ["inbox.txt", "inputs/unlabeled-1.parquet"]
    assert (
        write_sources(data, bench.root / "inputs")["train"]
        == name_sources(data, bench.root / "inputs")["train"]
    )
    splits = bench.prepare(names["train"])
    assert bench.counts["sources"][1]["rows"] == {"train": 49, "validation": 5, "test": 6}
    assert len(splits["train"]) == 32 + 49
