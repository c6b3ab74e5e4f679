import codecs
import csv
import json
import os
import struct
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data.sources import MARK, DataError, Row, fingerprint, open_source
from distill.recipe.data_sources import Hub


def read(root: Path, source: Any, *columns: str, **options: Any) -> list[Row]:
    opened = open_source(source, root, **options)
    return list(opened.rows(columns or opened.columns))


def error(root: Path, source: Any, *columns: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(root, source, *columns, **options)
    return str(caught.value)


def test_csv_cells_stay_strings(tmp_path: Path) -> None:
    words = ["NA", "None", "null", "nan", "", "1.0", "007", "true", " a ", "#N/A"]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t,{word}\n" for word in words))
    assert [row.cells[0] for row in read(tmp_path, "a.csv", "label")] == words


def test_csv_lines_count_breaks_in_cells_and_blank_lines(tmp_path: Path) -> None:
    content = 'text,label\r\n"two\r\nlines",a\r\n\r\n  \r\n"a ""quote"", a comma",b\r\nlast,c'
    (tmp_path / "a.csv").write_bytes(codecs.BOM_UTF8 + content.encode())
    assert read(tmp_path, "a.csv") == [
        Row("a.csv", 2, ("two\r\nlines", "a")),
        Row("a.csv", 6, ('a "quote", a comma', "b")),
        Row("a.csv", 7, ("last", "c")),
    ]


def test_columns_are_in_the_requested_order_and_may_repeat(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\tc\n1\t2,2\t3\n")
    assert read(tmp_path, "a.tsv", "c", "b", "c")[0].cells == ("3", "2,2", "3")
    pq.write_table(pa.table({"a": ["1"], "b": ["2"], "c": ["3"]}), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet", "c", "b", "c")[0].cells == ("3", "2", "3")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_may_be_separated_by_semicolons_or_tabs(tmp_path: Path, mark: str) -> None:
    content = f'text{mark}label\n"one{mark} two, three"{mark}a\nfour, five{mark}b\n'
    (tmp_path / "a.csv").write_bytes(codecs.BOM_UTF8 + content.encode())
    assert read(tmp_path, "a.csv") == [
        Row("a.csv", 2, (f"one{mark} two, three", "a")),
        Row("a.csv", 3, ("four, five", "b")),
    ]
    (tmp_path / "a.csv").write_text(f"text{mark}label\nhello{mark}a{mark}b\n")
    assert error(tmp_path, "a.csv").startswith(
        f"a.csv:2: 3 cells, expected 2 (quote a cell that contains {mark!r}"
    )


def test_a_comma_in_the_header_is_the_separator(tmp_path: Path) -> None:
    for header in ("text,a;b;c", 'text,a;"b'):
        (tmp_path / "a.csv").write_text(f"{header}\nhello; you,x\n")
        assert read(tmp_path, "a.csv") == [Row("a.csv", 2, ("hello; you", "x"))]


@pytest.mark.parametrize("line", ["sep=|\n", '"sep=|"\r\n', "\ufeffSEP=|\n"])
def test_the_line_by_which_excel_names_the_separator(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.csv").write_text(line + "text|label\na, b|c\nd\n", encoding="utf-8")
    rows = open_source("a.csv", tmp_path).rows(["text", "label"])
    assert next(rows) == Row("a.csv", 3, ("a, b", "c"))
    with pytest.raises(DataError, match=r"^a\.csv:4: 1 cells, expected 2"):
        next(rows)


def test_a_column_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text,label\n0,a,b\n")
    assert read(tmp_path, "a.csv") == [Row("a.csv", 2, ("0", "a", "b"))]


def test_cells_of_many_kibibytes_and_nul_bytes_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + b"x" * 300_000 + b",a\nnul\0here,b\n")
    assert [row.cells for row in read(tmp_path, "a.csv")] == [("x" * 300_000, "a"), ("nul\0here", "b")]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 3),
    cells=st.lists(st.text(st.sampled_from('a ",;\n\r\t\\é'), max_size=5), min_size=1, max_size=24),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_reads_what_csv_wrote(tmp_path: Path, width: int, cells: list[str], quoting: Any) -> None:
    rows = [tuple((cells[i:] + cells)[:width]) for i in range(len(cells))]
    rows = [row for row in rows if len(row) == width and any(map(str.strip, row))]
    with (tmp_path / "fuzz.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=quoting).writerows([[f"c{i}" for i in range(width)], *rows])
    assert [row.cells for row in read(tmp_path, "fuzz.csv")] == rows


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_bytes_that_are_not_utf8_become_marks_in_their_row(tmp_path: Path, ending: str) -> None:
    head, before, after = {
        ".csv": ("text\n", "", ""),
        ".txt": ("", "", ""),
        ".jsonl": ("", '{"text": "', '"}'),
    }[ending]
    lines = [f"{before}{text}{after}\n".encode() for text in ("good é", "caf@", "again")]
    (tmp_path / f"a{ending}").write_bytes(head.encode() + b"".join(lines).replace(b"@", b"\xe9"))
    assert [row.cells[0] for row in read(tmp_path, f"a{ending}")] == ["good é", "caf" + MARK, "again"]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ("text,label\na,b\nc\nd,e\n", 3, "1 cells, expected 2"),
        ("text,label\na,b\nc,d,e\n", 3, "3 cells, expected 2"),
        ("text,label\na,b,c\nd,e,f\n", 2, "3 cells, expected 2"),
        ('text,label\n"a\nb",c\nd, e, f\n', 4, "3 cells, expected 2"),
        ('text,label\na,b\n"c,d\ne,f\n', 3, "cells"),
        ('text\na\n"b\nc\n', 3, "never closed"),
        ('text,label\na,"b', 2, "never closed"),
    ],
)
def test_malformed_csv_names_the_line(tmp_path: Path, content: str, line: int, what: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    message = error(tmp_path, "a.csv")
    assert message.startswith(f"a.csv:{line}: ") and what in message and "\n" not in message


def test_ragged_row_far_down_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "a,b\n" * 25_000 + "a,b,c\n" + "a,b\n" * 10)
    assert error(tmp_path, "a.csv").startswith("a.csv:25002: 3 cells")


def test_jsonl_keeps_types_and_lines(tmp_path: Path) -> None:
    rows = ['{"text": "a", "label": 1, "tags": ["x"]}', "", '{"text": null, "label": "1.0", "other": 1}']
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    opened = open_source("a.jsonl", tmp_path)
    assert opened.columns == ("text", "label", "tags", "other")
    assert list(opened.rows(["text", "label", "tags"])) == [
        Row("a.jsonl", 1, ("a", 1, ["x"])),
        Row("a.jsonl", 3, (None, "1.0", None)),
    ]


def test_keys_that_first_appear_late_in_a_jsonl_file_are_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 3000 + '{"text": "b", "urgent": "yes"}\n')
    assert read(tmp_path, "a.jsonl", "urgent")[-1].cells == ("yes",)


