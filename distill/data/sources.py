"""Opens sources: csv, tsv, jsonl, json, txt, xlsx, class folders, parquet, saved data sets and the hub.

Text formats are read with the standard library, and streamed. CSV cells remain strings, class indices become
their names, bytes that cannot be decoded become `MARK`, and blank rows are skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.data.formats.base import MARK, DataError, Row, Source, find_encoding, listed, quoted, readable
from distill.data.formats.delimited import read_delimited
from distill.data.formats.json_files import read_json
from distill.data.formats.lines import is_table, read_texts
from distill.recipe.near import near

if TYPE_CHECKING:  # `predict` and `evaluate` read text files with the base install
    from distill.recipe.data_sources import Hub

__all__ = [
    "MARK",
    "READABLE",
    "DataError",
    "Row",
    "Source",
    "encoding_hint",
    "find_encoding",
    "fingerprint",
    "listed",
    "open_source",
    "quoted",
]

TEXT_FILES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
READABLE = (*TEXT_FILES, ".xlsx", ".parquet", "a folder of .txt files")
ADVICE = {
    "save it as .xlsx or .csv": (".xls", ".xlsb", ".xlsm", ".ods", ".numbers"),
    "unpack it": (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z"),
    "give it the ending of its format": ("", ".dat", ".ndjson"),
}
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t", ".txt": "\t"}  # spreadsheets of many countries write semicolons


def open_source(
    source: str | Hub,
    root: Path,
    *,
    text: str | Sequence[str] = "text",
    role: str = "train",
    encoding: str | None = None,
) -> Source:
    """Open a source.

    Args:
        source: A path relative to `root`, or a data set on the hub. `folder#split` is a split of a
            saved `DatasetDict`. Without `#split` its only split is read, or the one named `role`.
            `file.xlsx#sheet` is a worksheet.
        root: The folder that paths are relative to.
        text: Names of the text columns; the first is that of .txt files.
        role: train, validation, test or unlabeled.
        encoding: Of text files without a byte order mark; by default UTF-8.

    Raises:
        DataError: The source is missing or empty, or its format is unknown.
    """
    if not isinstance(source, str):
        from distill.data.formats.tables import read_hub

        return read_hub(source)
    path, part = _locate(source, root)
    ending, columns = path.suffix.lower(), (text,) if isinstance(text, str) else tuple(text)
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            from distill.data.formats.tables import read_saved

            return read_saved(source, path, part, role)
        if files := [f for f in sorted(path.glob("*.txt")) if not f.name.startswith(".")]:
            return read_texts(source, files, columns, encoding, labelled=True)
    if path.is_dir() or ending not in READABLE:
        hint = next((f" ({todo})" for todo, endings in ADVICE.items() if ending in endings), "")
        raise DataError(f"{source}: cannot be read, expected one of: {', '.join(READABLE)}{hint}")
    with readable(source), path.open("rb") as file:
        start = file.read(1 << 16)
    if not start.strip(b"\0\xef\xbb\xbf\xfe\xff \t\r\n\f\v"):  # with a byte order mark or without
        raise DataError(f"{source}: is empty, expected rows of text")
    if ending == ".parquet":
        from distill.data.formats.tables import read_parquet

        return read_parquet(source, path)
    if ending == ".xlsx":
        from distill.data.formats.workbook import read_workbook

        return read_workbook(source, path, part)
    if ending == ".txt" and not is_table(path, encoding):
        return read_texts(source, [path], columns, encoding, labelled=False)
    if ending in SEPARATORS:
        return read_delimited(source, path, SEPARATORS[ending], encoding)
    return read_json(source, path, encoding)


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


def encoding_hint(source: str | Hub, root: Path) -> str | None:
    """The probable encoding of a text file that is not UTF-8; None for other sources."""
    if not isinstance(source, str):
        return None
    path = _locate(source, root)[0]
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    found = (find_encoding(file) for file in files if file.suffix.lower() in TEXT_FILES)
    return next((encoding for encoding in found if encoding), None)


def _locate(source: str, root: Path) -> tuple[Path, str | None]:
    path, split = root / source, None
    folder, hash_mark, name = source.rpartition("#")
    parts = (root / folder).is_dir() or folder.lower().endswith(".xlsx")
    if not path.exists() and hash_mark and parts:
        path, split = root / folder, name
    if not path.exists():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{source}: no such file or folder in {root}{near(path.name, names)}")
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{source}: is not a regular file, expected a file or a folder (write it to a file)")
    return path, split
