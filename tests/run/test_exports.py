"""Twelve files as people export them: init, check and run take each without an edit."""

import csv
import datetime
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest

from distill.cli.main import main
from distill.recipe.load import load_recipe

pytestmark = pytest.mark.exporting

ROWS = 60
TEXTS = {
    "order": ["where is my parcel, please", "my parcel is late", "the delivery of the box is late"],
    "refund": ['i want my money back, "now"', "refund the order", "when is the refund paid"],
    "praise": ["thanks, great shop", "i love the red box", "we are happy with it"],
}
GERMAN = {"order": "Bestellung", "refund": "Rückgabe", "praise": "Lob für uns"}
POLISH = {"order": "zamówienie", "refund": "zwrot pieniędzy", "praise": "pochwała, część 1"}


def rows() -> list[dict[str, Any]]:
    """Texts of three intents, one with a label of its own, and what else such tables have."""
    draw, made = random.Random(0), []
    for number in range(ROWS):
        intent = list(TEXTS)[number % 3]
        day = datetime.datetime(2024, 1 + number % 12, 1 + number % 28, 9, 30)
        made.append(
            {
                "id": 1000 + number,
                "text": f"{TEXTS[intent][number // 3 % 3]} {draw.choice(TEXTS['order'])} no. {number}",
                "intent": "other" if number == 50 else intent,
                "urgent": None if number % 7 == 0 else number % 2,
                "tags": sorted({"a", "b", "c"} - {"abc"[number % 3]})[: 1 + number % 2],
                "amount": round(draw.uniform(900, 99_000), 2),
                "day": day,
                "team": "service",
            }
        )
    return made


def write_csv(
    path: Path, header: list[str], cells: list[list[Any]], encoding: str = "utf-8", **how: Any
) -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, **how).writerows([header, *cells])


def excel_german(folder: Path) -> Path:
    """Excel in German, "CSV (separated)": cp1252, semicolons, decimal commas, two columns without content."""
    cells = [
        [r["id"], f"{r['text']}, für Müller", GERMAN.get(r["intent"], "Übriges"), "" if r["urgent"] is None
         else r["urgent"], f"{r['amount']:.2f}".replace(".", ","), f"{r['day']:%d.%m.%Y}", "", ""]
        for r in rows()
    ]  # fmt: skip
    path = folder / "kunden.csv"
    header = ["Nr", "Nachricht", "Kategorie", "Dringend", "Betrag", "Datum", "", ""]
    write_csv(path, header, cells, "cp1252", delimiter=";")
    path.write_bytes(b"sep=;\r\n" + path.read_bytes())
    return path


def excel_polish(folder: Path) -> Path:
    """Excel in Polish, "Unicode text": UTF-16, tabs, the ending .txt."""
    cells = [[f"{r['text']} źródło", POLISH.get(r["intent"], "inne"), f"{r['day']:%d.%m.%Y}"] for r in rows()]
    write_csv(folder / "zgłoszenia.txt", ["Treść", "Rodzaj", "Data"], cells, "utf-16", delimiter="\t")
    return folder / "zgłoszenia.txt"


def pandas_csv(folder: Path) -> Path:
    """pandas with its index, integers with gaps, and lists as Python writes them."""
    pd.DataFrame(rows()).drop(columns="id").to_csv(folder / "frame.csv")
    return folder / "frame.csv"


def bi_tool(folder: Path) -> Path:
    """A BI tool: byte order mark, CRLF, thousands separators, the label's column unnamed, a row of totals."""
    cells = [[r["text"], f"{r['amount']:,.2f}", f"{r['day']:%b %d, %Y}", r["intent"]] for r in rows()]
    total = ["", f"{sum(r['amount'] for r in rows()):,.2f}", "", ""]
    write_csv(
        folder / "report.csv", ["Comment", "Amount", "Day of Created", ""], [*cells, total], "utf-8-sig"
    )
    return folder / "report.csv"


def tableau(folder: Path) -> Path:
    """A crosstab of Tableau: UTF-16 and tabs in a file that ends in .csv."""
    cells = [[r["intent"], r["text"], f"{r['amount']:,.0f}"] for r in rows()]
    write_csv(folder / "crosstab.csv", ["Intent", "Message", "Amount"], cells, "utf-16", delimiter="\t")
    return folder / "crosstab.csv"


def label_studio(folder: Path) -> Path:
    """JSON-MIN of Label Studio: one array; one choice is a string, several are an object."""
    made = []
    for r in rows():
        tags = r["tags"][0] if len(r["tags"]) == 1 else {"choices": r["tags"]}
        made.append(
            {"text": r["text"], "id": r["id"], "intent": r["intent"], "tags": tags, "annotator": r["id"] % 2}
            | {"annotation_id": r["id"], "created_at": f"{r['day'].isoformat()}Z", "lead_time": r["amount"]}
        )
    (folder / "project-1.json").write_text(json.dumps(made, indent=2))
    return folder / "project-1.json"


