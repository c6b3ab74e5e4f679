"""Files as people export them: encodings, separators, quotes, and shapes of JSON and worksheets."""

import codecs
import datetime
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data.columns import ADDRESS
from distill.data.sources import DataError, find_encoding, open_source

ROWS = [("wie groß?", "ask"), ("déjà vu", "tell"), ("“quoted” – 20 €", "ask")]


def read(path: Path, *columns: str, **options: Any) -> list[tuple[object, ...]]:
    name = options.pop("name", path.name)
    opened = open_source(name, path.parent, **options)
    return [row.cells for row in opened.rows(columns or opened.columns)]


def error(path: Path, *columns: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, *columns, **options)
    return str(caught.value)


# encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_byte_order_mark_gives_the_encoding(tmp_path: Path, encoding: str, separator: str) -> None:
    content = "\r\n".join([f"text{separator}label", *map(separator.join, ROWS)])
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    assert read(tmp_path / "a.csv", encoding="cp1252") == ROWS
    assert find_encoding(tmp_path / "a.csv") is None


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".txt"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be", "utf-8"])
def test_the_encoding_of_the_recipe(tmp_path: Path, ending: str, encoding: str) -> None:
    objects = [{"text": text, "label": label} for text, label in ROWS]
    content = {
        ".csv": "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS),
        ".jsonl": "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects),
        ".json": json.dumps(objects, ensure_ascii=False),
        ".txt": "".join(f"{text}\n" for text, _ in ROWS),
    }[ending]
    path = tmp_path / f"a{ending}"
    path.write_bytes(content.encode(encoding))
    expected = [row[:1] for row in ROWS] if ending == ".txt" else ROWS
    assert read(path, encoding=encoding) == expected
    assert find_encoding(path) == (None if encoding == "utf-8" else encoding)


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_without_a_byte_order_mark(tmp_path: Path, order: str) -> None:
    content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
    (tmp_path / "a.csv").write_bytes(content.encode(f"utf-16-{order}"))
    assert read(tmp_path / "a.csv", encoding="UTF16") == ROWS


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Die Lieferung ist zu spät, ich möchte mein Geld zurück"),
        ("cp1250", "Gdzie jest moja paczka? Świetna obsługa, dziękuję"),
        ("cp1251", "Где моя посылка? Верните деньги, пожалуйста"),
        ("cp932", "荷物はどこですか？返金してください。"),
    ],
)
def test_encodings_are_found(tmp_path: Path, encoding: str, text: str) -> None:
    lines = ["text,label", *["an ascii text,a"] * 500, *[f"{text} {i},b" for i in range(50)]]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding=encoding)
    assert find_encoding(tmp_path / "a.csv") == encoding


def test_utf_8_is_read_as_utf_8_whatever_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + ("ascii" * 200 + "\n") * 1500 + "größe\n", encoding="utf-8")
    assert read(tmp_path / "a.csv", encoding="cp1252")[-1] == ("größe",)
    (tmp_path / "b.csv").write_text("text\n荷物\n", encoding="iso2022_jp")  # ASCII bytes alone
    assert read(tmp_path / "b.csv", encoding="iso2022_jp") == [("荷物",)]


# separators, quotes and columns


