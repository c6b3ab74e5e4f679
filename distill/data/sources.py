"""Reads rows of csv, tsv, jsonl, txt, class folders, parquet, saved data sets and the hub.

All rows are streamed. The standard library reads text formats, in one pass that keeps line numbers.
`datasets` reads parquet, saved data sets and the hub. CSV cells remain strings, class indices become their
names, bytes that are not UTF-8 become `MARK`, and blank lines are skipped.
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
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from distill.recipe.near import near

if TYPE_CHECKING:  # `predict` and `evaluate` read text files with the base install
    import pyarrow as pa

    from distill.recipe.data_section import Hub

MARK = "\ufdd0"  # in place of an undecodable byte; a code point that no text may contain
NUL = "\ufdd1"  # in place of a NUL character, which `csv` refuses in Python 3.10
READABLE = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", "a folder of .txt files")
BATCH = 1000  # rows of a table in memory at a time
SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}  # spreadsheets of many countries write semicolons
EXCEL_SEPARATOR = re.compile(r'"?sep=([^"\r\n\0])"?[\r\n]*', re.IGNORECASE)

codecs.register_error("tinyheads.mark", lambda error: (MARK, getattr(error, "end", 0)))
csv.field_size_limit(2**31 - 1)  # the default is 128 KiB, less than the longest text


class DataError(Exception):
    """Errors in the data, one a line: `where: what is wrong, what was expected (what to do)`."""

    exit_code = 2


class Row(NamedTuple):
    """A row and its place: the line of the file, or "row N" in formats without lines."""

    file: str
    place: int | str
    cells: tuple[object, ...]


@dataclass(frozen=True)
class Source:
    """A source: its name in messages, its columns, and a function that reads some of them."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The rows, streamed, with the cells of `columns` in that order.

        Raises:
            DataError: A column is missing, or the source cannot be read.
        """
        if missing := [column for column in columns if column not in self.columns]:
            known = f"the columns are: {', '.join(map(repr, self.columns))}"
            lines = [f"{self.name}: no column {c!r}{near(c, self.columns)}, {known}" for c in missing]
            raise DataError("\n".join(lines))
        return self.read(columns)


def open_source(source: str | Hub, root: Path, *, text: str = "text", role: str = "train") -> Source:
    """Open a source.

    Args:
        source: A path relative to `root`, or a data set on the hub. `folder#split` is a split of a
            saved `DatasetDict`. Without `#split` its only split is read, or the one named `role`.
        root: The folder that paths are relative to.
        text: Name of the text column of .txt files.
        role: train, validation, test or unlabeled.

    Raises:
        DataError: The source is missing or empty, or its format is unknown.
    """
    if not isinstance(source, str):
        import datasets

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
        return _tables(source, lambda: _parquet(path))
    if ending == ".txt":
        return _texts(source, [path], text, labelled=False)
    return _csv(source, path, SEPARATORS[ending]) if ending in SEPARATORS else _json(source, path)


def fingerprint(source: str | Hub, root: Path) -> str:
    """The sha256 of the content of a source: of its files, or of the name and revision on the hub."""
    if not isinstance(source, str):
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
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{source}: no such file or folder in {root}{near(path.name, names)}")
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{source}: is not a regular file, expected a file or a folder")
    return path, split


def _open(path: Path, newline: str | None = None) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="tinyheads.mark", newline=newline)


def _csv(name: str, path: Path, separators: str) -> Source:
    with _open(path) as file:
        excel = EXCEL_SEPARATOR.fullmatch(file.readline(100))

    def records(separator: str) -> Iterator[tuple[int, list[str]]]:
        return itertools.islice(_records(name, path, separator), 1 if excel else 0, None)

    separators = excel[1] if excel else separators
    separator = next((s for s in separators if len(next(records(s), (1, [""]))[1]) > 1), separators[0])
    line, header = next(records(separator), (1, [""]))
    if any(MARK in column for column in header):
        raise DataError(f"{name}:{line}: the header is not UTF-8 (save the file as UTF-8)")
    if double := [column for column in header if header.count(column) > 1]:
        raise DataError(f"{name}:{line}: two columns have the name {double[0]!r} (rename one)")

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        order = [header.index(column) for column in wanted]
        for line, cells in itertools.islice(records(separator), 1, None):
            if len(cells) != len(header):
                todo = f"quote a cell that contains {separator!r}, a line break or a quote"
                raise DataError(f"{name}:{line}: {len(cells)} cells, expected {len(header)} ({todo})")
            yield Row(name, line, tuple(cells[i] for i in order))

    return Source(name, tuple(header), read)


def _records(name: str, path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not blank, each with the line that it starts on."""
    line, quoted, at_end, nul = 1, False, False, False

    def lines(file: TextIO) -> Iterator[str]:
        nonlocal quoted, at_end, nul
        for text in file:
            quoted, nul = '"' in text, nul or "\0" in text
            yield text.replace("\0", NUL)
        at_end = True

    with _open(path, newline="") as file:
        reader = csv.reader(lines(file), delimiter=separator)
        for cells in reader:
            if at_end:  # only an unclosed quote makes the reader read past the line
                todo = "write a quote inside a cell twice"
                raise DataError(f"{name}:{line}: a quote in one of the cells is never closed ({todo})")
            if nul:
                cells = [cell.replace(NUL, "\0") for cell in cells]
            if len(cells) > 1 or (cells and (quoted or cells[0].strip(" \t"))):
                yield line, cells
            line = reader.line_num + 1


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, line.removesuffix("\n")