def test_dates_in_json_stay_strings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "2020-01-01"}\n{"text": "2020-01-02"}\n')
    assert [row.cells for row in read(tmp_path, "a.json")] == [("2020-01-01",), ("2020-01-02",)]


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '"word"', "[" * 100_000])
def test_malformed_json_names_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    assert error(tmp_path, "a.jsonl").startswith("a.jsonl:2: is not a JSON object")


def test_txt_has_one_text_per_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo, \xe2\x80\xa8too\r\n")
    assert read(tmp_path, "a.txt", "body", text="body") == [
        Row("a.txt", 1, ("one",)),
        Row("a.txt", 3, ("two, \u2028too",)),
    ]


def test_folder_of_txt_files_has_one_class_per_file(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail/spam.txt").write_text("buy\n\nnow\n")
    (tmp_path / "mail/ham.txt").write_text("hello\n")
    assert read(tmp_path, "mail", "label", "text") == [
        Row("mail/ham.txt", 1, ("ham", "hello")),
        Row("mail/spam.txt", 1, ("spam", "buy")),
        Row("mail/spam.txt", 3, ("spam", "now")),
    ]


def test_parquet_gives_rows_and_names_of_classes(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": label, "all": datasets.List(label)}
    )
    rows = {"text": ["a", "b"], "label": [1, None], "all": [[0, 1], None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet") == [
        Row("a.parquet", "row 1", ("a", "yes", ["no", "yes"])),
        Row("a.parquet", "row 2", ("b", None, None)),
    ]


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"caf\xe9", None], pa.binary())
    pq.write_table(
        pa.table({"text": texts.cast(pa.string(), safe=False), "raw": texts}), tmp_path / "a.parquet"
    )
    cells = [("good", "good"), ("caf" + MARK, "caf" + MARK), (None, None)]
    assert [row.cells for row in read(tmp_path, "a.parquet")] == cells


def test_saved_data_set_and_its_splits(tmp_path: Path) -> None:
    part = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test", "extra")}
    part["train"].save_to_disk(tmp_path / "one")
    datasets.DatasetDict(part).save_to_disk(tmp_path / "many")
    assert read(tmp_path, "one", role="test")[0].cells == ("train",)
    assert read(tmp_path, "many", role="test")[0].cells == ("test",)
    assert read(tmp_path, "many#extra", role="test") == [Row("many#extra", "row 1", ("extra",))]
    assert "no split 'extr' (did you mean 'extra'?)" in error(tmp_path, "many#extr")
    assert "no split 'unlabeled'" in error(tmp_path, "many", role="unlabeled")


def test_a_damaged_saved_data_set(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["abc", "def", "ghi"]}).save_to_disk(tmp_path / "saved")
    [file] = (tmp_path / "saved").glob("*.arrow")
    ends = struct.pack("<4i", 0, 3, 6, 9)
    content = file.read_bytes()
    assert content.count(ends) == 1
    file.write_bytes(content.replace(ends, struct.pack("<4i", 0, 3, 6, 2**30)))
    assert error(tmp_path, "saved").startswith("saved: cannot be read: ArrowInvalid")