def test_a_separator_that_makes_all_rows_equally_wide(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text, as sent;label\na, b, c;x\nd;y\n")
    assert read(tmp_path / "a.csv", "text, as sent", "label") == [("a, b, c", "x"), ("d", "y")]


def test_unicode_text_of_excel(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('text\tlabel\r\n"one ""1""\nline"\ta\r\ntwo\tb\r\n', encoding="utf-16")
    assert read(tmp_path / "a.txt") == [('one "1"\nline', "a"), ("two", "b")]
    (tmp_path / "b.txt").write_text("a\ttab\nno tab\n")
    assert read(tmp_path / "b.txt") == [("a\ttab",), ("no tab",)]


@pytest.mark.parametrize(
    ("content", "columns", "rows"),
    [
        ("text,label,,\na,b,,\nc,d\n", ("text", "label"), [("a", "b"), ("c", "d")]),
        ("text,label\na,b,,\nc,d,\n", ("text", "label"), [("a", "b"), ("c", "d")]),
        ("text,label\na,b\n,\n , \n,,,\n", ("text", "label"), [("a", "b")]),
        ("text,,\na,,x\nb,,y\n", ("text", ""), [("a", "x"), ("b", "y")]),
        (",text\n0,a\n1,b\n", ("", "text"), [("0", "a"), ("1", "b")]),
    ],
    ids=["header", "rows", "blank rows", "unnamed with content", "index"],
)
def test_columns_and_cells_that_spreadsheets_add(
    tmp_path: Path, content: str, columns: tuple[str, ...], rows: list[Any]
) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert open_source("a.csv", tmp_path).columns == columns
    assert read(tmp_path / "a.csv") == rows


def test_repeated_names_stop_only_who_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,note,note,,\na,b,c,d,e\n")
    assert read(tmp_path / "a.csv", "text") == [("a",)]
    assert error(tmp_path / "a.csv", "note") == "a.csv: two columns have the name 'note' (rename one)"
    assert error(tmp_path / "a.csv", "") == "a.csv: two columns have no name (rename one)"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text,label\n"Hello,a\nfoo,b\nhe said "hi" to,c\n', 2),
        ('text,label\nx,y\n"great" product,a\n', 3),
        ('text,label\nx,y\n"open,a\n' + "more,b\n" * 1000 + '"a, b",c\n', 3),
    ],
)
def test_a_quote_that_is_not_closed_does_not_swallow_rows(tmp_path: Path, content: str, line: int) -> None:
    (tmp_path / "a.csv").write_text(content)
    message = error(tmp_path / "a.csv")
    assert message.startswith(f"a.csv:{line}: a quote inside a cell is not written twice, or one is never")


def test_quotes_escaped_by_backslashes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"text","label"\n"say \\"hi\\", you","a"\n"C:\\\\dir",\\N\n')
    assert read(tmp_path / "a.csv") == [('say "hi", you', "a"), ("C:\\dir", None)]


def test_tabs_without_quoting(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"great" product\ta\n5" nail\tb\n"open\ta\n')
    assert read(tmp_path / "a.tsv") == [('"great" product', "a"), ('5" nail', "b"), ('"open', "a")]


def test_dump_of_a_database(tmp_path: Path) -> None:
    rows = ["id\ttext\tlabel", '1\t"no" he said\\tthen\\nleft \\\\o/\task', "2\tC:\\\\new\t\\N"]
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n")
    assert read(tmp_path / "a.tsv") == [
        ("1", '"no" he said\tthen\nleft \\o/', "ask"),
        ("2", "C:\\new", None),
    ]
    (tmp_path / "b.csv").write_text("text,label\na,\\N\nb\\n,x\n")
    assert read(tmp_path / "b.csv") == [("a", None), ("b\\n", "x")]


# JSON


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
@pytest.mark.parametrize("indent", [0, 2])
def test_what_pandas_writes(tmp_path: Path, orient: Any, indent: int) -> None:
    frame = pd.DataFrame({"text": [f"t {i}" for i in range(5)], "label": list("ababa")})
    frame.to_json(tmp_path / "a.json", orient=orient, indent=indent or None)
    expected = [tuple(row) for row in frame.itertuples(index=False)]
    assert read(tmp_path / "a.json", "text", "label") == expected


def test_names_and_rows_of_other_types_in_what_pandas_writes(tmp_path: Path) -> None:
    pd.DataFrame([["a", "b"]]).to_json(tmp_path / "a.json", orient="split")
    assert read(tmp_path / "a.json", "1", "0") == [("b", "a")]
    (tmp_path / "a.json").write_text('{"columns": ["text", {"a": []}], "data": [["a", 1]]}')
    assert read(tmp_path / "a.json", "text") == [("a",)]
    (tmp_path / "a.json").write_text('{"columns": ["text"], "data": [["a"], 3]}')
    assert "row 2: is not a JSON object" in error(tmp_path / "a.json")


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "label": 1},\n{"text": "b"}]',
        '\ufeff\n[\n{"text": "a", "label": 1}, {"text": "b"}\n]\n',
        '{"text": "a", "label": 1}\n\n{"text": "b"}',
        '{\n"text": "a",\n"label": 1}\n{\n"text": "b"}\n',
        '{"text": "a", "label": 1} {"text": "b"}',
        '{"version": 1, "data": [{"text": "a", "label": 1}, {"text": "b"}]}',
    ],
    ids=["array", "marked array", "lines", "indented", "one line", "in an object"],
)
def test_shapes_of_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert read(tmp_path / "a.json", "text", "label") == [("a", 1), ("b", None)]


