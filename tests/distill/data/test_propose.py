import io
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from distill.data.prepare import prepare
from distill.data.propose import propose
from distill.data.sources import DataError
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe


def proposed(path: Path, **options: Any) -> tuple[Recipe, dict[str, Any], list[str]]:
    """The recipe as it loads, its heads as they were written, and the notes at its end."""
    text = propose(path, root=path.parent, **options)
    file = path.parent / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    recipe = load_recipe(file)
    (path.parent / "prepared").mkdir()
    prepare(recipe, path.parent / "prepared", path.parent / "data_report.json")
    heads = {name: head.model_dump(exclude_defaults=True) for name, head in recipe.heads.items()}
    notes = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("# ")]
    notes = [note for note in notes if ". Texts: " not in note]
    if "teacher" not in options:
        notes.remove("teacher: {encoder: distilbert/distilbert-base-uncased} (the default)")
    return recipe, heads, notes


def write(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_columns_of_0_and_1_and_minus_one(tmp_path: Path) -> None:
    rows = [f"what they wrote in number {i},{x},{x}" for i in range(60) for x in [(i % 2, -1)[i % 5 == 4]]]
    rows = [f"{row},-1" for row in rows]
    recipe, heads, _ = proposed(write(tmp_path / "train.csv", "comment_text,toxic,threat,never", rows))
    assert recipe.data.text == "comment_text"
    assert heads == {"labels": {"columns": ("toxic", "threat"), "kind": "multi_label"}}


def test_columns_of_every_kind(tmp_path: Path) -> None:
    header = "id,price,sentence,intent,tags,toxic,insult,note,lang,stars"
    rows = [
        f"k{i},{i * 1.5},how do I reach place number {i},{'ask' if i % 2 else 'tell'},"
        f"{('a|b', 'b', '')[i % 3]},{i % 2},{i % 3 // 2},some remark about row number {i},en,{i % 5}"
        for i in range(60)
    ]
    recipe, heads, notes = proposed(write(tmp_path / "mails 2024.csv", header, rows))
    assert recipe.name == "mails-2024" and recipe.data.text == "sentence" and recipe.data.id == "id"
    assert recipe.data.train == "mails 2024.csv" and recipe.data.root == str(tmp_path)
    assert heads == {
        "intent": {"column": "intent"},
        "tags": {"column": "tags", "kind": "multi_label"},
        "labels": {"columns": ("toxic", "insult"), "kind": "multi_label"},
        "stars": {"column": "stars"},
    }
    assert notes == [
        "Texts without a label: 20 (add `none: ''` if an empty cell means that no label applies)",
        "column 'price' is not used: numbers",
        "column 'note' is not used: mostly different values",
        "column 'lang' is not used: one value, 'en'",
    ]


def test_the_text_is_the_longest_column_if_no_name_is_known(tmp_path: Path) -> None:
    rows = [f"short {i},a somewhat longer text {i},{'xy'[i % 2]}" for i in range(40)]
    recipe, heads, _ = proposed(write(tmp_path / "a.csv", "one,two,three", rows))
    assert recipe.data.text == "two" and list(heads) == ["three"]


def test_separators(tmp_path: Path) -> None:
    rows = [
        f'text {i},{("x;y", "y", "x")[i % 3]},"{("p, q", "q", "p", "r")[i % 4]}",'
        f'"{("Rome, Italy", "Oslo")[i % 2]}"'
        for i in range(60)
    ]
    _, heads, _ = proposed(write(tmp_path / "a.csv", "text,semi,comma,city", rows))
    assert heads == {
        "semi": {"column": "semi", "kind": "multi_label", "separator": ";"},
        "comma": {"column": "comma", "kind": "multi_label", "separator": ","},
        "city": {"column": "city"},
    }


def test_files_beside_the_train_file_are_the_splits(tmp_path: Path) -> None:
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    for name in ("train", "dev", "test"):
        write(tmp_path / f"mail_{name}.csv", "text,label", [f"{name} {row}" for row in rows])
    recipe, _, _ = proposed(tmp_path / "mail_train.csv")
    assert (recipe.data.validation, recipe.data.test) == ("mail_dev.csv", "mail_test.csv")


def test_a_test_file_without_labels_is_not_used(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label", [f"text {i},{'ab'[i % 2]}" for i in range(40)])
    write(tmp_path / "test.csv", "text", ["x"])
    recipe, _, notes = proposed(tmp_path / "train.csv")
    assert recipe.name == tmp_path.name.strip("-._") and not isinstance(recipe.data.test, str)
    assert notes == ["test.csv is not used: no column label"]


def test_ids_that_are_repeated_in_another_split_are_not_used(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", "id,text,label", [f"{i},{name} {i},{'ab'[i % 2]}" for i in range(40)])
    recipe, _, notes = proposed(tmp_path / "train.csv")
    assert recipe.data.id is None and notes == ["column 'id' is not used: ids are repeated"]


def test_rare_labels_are_left_out_by_a_setting(tmp_path: Path) -> None:
    rows = [
        f"text {i},{'ab'[i % 2] if i else 'once'},{'xyz'[i % 3] if i > 2 else 'w' * (i + 1)}"
        for i in range(30)
    ]
    path = write(tmp_path / "a.csv", "text,good,other", rows)
    _, heads, notes = proposed(path)
    assert heads == {
        "good": {"column": "good", "min_texts": 2},
        "other": {"column": "other", "min_texts": 2},
    }
    assert "Left out by min_texts, with fewer texts in train: once" in notes
    assert "Left out by min_texts, with fewer texts in train: w, ww, www" in notes


def test_a_head_that_prepare_refuses_is_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [f"{split} {i},{'ab'[i % 2]},{'xy'[i % 2]}" for i in range(30)]
        write(tmp_path / f"{split}.csv", "text,good,bad", rows)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("")
    lines = (tmp_path / "train.csv").read_text().splitlines()
    lines[1:] = [line[:-1] + ("x" if i else "y") for i, line in enumerate(lines[1:])]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    _, heads, notes = proposed(tmp_path / "train.csv")
    assert list(heads) == ["good"] and notes[-1].startswith("left out: head 'bad': one class in train, 'x'")


def test_names_of_heads_are_identifiers(tmp_path: Path) -> None:
    header = "text,heads,2nd label!,my-label,my label"
    rows = [f"text {i},{'ab'[i % 2]},{'cd'[i % 2]},{'ef'[i % 2]},{'gh'[i % 2]}" for i in range(40)]
    _, heads, _ = proposed(write(tmp_path / "a.csv", header, rows))
    assert list(heads) == ["head_heads", "head_2nd_label", "my_label", "my_label_2"]


def test_long_names_of_columns_do_not_make_a_long_recipe(tmp_path: Path) -> None:
    names = ",".join(letter * 100_000 for letter in "xyz")
    rows = [f"t {i},{'ab'[i % 2]},{i},{i},{i}" for i in range(20)]
    proposed(write(tmp_path / "a.csv", f"text,label,{names}", rows))
    assert len((tmp_path / "recipe.yaml").read_text("utf-8")) < 5_000
    text = propose(write(tmp_path / "a.csv", f"{'t' * 50_000},label,a,b,c", rows), root=tmp_path)
    assert len(text) < 60_000


def test_words_that_yaml_reads_as_other_types(tmp_path: Path) -> None:
    rows = [f"text {i},{('yes', 'null', '1e-4', '- a: b')[i % 4] if i else 'rare #x'}" for i in range(800)]
    _, heads, _ = proposed(write(tmp_path / "a.csv", "text,no: #1", rows))
    assert heads == {"no_1": {"column": "no: #1", "min_texts": 2}}


def test_lists_and_objects_in_jsonl(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {i}", "tags": [["a"], ["a", "b"], []][i % 3], "meta": {"k": i}} for i in range(30)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    _, heads, notes = proposed(path)
    assert heads == {"tags": {"column": "tags", "kind": "multi_label"}}
    assert notes == ["column 'meta.k' is not used: numbers"]


def test_parquet_and_one_flag(tmp_path: Path) -> None:
    columns = {"text": [f"text {i}" for i in range(40)], "spam": [i % 2 for i in range(40)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert proposed(tmp_path / "a.parquet")[1] == {"spam": {"column": "spam"}}


def test_class_folder_and_saved_splits(tmp_path: Path) -> None:
    (tmp_path / "x" / "mail").mkdir(parents=True)
    for label in ("ham", "spam"):
        (tmp_path / f"x/mail/{label}.txt").write_text("".join(f"{label} {i}\n" for i in range(20)))
    recipe, heads, _ = proposed(tmp_path / "x/mail")
    assert (recipe.name, recipe.data.train, heads) == ("mail", "mail", {"label": {"column": "label"}})
    parts = {
        name: datasets.Dataset.from_dict(
            {"text": [f"{name} {i}" for i in range(8)], "label": list("abab" * 2)}
        )
        for name in ("train", "validation", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "y" / "saved")
    recipe, _, _ = proposed(tmp_path / "y/saved")
    data = recipe.data
    assert (data.train, data.validation, data.test) == ("saved#train", "saved#validation", "saved#test")


def test_a_folder_with_a_train_file_and_paths_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "data/mail").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    rows = [f"text {i},{'ab'[i % 2]},{('x|y', 'x', 'none', 'none')[i % 4]},{i * 0.7}" for i in range(40)]
    write(tmp_path / "data/mail/train.csv", "text,label,flags,price", rows)
    text = propose(tmp_path / "data/mail", root=tmp_path / "recipes")
    assert text == (
        "name: mail\n"
        "data:\n"
        "  root: .                                  # data paths are relative to it\n"
        "  train: ../data/mail/train.csv            # 40 rows\n"
        "  validation: {from: train, fraction: 0.1} # the default, a stratified sample of train: 4 rows\n"
        "  test: {from: train, fraction: 0.1}       # the default, a stratified sample of train: 4 rows\n"
        "heads:\n"
        "  # 2 labels, one per text. Texts: a 20, b 20\n"
        "  label: {column: label}\n"
        "  # 3 labels, any number per text. Texts: none 20, x 20, y 10 "
        "(add `none: none` if none means that no label applies)\n"
        "  flags: {column: flags, kind: multi_label}\n"
        "# teacher: {encoder: distilbert/distilbert-base-uncased} (the default)\n"
        "# column 'price' is not used: numbers\n"
    )
    round_trip = YAML()
    round_trip.width = 1000
    round_trip.dump(round_trip.load(text), stream := io.StringIO())
    assert stream.getvalue() == text


def test_a_teacher(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label", [f"text {i},{'ab'[i % 2]}" for i in range(40)])
    recipe, _, _ = proposed(tmp_path / "a.csv", teacher="package:minilm")
    assert recipe.teacher.encoder == "package:minilm" and recipe.student.start is None


def test_labels_that_yaml_could_misread(tmp_path: Path) -> None:
    labels = [
        "yes",
        "No",
        "null",
        "1e-4",
        "a: b",
        "# c",
        "'",
        '"',
        "\u0085x",
        "two\nlines",
        "\x01",
        "ü",
        "😀",
        "<<",
    ]
    labels += [f"more {i}" for i in range(9)]
    rows = [{"text": f"text {i}", "label": labels[i % len(labels)]} for i in range(1200)]
    rows.append({"text": "last", "label": "rare\n# x: y"})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe, _, notes = proposed(tmp_path / "a.jsonl")
    assert recipe.heads["label"].min_texts == 2
    assert notes[-1] == "Left out by min_texts, with fewer texts in train: rare # x: y"


def test_columns_without_a_name(tmp_path: Path) -> None:
    rows = [f"{i},text {i},{'ab'[i % 2]}" for i in range(40)]  # as pandas writes an index
    recipe, heads, _ = proposed(write(tmp_path / "a.csv", ",text,label", rows))
    assert (recipe.data.id, heads) == ("", {"label": {"column": "label"}})
    (tmp_path / "labels").mkdir()
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    _, heads, _ = proposed(write(tmp_path / "labels" / "a.csv", "text,", rows))
    assert heads == {"head": {"column": ""}}


def test_a_folder_with_several_train_files(tmp_path: Path) -> None:
    for name in ("more_train.csv", "train.csv"):
        write(tmp_path / name, "text,label", [f"text {i},{'ab'[i % 2]}" for i in range(40)])
    assert "  train: train.csv " in propose(tmp_path, root=tmp_path)


def column_of(tmp_path: Path, cells: list[str], name: str = "x") -> tuple[dict[str, Any], list[str]]:
    """The head that a column makes beside a head that is one, and what is noted of it."""
    rows = [f'text {i},{"ab"[i % 2]},"{cells[i % len(cells)]}"' for i in range(120)]
    _, heads, notes = proposed(write(tmp_path / "a.csv", f"text,label,{name}", rows))
    heads.pop("label")
    return heads, notes


@pytest.mark.parametrize(
    ("name", "cells", "why"),
    [
        ("x", ["2024-01-31", "2024-02-01"], "dates"),
        ("x", ["31.01.2024 09:30", "1.2.2024 10:00"], "dates"),
        ("x", ["1/31/24", "2/1/24", ""], "dates"),
        ("x", ["Jan 31, 2024", "Mon, 1 February 2024"], "dates"),
        ("x", ["2024-01-31T09:30:00Z", "2024-02-01T09:30:00+02:00"], "dates"),
        ("x", ["9:30", "17:45:00"], "dates"),
        ("year", ["2022", "2023", "2024"], "dates"),
        ("x", ["January", "May"], "months or days of the week"),
        ("customer_id", ["C1", "C2", "C3"], "ids"),
        ("customerId", ["C1", "C2", "C3"], "ids"),
        ("Ticket ID", ["7", "8", "9"], "numbers"),
        ("annotator", ["1", "2"], "metadata"),
        ("created_at", ["a", "b"], "metadata"),
        ("_task_hash", ["a", "b"], "metadata"),
        ("answer", ["accept", "reject"], "decisions of an annotator, which do not change how a row is read"),
        ("x", ["a@b.com", "c@d.org"], "addresses"),
        ("x", ["€ 1,50", "€ 2,50"], "numbers"),
        ("x", ["10 %", "20 %"], "numbers"),
        ("x", [f"{i},{i:03d}.50" for i in range(60)], "numbers"),
        ("x", [str(i) for i in range(40)], "numbers"),
        ("x", [f"a sentence about the number {i} that is long enough for free text {i}" for i in range(9)],
         "free text"),
        ("x", ["only"], "one value, 'only'"),
        ("x", ["only", ""], "one value, 'only', besides empty cells, which mean unlabelled"),
    ],
)  # fmt: skip
def test_columns_that_are_no_heads(tmp_path: Path, name: str, cells: list[str], why: str) -> None:
    assert column_of(tmp_path, cells, name) == ({}, [f"column {name!r} is not used: {why}"])


@pytest.mark.parametrize(
    ("name", "cells", "labels"),
    [
        ("x", ["0", "1"], {"0", "1"}),
        ("x", ["0.0", "1.0", ""], {"0", "1"}),
        ("x", ["1", "2", "3", "4", "5"], {"1", "2", "3", "4", "5"}),
        ("x", ["0.5", "1.5", "2.5"], {"0.5", "1.5", "2.5"}),
        ("label_id", ["7", "8"], {"7", "8"}),
        ("android", ["yes", "no"], {"yes", "no"}),
        ("x", ["['a', 'b']", "['b']"], {"a", "b"}),
        ("x", ["['a' 'b']", "[]"], {"a", "b"}),
    ],
)
def test_columns_that_are_heads(tmp_path: Path, name: str, cells: list[str], labels: set[str]) -> None:
    assert column_of(tmp_path, cells, name)[0].keys() == {name}
    report = json.loads((tmp_path / "data_report.json").read_text("utf-8"))
    assert report["labels"][name].keys() == labels


def test_labels_to_look_at(tmp_path: Path) -> None:
    _, notes = column_of(tmp_path, ["High", "high", "n/a", "?"])
    assert notes == [
        "'High' and 'high' are different labels",
        "'?' is a label, and so is 'n/a' (empty the cells if they mean unlabelled)",
    ]


def test_spellings_of_labels(tmp_path: Path) -> None:
    _, notes = column_of(tmp_path, ["caf\u00e9", "cafe\u0301", "th\u00e9"])
    assert notes == ["Other spellings that are read as these labels: 1"]


def test_lists_of_one_label_are_one_label(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": ["ab"[i % 2]] if i else []} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert proposed(tmp_path / "a.jsonl")[1] == {"label": {"column": "label"}}


def test_choices_of_label_studio(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "topics": {"choices": ["a", "b"]} if i % 2 else "a"} for i in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert proposed(tmp_path / "a.json")[1] == {"topics": {"column": "topics", "kind": "multi_label"}}


def test_some_invalid_rows_do_not_stop_a_proposal(tmp_path: Path) -> None:
    rows = [f"{f'text {i}' if i % 20 else ''},{'ab'[i % 3 % 2]}" for i in range(100)]
    recipe, _, notes = proposed(write(tmp_path / "a.csv", "text,label", rows))
    assert recipe.data.max_bad_rows == 0.05
    assert notes == ["5 rows are dropped: empty text, first a.csv:2"]
    rows = [f"{f'text {i}' if i % 3 else ''},{'ab'[i % 2]}" for i in range(99)]
    with pytest.raises(DataError, match="33 of 99 rows are invalid"):
        propose(write(tmp_path / "b.csv", "text,label", rows), root=tmp_path)


@pytest.mark.parametrize("header", ["hello there my friend how are you,spam", "some short text,spam"])
def test_a_file_without_a_header(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.csv", header, [f"text {i},{('spam', 'ham')[i % 2]}" for i in range(40)])
    with pytest.raises(DataError, match="the first row looks like data, expected the names of columns"):
        propose(path, root=tmp_path)


def test_a_column_with_the_name_of_a_label(tmp_path: Path) -> None:
    rows = [f"text {i},{('spam', 'ham')[i % 2]}" for i in range(40)]
    assert proposed(write(tmp_path / "a.csv", "customer message,spam", rows))[1] == {
        "spam": {"column": "spam"}
    }


def test_a_folder_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    for label in ("lob", "tadel"):
        lines = [f"größe {i}" if label == "tadel" else f"{i}" for i in range(20)]
        (tmp_path / f"mail/{label}.txt").write_text("\n".join(lines), encoding="cp1252")
    (tmp_path / "mail/lob.txt").write_text("\n".join(f"fine {i}" for i in range(20)))
    recipe, heads, _ = proposed(tmp_path / "mail")
    assert (recipe.data.encoding, heads) == ("cp1252", {"label": {"column": "label"}})


def test_a_file_of_another_encoding(tmp_path: Path) -> None:
    rows = [f"größe {i},{('Rückgabe', 'Lob')[i % 2]}" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]), encoding="cp1252")
    recipe, _, _ = proposed(tmp_path / "a.csv")
    assert recipe.data.encoding == "cp1252"


def test_an_exact_name_is_the_train_file(tmp_path: Path) -> None:
    for name in ("x_train.csv", "train.jsonl", "oos_train.csv", "test.csv", "sample.csv", "~$train.xlsx"):
        lines = [f"{name} {i},{'ab'[i % 2]}" for i in range(40)]
        objects = [{"text": f"{i}th text", "label": "ab"[i % 2]} for i in range(40)]
        content = map(json.dumps, objects) if name.endswith("jsonl") else ["text,label", *lines]
        (tmp_path / name).write_text("\n".join(content))
    text = propose(tmp_path, root=tmp_path)
    assert "  train: train.jsonl " in text and "  test: test.csv " in text
    assert "# files that are not used: sample.csv, x_train.csv, oos_train.csv" in text


def test_a_folder_with_one_file_or_with_many(tmp_path: Path) -> None:
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    write(tmp_path / "mails.csv", "text,label", rows)
    assert "  train: mails.csv " in propose(tmp_path, root=tmp_path)
    write(tmp_path / "more.csv", "text,label", rows)
    with pytest.raises(DataError, match=r"several files and no train file: more.csv, mails.csv \(name one"):
        propose(tmp_path, root=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no file that can be read, expected one of: \.csv"):
        propose(tmp_path / "empty", root=tmp_path)


def test_very_many_columns(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "votes": {f"user{i}": 1}} for i in range(1200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, heads, notes = proposed(tmp_path / "a.jsonl")
    assert heads == {"label": {"column": "label"}}
    assert notes[0] == "only the first 1,000 of 1,203 columns were read"
    assert len(notes) == 42 and notes[-1] == "957 more columns are not used"


def test_title_and_body(tmp_path: Path) -> None:
    rows = [f"title {i},the body of it {i},{'ab'[i % 2]}" for i in range(40)]
    _, _, notes = proposed(write(tmp_path / "a.csv", "title,body,label", rows))
    assert notes[-1] == "`text: [title, body]` would read title and body as one text, on two lines"


def test_rows_are_those_of_the_file(tmp_path: Path) -> None:
    rows = [f"text {i // 2},{'ab'[i // 2 % 2]}" for i in range(40)]
    write(tmp_path / "test.csv", "text,label", rows[:10])
    text = propose(write(tmp_path / "train.csv", "text,label", rows), root=tmp_path)
    assert re.search(r"train: train.csv +# 40 rows\n", text) and re.search(
        r"test: test.csv +# 10 rows\n", text
    )
    assert "# 10 rows are removed: text of train in test, first train.csv:2\n" in text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("text\na\nb\n", "a.csv: no column looks like labels"),
        ("x,y\n1,2\n3,4\n", "a.csv: no column looks like text, .* the columns are: 'x', 'y'"),
        ("text,label\n", "a.csv: no column looks like text"),
    ],
)
def test_nothing_to_propose(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=what):
        propose(tmp_path / "a.csv", root=tmp_path)