def doccano(folder: Path) -> Path:
    """JSONL of doccano: a list of one label."""
    lines = [{"id": r["id"], "text": r["text"], "label": [r["intent"]], "Comments": []} for r in rows()]
    (folder / "admin.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "admin.jsonl"


def database(folder: Path) -> Path:
    r"""A dump of a database: tabs, quotes that are characters, \N for NULL, \n for a line break."""
    lines = ["ticket_id\tbody\tintent\turgent\tcreated"]
    for r in rows():
        urgent = "\\N" if r["urgent"] is None else r["urgent"]
        body = f'"{r["text"]}\\nsent from my phone'
        lines.append(f"{r['id']}\t{body}\t{r['intent']}\t{urgent}\t{r['day']:%Y-%m-%d %H:%M:%S}")
    (folder / "dump.tsv").write_text("\n".join(lines) + "\n")
    return folder / "dump.tsv"


def json_lines(folder: Path) -> Path:
    """JSONL of an application: nested, deep in a field that nobody reads, a key that comes late."""
    lines = []
    for number, r in enumerate(rows()):
        line = {"_id": {"$oid": f"{r['id']:024x}"}, "message": {"body": r["text"], "lang": "en"}}
        line |= {"labels": {"intent": r["intent"]}} | ({"urgent": r["urgent"]} if number > 30 else {})
        lines.append(json.dumps(line))
    lines[5] = lines[5][:-1] + ', "trace": ' + "[" * 5000 + "]" * 5000 + "}"
    (folder / "events.jsonl").write_text("\n".join(lines))
    return folder / "events.jsonl"


def json_array(folder: Path) -> Path:
    """JSON of pandas, whose default is an object of columns."""
    frame = pd.DataFrame(rows())[["text", "intent", "urgent", "day"]]
    frame.to_json(folder / "frame.json", force_ascii=False)
    return folder / "frame.json"


def parquet(folder: Path) -> Path:
    """Parquet with typed columns: lists, dates, floats of integers with gaps."""
    pd.DataFrame(rows()).to_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def excel_workbook(folder: Path) -> Path:
    """A workbook: a title above the table, dates, an error in a cell, a second sheet."""
    book = openpyxl.Workbook()
    sheet = book.active
    for line in (["Messages of the year"], [], ["Ticket ID", "Message", "Intent", "Priority", "Day"]):
        sheet.append(line)
    for r in rows():
        priority = {None: "n/a", 0: "high", 1: "High"}[r["urgent"]]
        sheet.append([r["id"], r["text"], r["intent"], priority, r["day"]])
    sheet["E10"] = "#N/A"
    book.create_sheet("Notes").append(["made by hand"])
    book.save(folder / "messages.xlsx")
    return folder / "messages.xlsx"


# the files, and the heads that init finds in each: its labels
INTENTS = {"order", "refund", "praise"}
EXPORTS: list[tuple[Callable[[Path], Path], dict[str, set[str]]]] = [
    (excel_german, {"Kategorie": {"Bestellung", "Rückgabe", "Lob für uns"}, "Dringend": {"0", "1"}}),
    (excel_polish, {"Rodzaj": {"zamówienie", "zwrot pieniędzy", "pochwała, część 1"}}),
    (pandas_csv, {"intent": INTENTS, "urgent": {"0", "1"}, "tags": {"a", "b", "c"}}),
    (bi_tool, {"head": INTENTS}),
    (tableau, {"Intent": INTENTS}),
    (label_studio, {"intent": INTENTS, "tags": {"a", "b", "c"}}),
    (doccano, {"label": INTENTS}),
    (database, {"intent": INTENTS, "urgent": {"0", "1"}}),
    (json_lines, {"intent": INTENTS, "urgent": {"0", "1"}}),
    (json_array, {"intent": INTENTS, "urgent": {"0", "1"}}),
    (parquet, {"intent": INTENTS, "urgent": {"0", "1"}, "tags": {"a", "b", "c"}}),
    (excel_workbook, {"Intent": INTENTS, "Priority": {"n/a", "high", "High"}}),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Any) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("teacher"), hidden=16)


@pytest.mark.parametrize(("make", "heads"), EXPORTS, ids=[make.__name__ for make, _ in EXPORTS])
def test_init_check_and_run_without_an_edit(
    tmp_path: Path, make: Any, heads: dict[str, set[str]], teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["init", str(make(tmp_path)), "--out", recipe, "--teacher", str(teacher)]) == 0
    assert {*load_recipe(recipe).heads} == heads.keys(), capfd.readouterr().out
    assert main(["check", recipe, "--no-measure"]) == 0, capfd.readouterr().err
    quick = {
        "teacher.epochs": 1,
        "student.epochs": 1,
        "student.start": "random",
        "augment.copies": 0,
        "trackers": "[]",
        "gates.allow": json.dumps([*heads]),  # an epoch is too little for a decision to be sure
    }
    settings = [word for key, value in quick.items() for word in ("--set", f"{key}={value}")]
    shape = {"layers": 1, "hidden": 16, "attention_heads": 2}
    settings += [word for key, value in shape.items() for word in ("--set", f"student.{key}={value}")]
    run = tmp_path / "run"
    assert main(["run", recipe, "--out", str(run), *settings]) == 0, capfd.readouterr().err
    manifest = json.loads((run / "bundle" / "manifest.json").read_text("utf-8"))
    assert {head["name"]: {*head["labels"]} for head in manifest["heads"]} == heads
    assert main(["predict", str(run / "bundle"), "where is my parcel?"]) == 0
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert heads.keys() <= answer.keys()