def test_an_array_that_is_broken_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n{"text": "a"},\n{"text": }\n]')
    assert error(tmp_path / "a.json").startswith("a.json:3: is not a JSON object: Expecting value")
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3]')
    assert error(tmp_path / "a.json").startswith("a.json:row 2: is not a JSON object: got int")


def test_paths_into_objects(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"data": {"text": "a"}, "annotations": [{"result": [{"value": {"choices": ["x"]}}]}], "a.b": 1},
        {"data": {"text": "b"}, "annotations": [], "meta": [{"k": 1}, {"k": 2}]},
        {"data": None, "annotations": None, "a": {"b": 2}},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    columns = open_source("a.json", tmp_path).columns
    assert "data.text" in columns and "annotations.0.result.0.value" in columns
    assert read(tmp_path / "a.json", "data.text", "annotations.0.result.0.value", "a.b") == [
        ("a", ["x"], 1),
        ("b", None, None),
        (None, None, 2),
    ]
    assert "no column 'data.txt' (did you mean 'data.text'?)" in error(tmp_path / "a.json", "data.txt")


@pytest.mark.parametrize("deep", ["[" * 50_000 + "]" * 50_000, '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_deep_nesting_in_a_field_that_nobody_reads(tmp_path: Path, deep: str) -> None:
    line = '{"text": "one [ \\" {", "deep": ' + deep + ', "label": "x"}'
    for name, content in (("a.jsonl", f'{line}\n{{"text": "two"}}\n'), ("b.json", f"[{line}]")):
        (tmp_path / name).write_text(content)
        assert read(tmp_path / name, "text", "label")[0] == ('one [ " {', "x")


def test_an_integer_of_many_digits_in_a_field_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": ' + "9" * 5000 + "}\n")
    assert read(tmp_path / "a.jsonl", "text") == [("a",)]


def test_a_key_that_comes_late_among_very_many(tmp_path: Path) -> None:
    rows = [{"text": "a", "votes": {f"user{i}": 1}} for i in range(1000)]
    rows.append({"text": "b", "votes": {"late": 2}})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "a.jsonl", "votes.late")[-1] == (2,)


def test_time_grows_with_the_size_of_a_file_alone(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(50_000)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(["text", *names]), "a" + ",0" * 50_000]))
    (tmp_path / "a.json").write_text("[" * 200 + '"' + '\\"' * 50_000)
    assert read(tmp_path / "a.csv")[0][:2] == ("a", "0")
    assert "is not a JSON object" in error(tmp_path / "a.json")
    assert ADDRESS.fullmatch("a@a." * 50_000) is None and ADDRESS.fullmatch("jo.e@mail.example.org")


# worksheets


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_worksheet(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 1)
    rows = [["text", "stars", "day", None], ["a", 5, day, "x"], [], [None, None], ["b", 4.5], ["#N/A", True]]
    path = workbook(tmp_path / "a.xlsx", empty=[], main=rows, other=[["text"], ["z"]])
    assert open_source("a.xlsx", tmp_path).columns == ("text", "stars", "day", "")
    found = read(path)
    assert found[:2] == [("a", 5, day, "x"), ("b", 4.5, None, None)] and found[2][1] is True
    assert read(path, name="a.xlsx#other") == [("z",)]
    assert "no sheet 'othr' (did you mean 'other'?)" in error(path, name="a.xlsx#othr")