def _texts(name: str, files: list[Path], text: str, *, labelled: bool) -> Source:
    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for file in files:
            where = f"{name}/{file.name}" if labelled else name
            for number, line in _lines(file):
                yield Row(where, number, tuple(line if c == text else file.stem for c in wanted))

    return Source(name, (text, "label") if labelled else (text,), read)


def _json(name: str, path: Path) -> Source:
    def objects() -> Iterator[tuple[int, dict[str, object]]]:
        for line, content in _lines(path):
            try:
                row = json.loads(content, parse_constant=lambda _: None)
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}")
            except (ValueError, RecursionError) as error:
                todo = 'write one object a line, such as {"text": "...", "label": "..."}'
                raise DataError(f"{name}:{line}: is not a JSON object: {error} ({todo})") from None
            yield line, row

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        return (Row(name, line, tuple(row.get(column) for column in wanted)) for line, row in objects())

    # the whole file is read for its keys, because the first label of a head may come late
    return Source(name, tuple(dict.fromkeys(key for _, row in objects() for key in row)), read)


def _parquet(path: Path) -> Any:
    """The streamed data set of a file. The loader writes nothing to ~/.cache."""
    import datasets

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
        with _readable(name):
            dataset = load().select_columns(list(dict.fromkeys(wanted)))  # two heads may share a column
            features = dataset.features or {}
            for table in stream(dataset):
                columns = {c: _values(table.column(c), features.get(c)) for c in table.column_names}
                for cells in zip(*(columns[c] for c in wanted), strict=True):
                    yield Row(name, f"row {next(number)}", cells)

    with _readable(name):
        dataset = load()
        columns = dataset.column_names or next(stream(dataset)).column_names
    return Source(name, tuple(columns), read)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise errors of Arrow, the hub and its HTTP client, which have no common base, as DataError."""
    try:
        yield
    except ModuleNotFoundError:  # which the command answers with the extra to install
        raise
    except Exception as error:
        what = "hub unreachable or no such data" if name.startswith("hub ") else "cannot be read"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"{name}: {what}: {reason} (check it, or give a local file)") from error


def _saved(name: str, path: Path, split: str | None, role: str) -> Source:
    import datasets

    with _readable(name):
        dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        splits = list(dataset)
        split = split or (splits[0] if len(splits) == 1 else role)
        if split not in splits:
            known = f"the splits are: {', '.join(splits)} (write {path.name}#{splits[0]})"
            raise DataError(f"{name}: no split {split!r}{near(split, splits)}, {known}")
        dataset = dataset[split]
    return _tables(name, lambda: dataset)


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
    if isinstance(cell, int) and hasattr(feature, "names"):  # a ClassLabel
        return feature.names[cell] if cell >= 0 else None
    return cell
