"""CSV and TSV files, as spreadsheets, pandas, BI tools and databases write them."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distill.data.formats.base import MARK, DataError, Record, Source, Table, find_encoding, open_text

NUL = "\ufdd1"  # in place of a NUL character, which `csv` refuses in Python 3.10
NULL = "\\N"  # a missing cell, as MySQL, PostgreSQL and Hive write it
EXCEL_SEPARATOR = re.compile(r'"?sep=([^"\r\n\0])"?[\r\n]*', re.IGNORECASE)
ESCAPE = re.compile(r"\\([\\bfnrtv])")  # in a dump of a database
ESCAPED = {"\\": "\\", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
SAMPLE = 50  # records that are read to find the separator

csv.field_size_limit(2**31 - 1)  # the default is 128 KiB, less than the longest text


class Dialect(NamedTuple):
    """How cells are written."""

    separator: str
    quotes: bool = True  # whether quotes enclose cells, or are characters like others
    escapes: bool = False  # whether a backslash escapes: a quote in quotes, else a tab or line break


def read_delimited(name: str, path: Path, separators: str, encoding: str | None) -> Source:
    r"""A file of cells that one of `separators` separates: the first that makes all first rows equally wide.

    Quotes are read as in RFC 4180. If that does not give rows as wide as the header, backslashes may escape
    quotes, and quotes of a file with tabs may be characters like others. A file with tabs and cells `\N` is
    the dump of a database.

    Raises:
        DataError: The header cannot be decoded.
    """
    with open_text(path, encoding) as file:
        excel = EXCEL_SEPARATOR.fullmatch(file.readline(100))

    def table(dialect: Dialect) -> Table:
        def records() -> Iterator[Record]:
            return itertools.islice(_records(name, path, encoding, dialect), 1 if excel else 0, None)

        todo = f"quote a cell that contains {dialect.separator!r}, a line break or a quote"
        return Table(name, records, todo)

    def widths(separator: str) -> list[int]:
        records, found = _records(name, path, encoding, Dialect(separator)), []
        try:
            for _, cells in itertools.islice(records, 1 if excel else 0, SAMPLE):
                found.append(len(cells))
        except DataError:  # which reading the file raises again
            found.append(0)
        return found or [0]

    found = {one: widths(one) for one in (excel[1] if excel else separators)}
    splits = [one for one, sizes in found.items() if sizes[0] > 1]
    even = [one for one in splits if len({*found[one]}) == 1]
    separator = next(iter([*even, *splits, *found]))
    chosen = table(Dialect(separator))
    if separator == "\t" and (chosen.nulls or not chosen.fits):
        plain = table(Dialect(separator, quotes=False))
        if plain.fits:
            chosen = table(Dialect(separator, quotes=False, escapes=True)) if plain.nulls else plain
    elif not chosen.fits:
        escaped = table(Dialect(separator, escapes=True))
        chosen = escaped if escaped.fits else chosen
    if any(MARK in column for column in chosen.header):
        what = f"is not {encoding or 'UTF-8'} (set data.encoding, probably to {find_encoding(path)})"
        raise DataError(f"{name}:{chosen.place}: the header {what}")
    return chosen.source()


def _records(name: str, path: Path, encoding: str | None, dialect: Dialect) -> Iterator[Record]:
    """The records that are not blank, each with the line that it starts on."""
    line, nul, dump = 1, False, dialect.escapes and not dialect.quotes
    options: dict[str, Any] = {"delimiter": dialect.separator, "strict": True}
    if not dialect.quotes:
        options["quoting"] = csv.QUOTE_NONE
    elif dialect.escapes:
        options["escapechar"] = "\\"

    def lines() -> Iterator[str]:
        nonlocal nul
        for text in file:
            nul = nul or "\0" in text
            text = text.replace("\0", NUL)
            yield text.replace(NULL, "\\" + NULL) if "escapechar" in options else text

    with open_text(path, encoding, newline="") as file:
        reader = csv.reader(lines(), **options)
        try:
            for cells in reader:
                if nul:
                    cells = [cell.replace(NUL, "\0") for cell in cells]
                if dump:
                    cells = [
                        cell if cell == NULL else ESCAPE.sub(lambda match: ESCAPED[match[1]], cell)
                        for cell in cells
                    ]
                if any(cell and not cell.isspace() for cell in cells):
                    yield line, [None if cell == NULL else cell for cell in cells]
                line = reader.line_num + 1
        except csv.Error as error:
            what = "a quote in one of the cells is never closed"
            if "unexpected end" not in str(error):
                what = "a quote inside a cell is not written twice, or one is never closed"
            raise DataError(f"{name}:{line}: {what} (write a quote inside a cell twice)") from None