def test_a_title_above_a_worksheet(tmp_path: Path) -> None:
    rows: list[list[Any]] = [["Report of May"], ["all teams"], [], ["text", "label"], ["a", "x"], ["b", "y"]]
    assert read(workbook(tmp_path / "a.xlsx", s=rows)) == [("a", "x"), ("b", "y")]
    rows = [["text"], ["a", "x"], ["b", "y"]]
    assert read(workbook(tmp_path / "b.xlsx", s=rows), "text", "") == [("a", "x"), ("b", "y")]
    assert read(workbook(tmp_path / "c.xlsx", s=[["text"], ["a"], [], ["b"]])) == [("a",), ("b",)]


@pytest.mark.parametrize("size", ["A1", "A1:XFD1048576"])
def test_cells_of_a_worksheet_whatever_its_size_says(tmp_path: Path, size: str) -> None:
    path = workbook(tmp_path / "a.xlsx", s=[["text", "label"], ["a", "x"]])
    last = '<row r="1048576"><c r="A1048576"><v>1</v></c><c r="XFD1048576"><v>2</v></c></row></sheetData>'

    def change(row: str) -> None:
        with zipfile.ZipFile(path) as book:
            parts = {name: book.read(name).decode() for name in book.namelist()}
        sheet = re.sub(
            '<dimension ref="[^"]*"', f'<dimension ref="{size}"', parts["xl/worksheets/sheet1.xml"]
        )
        parts["xl/worksheets/sheet1.xml"] = sheet.replace("</sheetData>", row)
        with zipfile.ZipFile(path, "w") as book:
            for name, content in parts.items():
                book.writestr(name, content)

    change(last)
    assert read(path) == [("a", "x", None), (1, None, 2)]
    change('<row r="99999999999"><c r="A1"><v>1</v></c></row></sheetData>')
    assert "a row after row 1,048,576" in error(path)


def test_openpyxl_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx", s=[["text"], ["a"]])
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(ModuleNotFoundError):
        read(path)


PARTS = [
    "text",
    "label",
    ",",
    ";",
    "\t",
    "\n",
    "\r",
    '"',
    "'",
    "\\",
    "\\N",
    "\0",
    "[",
    "]",
    "{",
    "}",
    ":",
    "é",
    "\ufeff",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=80)
    | st.lists(st.sampled_from(PARTS), max_size=40).map(lambda p: "".join(p).encode()),
    ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".txt", ".xlsx"]),
    encoding=st.sampled_from([None, "cp1252", "utf-16-le"]),
)
def test_any_bytes_are_rows_or_one_line(tmp_path: Path, content: bytes, ending: str, encoding: Any) -> None:
    (tmp_path / f"a{ending}").write_bytes(content)
    try:
        opened = open_source(f"a{ending}", tmp_path, encoding=encoding)
        for row in opened.rows([column for column in opened.columns if column not in opened.repeated]):
            assert row.file == f"a{ending}"
    except DataError as problem:
        assert "\n" not in str(problem) and len(str(problem)) < 2000


def test_a_file_of_marks_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(codecs.BOM_UTF16_LE + "\r\n".encode("utf-16-le"))
    assert error(tmp_path / "a.csv") == "a.csv: is empty, expected rows of text"


def test_paths_into_lists_of_several_objects(tmp_path: Path) -> None:
    """As Label Studio writes the answers to two questions about a text."""
    rows = [
        {"text": text, "result": [{"value": {"choices": [one]}}, {"value": {"choices": [other]}}]}
        for text, one, other in (("a", "x", "y"), ("b", "z", "y"))
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    source = open_source("a.jsonl", tmp_path)
    assert source.columns == ("text", "result", "result.0.value", "result.1.value")
    natural = ["result.1.value.choices", "result.0.value.choices.0"]
    assert [row.cells for row in source.rows(natural)] == [(["y"], "x"), (["y"], "z")]
    with pytest.raises(DataError, match=r"no column 'result\.2\.value'"):
        [*source.rows(["result.2.value"])]
