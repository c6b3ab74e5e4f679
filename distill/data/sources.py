"""Sources: rows out of csv, tsv, jsonl, parquet, txt, folders and the hub, always streamed.

`datasets` reads every format; a second pass over a CSV's structure gives the line of each row and
finds ragged rows, which its reader would fill up or cut in silence. CSV cells stay strings, class
indices become their names, bytes that are no UTF-8 become `MARK`, and a blank line is no row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import glob
import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from distill.recipe.data_section import Hub, near

MARK = "\ufdd0"  # a code point that Unicode keeps out of texts: stands for an undecodable byte
READABLE = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", "a folder of .txt files")
BATCH = 1000  # rows held at a time

codecs.register_error("tinyheads.mark", lambda error: (MARK, getattr(error, "end", 0)))
csv.field_size_limit(2**31 - 1)  # by default 128 KiB, less than `max_text_bytes`


class DataError(Exception):
    """Faults in the data, one a line: `where: what is wrong, what was expected (what to do)`."""

    exit_code = 2


class Row(NamedTuple):
    """A row and where it stands: the line of the file, or "row N" where there are no lines."""

    file: str
    place: int | str
    cells: tuple[Any, ...]


@dataclass(frozen=True)
class Source:
    """An opened source: its name for messages, its columns, and how to read some of them."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[list[str]], Iterator[Row]]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The rows with the cells of `columns` in that order, streamed; DataError if it cannot."""
        if missing := [column for column in columns if column not in self.columns]:
            there = f"the columns there are: {', '.join(map(repr, self.columns))}"
            lines = [f"no column {c!r}{near(c, self.columns)}, {there}" for c in missing]
            raise DataError("\n".join(f"{self.name}: {line}" for line in lines))
        once = list(dict.fromkeys(columns))  # two heads may share a column
        order = [once.index(column) for column in columns]
        for file, place, cells in self.read(once):
            yield Row(file, place, tuple(cells[i] for i in order))


def open_source(source: str | Hub, root: Path, *, text: str = "text", role: str = "train") -> Source:
    """An opened source.

    Args:
        source: A path relative to `root`, or a data set on the hub. A `DatasetDict` on disk is
            `folder#split`; without `#split` its only split, or the one named like `role`.
        root: The folder that paths are relative to.
        text: The column that texts of .txt files make.
        role: train, validation, test or unlabeled.

    Raises:
        DataError: If it is missing, empty, or of no format that can be read.
    """
    if isinstance(source, Hub):
        which = {"split": source.split, "revision": source.revision, "streaming": True}
        load = functools.partial(datasets.load_dataset, source.hub, source.config, **which)
        return _tables(f"hub {source.hub}", load)
    path, split = _locate(source, root)
    ending = path.suffix.lower()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _saved(source, path, split, role)
        if files := [f for f in sorted(path.glob("*.txt")) if not f.name.startswith(".")]:
            return _texts(source, files, text, labelled=True)
    if path.is_dir() or ending not in READABLE:
        raise DataError(f"{source}: cannot be read, expected one of: {', '.join(READABLE)}")
    with _readable(source), path.open("rb") as file:
        start = file.read(1 << 16)
    if not start.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError(f"{source}: is empty, expected rows of text")
    if ending == ".parquet":
        return _tables(source, lambda: _load("parquet", path))
    if ending == ".txt":
        return _texts(source, [path], text, labelled=False)
    if ending in (".jsonl", ".json"):
        return _json(source, path)
    marks = "\t" if ending == ".tsv" else ",;\t"  # spreadsheets of many countries write semicolons
    return _csv(source, path, next((m for m in marks if len(next(_records(path, m))[1]) > 1), marks[0]))


