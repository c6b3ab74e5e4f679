"""Typed columns: parquet files, data sets that `datasets` saved, the hub, and Excel workbooks."""

from __future__ import annotations

import functools
import glob
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from distill.data.formats.base import DataError, Record, Row, Source, Table, readable
from distill.recipe.data_section import Hub
from distill.recipe.near import near

LAST_ROW = 1_048_576  # of a worksheet
BATCH = 1000  # rows of a table in memory at a time


def read_hub(source: Hub) -> Source:
    """A data set on the hub."""
    which = {"split": source.split, "revision": source.revision, "streaming": True}
    load = functools.partial(datasets.load_dataset, source.hub, source.config, **which)
    return _tables(f"hub {source.hub}", load)


def read_parquet(name: str, path: Path) -> Source:
    """A parquet file."""
    return _tables(name, lambda: _parquet(path))


def read_saved(name: str, path: Path, split: str | None, role: str) -> Source:
    """A folder that `datasets` saved: `split`, or the only split, or that named `role`."""
    with readable(name):
        dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        splits = list(dataset)
        split = split or (splits[0] if len(splits) == 1 else role)
        if split not in splits:
            known = f"the splits are: {', '.join(splits)} (write {path.name}#{splits[0]})"
            raise DataError(f"{name}: no split {split!r}{near(split, splits)}, {known}")
        dataset = dataset[split]
    with readable(name):
        dataset.data.validate(full=True)  # reading a damaged table could end the process
    return _tables(name, lambda: dataset)


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


def _parquet(path: Path) -> Any:
    """The streamed data set of a file. The loader writes nothing to ~/.cache."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        file = glob.escape(str(path.resolve()))
        return datasets.load_dataset(
            "parquet", data_files=file, split="train", streaming=True, cache_dir=cache
        )


def _tables(name: str, load: Callable[[], Any]) -> Source:
    """A source of typed columns, which `load` opens as a data set of `datasets`."""

    def stream(dataset: Any) -> Iterator[pa.Table]:
        yield from dataset.with_format("arrow").iter(batch_size=BATCH)

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        number = itertools.count(1)
        with readable(name):
            dataset = load().select_columns(list(dict.fromkeys(wanted)))  # two heads may share a column
            features = dataset.features or {}
            for table in stream(dataset):
                columns = {c: _values(table.column(c), features.get(c)) for c in table.column_names}
                for cells in zip(*(columns[c] for c in wanted), strict=True):
                    yield Row(name, f"row {next(number)}", cells)

    with readable(name):
        dataset = load()
        columns = dataset.column_names or next(stream(dataset)).column_names
    return Source(name, tuple(columns), read)


def _values(column: pa.ChunkedArray, feature: Any) -> list[object]:
    """The cells of an Arrow column, with class indices as names and bytes as text."""
    try:
        cells = column.to_pylist()
    except UnicodeDecodeError:
        cells = column.cast("large_binary").to_pylist()
    return [_value(cell, feature) for cell in cells]


def _value(cell: Any, feature: Any) -> object:
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "tinyheads.mark")
    if isinstance(cell, list):
        return [_value(item, getattr(feature, "feature", None)) for item in cell]
    if isinstance(cell, int) and isinstance(feature, datasets.ClassLabel):
        return feature.names[cell] if cell >= 0 else None
    return cell
