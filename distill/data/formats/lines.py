"""Text files: one text a line, in one file or in one file a class; and tables that have the ending .txt."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.data.formats.base import Row, Source, open_text

SAMPLE = 20  # lines that tell a table from texts


def read_texts(
    name: str, files: Sequence[Path], columns: Sequence[str], encoding: str | None, *, labelled: bool
) -> Source:
    """Texts, one a line. The first of `columns` has them; with `labelled`, "label" has the file's name."""

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for file in files:
            where = f"{name}/{file.name}" if labelled else name
            of = {columns[0]: None, "label": file.stem}
            for number, line in lines_of(file, encoding):
                yield Row(where, number, tuple(line if c == columns[0] else of.get(c) for c in wanted))

    return Source(name, (*columns, "label") if labelled else tuple(columns), read)


def lines_of(path: Path, encoding: str | None) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers."""
    with open_text(path, encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, line.removesuffix("\n")


def is_table(path: Path, encoding: str | None) -> bool:
    """Whether all first lines have the same number of tabs, as spreadsheets save "Unicode text"."""
    with open_text(path, encoding, newline="") as file:
        cells = csv.reader((line.replace("\0", "") for line in file), delimiter="\t")
        widths = [len(row) for row in itertools.islice(cells, SAMPLE) if row]
    return len(widths) > 1 and widths[0] > 1 and len({*widths}) == 1