def test_hub_data_is_streamed_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(hub: str, config: str, **options: Any) -> Any:
        seen.update(options, hub=hub, config=config)
        return datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Hub(hub="org/data", config="en", split="test", revision="abc")
    assert read(tmp_path, source, "label") == [Row("hub org/data", "row 1", ("b",))]
    assert seen == {"hub": "org/data", "config": "en", "split": "test", "revision": "abc", "streaming": True}


def test_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(hub: str, config: str | None, **options: Any) -> Any:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = error(tmp_path, Hub(hub="org/data"))
    assert message.startswith("hub org/data: hub unreachable") and "ConnectionError: no route" in message


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("trian.csv", "trian.csv: no such file or folder in .* \\(did you mean 'train.csv'\\?\\)"),
        ("empty.csv", "empty.csv: is empty"),
        ("blank.txt", "blank.txt: is empty"),
        ("a.xlsx", "a.xlsx: cannot be read: BadZipFile"),
        ("a.xls", "a.xls: cannot be read, expected one of: .csv, .* folder of .txt files .save it as .xlsx"),
        ("folder", "folder: cannot be read, expected one of: .csv"),
        ("broken.parquet", "broken.parquet: cannot be read: ArrowInvalid"),
        ("latin.csv", "latin.csv:1: the header is not UTF-8 .set data.encoding, probably to cp1252"),
        ("train.csv#test", "train.csv#test: no such file"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path: Path, source: str, what: str) -> None:
    (tmp_path / "train.csv").write_text("text\na\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "blank.txt").write_text("\ufeff\n \n")
    (tmp_path / "a.xlsx").write_text("PK")
    (tmp_path / "broken.parquet").write_text("PAR1 or not")
    (tmp_path / "a.xls").write_text("x")
    (tmp_path / "latin.csv").write_text("text,größe\nwie groß,groß\n", encoding="cp1252")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"^{what}"):
        read(tmp_path, source)


def test_all_missing_columns_are_reported_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,intent\na,b\n")
    assert error(tmp_path, "a.csv", "txt", "domain").splitlines() == [
        "a.csv: no column 'txt' (did you mean 'text'?), the columns are: 'text', 'intent'",
        "a.csv: no column 'domain', the columns are: 'text', 'intent'",
    ]
    assert len(error(tmp_path, "a.csv", "x" * 99_000)) < 200


@pytest.mark.parametrize("name", ["pipe.csv", "pipe.jsonl"])
def test_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert error(tmp_path, name).startswith(f"{name}: is not a regular file")


def test_header_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    assert read(tmp_path, "a.csv") == []


def test_names_with_wildcards_and_hidden_folders(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden [x]*?"
    folder.mkdir()
    for name in ("a[1].csv", "a1.csv"):
        (folder / name).write_text(f"text\n{name}\n")
    assert read(folder, "a[1].csv")[0].cells == ("a[1].csv",)


def test_reading_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = set(cache.iterdir()) if cache.exists() else None
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert read(tmp_path, name)[0].cells == ("a",)
    assert (set(cache.iterdir()) if cache.exists() else None) == before


def test_rows_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "a,b\n" * 60_000 + "ragged\n")
    rows = open_source("a.csv", tmp_path).rows(["text"])
    assert [next(rows).place for _ in range(3)] == [2, 3, 4]  # the ragged row at the end is not read yet


def test_fingerprint_follows_content_and_split(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "b.csv").write_text("text\na\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/x.txt").write_text("a\n")
    first = fingerprint("a.csv", tmp_path)
    assert first == fingerprint("b.csv", tmp_path) and len(first) == 64
    (tmp_path / "b.csv").write_text("text\nb\n")
    folder = fingerprint("c", tmp_path)
    (tmp_path / "c/x.txt").rename(tmp_path / "c/y.txt")
    prints = [first, fingerprint("b.csv", tmp_path), folder, fingerprint("c", tmp_path)]
    prints += [fingerprint("c#a", tmp_path), fingerprint("c#b", tmp_path)]
    prints += [fingerprint(Hub(hub="a", revision=r), tmp_path) for r in ("1", "2")]
    assert len(set(prints)) == len(prints)


def test_json_escapes_reach_the_cells(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a\nb é \u2028"}) + "\n")
    assert read(tmp_path, "a.jsonl") == [Row("a.jsonl", 1, ("a\nb é \u2028",))]


def test_text_files_are_read_with_the_base_install(tmp_path, run_blocked):
    (tmp_path / "a.csv").write_text("text,label\nhello,x\n", "utf-8")
    code = "from pathlib import Path\nfrom distill.data.sources import open_source\n"
    read = "print([row.cells for row in open_source('a.csv', Path()).rows(['label', 'text'])])"
    done = run_blocked(code + read, tmp_path)
    assert done.stdout == "[('x', 'hello')]\n", done.stderr
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    done = run_blocked(f"{code}open_source('a.parquet', Path())", tmp_path)
    assert "ModuleNotFoundError" in done.stderr  # which the command answers with the extra
