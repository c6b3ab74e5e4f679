"""Excel workbooks, which need the extra `excel` alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.data.formats.base import DataError, Record, Source, Table, readable
from distill.recipe.near import near

LAST_ROW = 1_048_576  # of a worksheet


def read_workbook(name: str, path: Path, sheet: str | None) -> Source:
    """A worksheet of an .xlsx file: `sheet`, or the first with more than one row.

    Rows of one cell above a blank row are a title, and are skipped. Errors such as `#N/A` are missing cells.
    """
    from openpyxl import load_workbook

    with readable(name):
        book = load_workbook(path, read_only=True, data_only=True)
        try:
            if sheet is not None and sheet not in book.sheetnames:
                known = f"the sheets are: {', '.join(map(repr, book.sheetnames))}"
                raise DataError(f"{name}: no sheet {sheet!r}{near(sheet, book.sheetnames)}, {known}")
            found = [_sheet(book[title]) for title in ([sheet] if sheet else book.sheetnames)]
        finally:
            book.close()
    rows = next((rows for rows in found if len(rows) > 1), found[0] if found else {})
    top = next((n for n, cells in rows.items() if n + 1 not in rows or _filled(cells) > 1), 0)
    widest = max(map(len, rows.values()), default=0)
    start = top + 1 if top and widest > 1 and _filled(rows[top]) == 1 and len(rows) > top else 0
    if not any(number >= start for number in rows):
        raise DataError(f"{name}: is empty, expected rows of text")

    def records() -> Iterator[Record]:
        for number, cells in rows.items():
            if number >= start:
                yield f"row {number}", cells + [None] * (widest - len(cells))

    return Table(name, records, "").source()


def _sheet(sheet: Any) -> dict[int, list[Any]]:
    """The rows that are not blank by their numbers, each without the empty cells at its end."""
    rows = {}
    if hasattr(sheet, "reset_dimensions"):
        sheet.reset_dimensions()  # which some programs write wrongly; cells outside would be lost
    for number, row in enumerate(getattr(sheet, "rows", ()), 1):  # a chart sheet has none
        if number > LAST_ROW:
            raise ValueError(f"a row after row {LAST_ROW:,}, the last one of a worksheet")
        cells = [None if cell.data_type == "e" or cell.value == "" else cell.value for cell in row]
        while cells and cells[-1] is None:
            cells.pop()
        if cells:
            rows[number] = cells
    return rows


def _filled(cells: Sequence[object]) -> int:
    return sum(cell is not None for cell in cells)