def fingerprint(source: str | Hub, root: Path) -> str:
    """The sha256 of a source's content: of its files, or of its name and revision on the hub."""
    if isinstance(source, Hub):
        return hashlib.sha256(source.model_dump_json().encode()).hexdigest()
    path, split = _locate(source, root)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256(f"{split}".encode())
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.suffix
        total.update(f"\n{name}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _locate(source: str, root: Path) -> tuple[Path, str | None]:
    path, split = root / source, None
    folder, hash_mark, name = source.rpartition("#")
    if not path.exists() and hash_mark and (root / folder).is_dir():
        path, split = root / folder, name
    if not path.exists():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{source}: no such file or folder in {root}{near(path.name, there)}")
    return path, split


def _load(kind: str, path: Path, **options: Any) -> Any:
    """A streamed data set of one file; its loader leaves nothing in ~/.cache."""
    if kind != "parquet":
        options = {"encoding": "utf-8-sig", "encoding_errors": "tinyheads.mark", **options}
    file = glob.escape(str(path.resolve()))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        return datasets.load_dataset(
            kind, data_files=file, split="train", streaming=True, cache_dir=cache, **options
        )


def _stream(dataset: Any) -> Iterator[pa.Table]:
    yield from dataset.with_format("arrow").iter(batch_size=BATCH)


def _csv(name: str, path: Path, separator: str) -> Source:
    header = tuple(next(_records(path, separator))[1])
    if any(MARK in column for column in header):
        raise DataError(f"{name}:1: the header is not UTF-8 (save the file as UTF-8)")
    if len(set(header)) < len(header):
        raise DataError(f"{name}:1: two columns have one name: {', '.join(header)} (rename one)")

    def check(line: int, cells: Sequence[str]) -> int:
        if len(cells) == len(header):
            return line
        todo = f"quote a cell that holds {separator!r}, a line break or a quote"
        raise DataError(f"{name}:{line}: {len(cells)} cells, expected {len(header)} ({todo})")

    def read(wanted: list[str]) -> Iterator[Row]:
        records = _records(path, separator)
        line, _ = next(records)
        strings = datasets.Features({column: datasets.Value("string") for column in wanted})
        options = {"keep_default_na": False, "na_filter": False, "usecols": wanted}
        layout = {"sep": separator, "header": 0, "names": list(header), "index_col": False}
        try:
            for table in _stream(_load("csv", path, features=strings, **layout, **options)):
                columns = [table.column(column).to_pylist() for column in wanted]
                for cells in zip(*columns, strict=True):
                    yield Row(name, check(*next(records)), cells)
            if next(records, None) is not None:
                raise ValueError("rows and lines do not match")
        except (ValueError, StopIteration) as error:  # pandas' ParserError is a ValueError
            for record in records:
                line = check(*record)
            reason = "a quote is opened and never closed" if "EOF" in str(error) else f"{error}"
            raise DataError(f"{name}:{line}: {reason} (write a quote in a cell twice)") from None

    return Source(name, header, read)


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The structure of a CSV: each record that is not blank, with the line where it starts."""
    quoted, before = False, 0

    def lines(file: Iterable[str]) -> Iterator[str]:
        nonlocal quoted
        for line in file:
            quoted = '"' in line
            yield line.replace("\0", " ")  # Python 3.10 refuses it

    with path.open(encoding="utf-8-sig", errors="tinyheads.mark", newline="") as file:
        reader = csv.reader(lines(file), delimiter=separator)
        for cells in reader:
            if len(cells) > 1 or (cells and (quoted or cells[0].strip(" \t"))):
                yield before + 1, cells
            before = reader.line_num


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, numbered."""
    numbers = itertools.count(1)
    for table in _stream(_load("text", path, chunksize=1 << 20)):
        for line, number in zip(table.column("text").to_pylist(), numbers, strict=False):
            if line and not line.isspace():
                yield number, line


def _texts(name: str, files: list[Path], text: str, *, labelled: bool) -> Source:
    def read(wanted: list[str]) -> Iterator[Row]:
        for file in files:
            where = f"{name}/{file.name}" if labelled else name
            for number, line in _lines(file):
                yield Row(where, number, tuple(line if c == text else file.stem for c in wanted))

    return Source(name, (text, "label") if labelled else (text,), read)


def _json(name: str, path: Path) -> Source:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        for line, content in _lines(path):
            try:
                row = json.loads(content, parse_constant=lambda _: None)
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}")
            except ValueError as error:
                raise DataError(f"{name}:{line}: is no JSON object: {error} ({todo})") from None
            yield line, row

    def read(wanted: list[str]) -> Iterator[Row]:
        return (Row(name, line, tuple(row.get(column) for column in wanted)) for line, row in objects())

    todo = 'write one object a line, as in {"text": "...", "label": "..."}'
    first = itertools.islice(objects(), BATCH)  # a key that comes up only later is not known
    return Source(name, tuple(dict.fromkeys(key for _, row in first for key in row)), read)


def _tables(name: str, load: Callable[[], Any]) -> Source:
    """A source of typed columns."""

    def read(wanted: list[str]) -> Iterator[Row]:
        number = itertools.count(1)
        with _readable(name):
            dataset = load().select_columns(wanted)
            features = dataset.features or {}
            for table in _stream(dataset):
                columns = [_values(table.column(c), features.get(c)) for c in wanted]
                for cells in zip(*columns, strict=True):
                    yield Row(name, f"row {next(number)}", cells)

    with _readable(name):
        dataset = load()
        columns = dataset.column_names or next(_stream(dataset)).column_names
    return Source(name, tuple(columns), read)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of Arrow, of the hub and its HTTP client: no common ancestor
        what = "hub unreachable or no such data" if name.startswith("hub ") else "cannot be read"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"{name}: {what}: {reason} (check it, or give a local file)") from error


def _saved(name: str, path: Path, split: str | None, role: str) -> Source:
    with _readable(name):
        dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        splits = list(dataset)
        split = split or (splits[0] if len(splits) == 1 else role)
        if split not in splits:
            there = f"the splits there are: {', '.join(splits)} (write {path.name}#{splits[0]})"
            raise DataError(f"{name}: no split {split!r}{near(split, splits)}, {there}")
        dataset = dataset[split]
    return _tables(name, lambda: dataset)


def _values(column: Any, feature: Any) -> list[Any]:
    """The cells of an Arrow column; class indices by their names, bytes as text."""
    try:
        cells: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        cells = column.cast(pa.large_binary()).to_pylist()
    return [_value(cell, feature) for cell in cells]


def _value(cell: Any, feature: Any) -> Any:
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "tinyheads.mark")
    if isinstance(cell, list):
        return [_value(item, getattr(feature, "feature", None)) for item in cell]
    if isinstance(feature, datasets.ClassLabel) and cell is not None:
        return feature.names[cell] if cell >= 0 else None
    return cell
