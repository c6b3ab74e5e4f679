"""What the readers have in common: rows, sources, errors, and the encoding of text files."""

from __future__ import annotations

import codecs
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from distill.recipe.near import near

MARK = "\ufdd0"  # in place of an undecodable byte; a code point that no text may contain
BYTE_ORDER_MARKS = {  # in this order: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CODE_PAGES = [f"cp125{i}" for i in range(9)] + ["cp874", "cp932", "cp949", "gb18030", "big5", "euc_jp"]
SHOWN, LONG = 20, 60  # columns in a message, and characters of a name
SAMPLE = 1 << 20  # bytes that are examined for the encoding

codecs.register_error("tinyheads.mark", lambda error: (MARK, getattr(error, "end", 0)))


class DataError(Exception):
    """Errors in the data, one a line: `where: what is wrong, what was expected (what to do)`."""

    exit_code = 2


class Row(NamedTuple):
    """A row and its place: the line of the file, or "row N" in formats without lines."""

    file: str
    place: int | str
    cells: tuple[object, ...]


Record = tuple[int | str, list[Any]]  # a row's place and all its cells


@dataclass(frozen=True)
class Source:
    """A source: its name in messages, its columns, and a function that reads some of them.

    Attributes:
        name: In messages.
        columns: The names of the columns.
        read: Gives the rows with the cells of some columns, in their order.
        repeated: Names that several columns have, which cannot be read.
        finds: Whether another name can be read, such as a path into an object.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]
    repeated: frozenset[str] = frozenset()
    finds: Callable[[str], bool] = lambda name: False

    def has(self, column: str) -> bool:
        """Whether there is a column of this name."""
        return column in self.columns or self.finds(column)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The rows, streamed, with the cells of `columns` in that order.

        Raises:
            DataError: A column is missing or has the name of another, or the source cannot be read.
        """
        known, lines = {*self.columns}, []
        for column in dict.fromkeys(columns):
            if column in self.repeated:
                which = f"the name {quoted(column)}" if column else "no name"
                lines.append(f"{self.name}: two columns have {which} (rename one)")
            elif column not in known and not self.finds(column):
                what = f"no column {quoted(column)}{near(column, self.columns)}"
                lines.append(f"{self.name}: {what}, {listed(self.columns)}")
        if lines:
            raise DataError("\n".join(lines))
        return self.read(columns)


def listed(columns: Iterable[str]) -> str:
    """`the columns are: ...`, the first of them."""
    names = [*map(quoted, columns)]
    more = [f"{len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return f"the columns are: {', '.join(names[:SHOWN] + more)}"


def quoted(name: str) -> str:
    """The name in quotes, without the end of a long one."""
    return repr(name if len(name) <= LONG else f"{name[:LONG]}…")


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Raise errors of Arrow, the hub and openpyxl, which have no common base, as DataError."""
    try:
        yield
    except (ModuleNotFoundError, DataError):  # a missing module is answered with the extra to install
        raise
    except Exception as error:
        what = "hub unreachable or no such data" if name.startswith("hub ") else "cannot be read"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"{name}: {what}: {reason} (check it, or give a local file)") from error


def open_text(path: Path, encoding: str | None, newline: str | None = None) -> TextIO:
    """A text file, opened; bytes that cannot be decoded become `MARK`.

    A file with a byte order mark, or with other letters than ASCII that are valid UTF-8, has that encoding,
    whatever `encoding` is.
    """
    if (found := _by_mark(path)) is None:
        found = encoding or "utf-8"
        if encoding and not (known := _sample(path)).isascii() and _is_utf8(known):
            found = "utf-8"
        if (name := codecs.lookup(found).name) in ("utf-16", "utf-32"):  # which need a mark
            found = f"{name}-be" if find_encoding(path) == "utf-16-be" else f"{name}-le"
    return path.open(encoding=found, errors="tinyheads.mark", newline=newline)


def find_encoding(path: Path) -> str | None:
    """The probable encoding of a text file; None for UTF-8, and for a file with a byte order mark."""
    if _by_mark(path):
        return None
    sample = _sample(path)
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if sample[offset::2].count(0) * 3 > len(sample):
            return encoding
    if _is_utf8(sample):
        return None
    other = b"\n".join(line for line in sample.splitlines() if not line.isascii())
    try:
        from charset_normalizer import from_bytes
    except ModuleNotFoundError:  # of the base install
        return "cp1252"
    found = from_bytes(other, cp_isolation=CODE_PAGES)
    best = found.best()
    if best is None:
        return "cp1252"
    near_best = [
        match
        for match in found
        if match.chaos <= best.chaos + 0.1 and match.coherence >= best.coherence - 0.1
    ]
    symbols = [_symbols_in_words(match) for match in near_best]
    names = [
        name
        for match, count in zip(near_best, symbols, strict=True)
        if count == min(symbols)
        for name in match.could_be_from_charset
    ]
    return "cp1252" if "cp1252" in names else names[0]  # the most frequent one


def _symbols_in_words(text: object) -> int:
    """The number of other characters than letters between letters, such as that of `obs³uga`."""
    words = str(text)
    return sum(
        a.isalpha()
        and c.isalpha()
        and (a.isascii() or c.isascii())
        and not (b.isascii() or b.isalpha() or b in "’…–—")
        for a, b, c in zip(words, words[1:], words[2:], strict=False)
    )


def _sample(path: Path) -> bytes:
    """A part of the file with other letters than ASCII, or the last part; these may come late."""
    with path.open("rb") as file:
        sample = file.read(SAMPLE)
        while sample.isascii() and (more := file.read(SAMPLE)):
            sample = more
    return sample


def _is_utf8(sample: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the last character may be cut
        return True
    return False


def _by_mark(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)


class Table:
    """Records whose first one is the header, as CSV files and worksheets have them.

    All records are read once, to tell the columns that neither have a name nor a cell, which spreadsheets
    write, from those that lack a name alone.
    """

    def __init__(self, name: str, records: Callable[[], Iterator[Record]], todo: str) -> None:
        self.name, self.records, self.todo = name, records, todo
        first: Record = next(records(), (1, [""]))
        self.place, header = first
        self.header = ["" if cell is None else str(cell) for cell in header]
        filled, self.nulls = set[int](), False
        shortest = longest = len(header)
        unnamed = [i for i, column in enumerate(self.header) if not column]
        self.fits = True
        try:
            for _, cells in itertools.islice(records(), 1, None):
                shortest = min(shortest, len(cells))
                if len(cells) > longest:
                    longest = max(longest, _width(cells))
                filled.update(i for i in unnamed if i < len(cells) and _has_content(cells[i]))
                self.nulls = self.nulls or None in cells
        except DataError:
            self.fits = False
        self.names = [
            column if column or i in filled or len(header) == 1 else None
            for i, column in enumerate(self.header)
        ]
        self.width = max((i + 1 for i, column in enumerate(self.names) if column is not None), default=0)
        self.fits = self.fits and shortest >= self.width and longest == len(header)

    def source(self) -> Source:
        """The table as a source."""
        named = Counter(column for column in self.names if column is not None)
        repeated = frozenset(column for column, count in named.items() if count > 1)
        return Source(self.name, tuple(named), self._read, repeated)

    def _read(self, wanted: Sequence[str]) -> Iterator[Row]:
        places = {column: place for place, column in enumerate(self.names)}
        order = [places[column] for column in wanted]
        for place, cells in itertools.islice(self.records(), 1, None):
            if len(cells) < self.width or _width(cells) > len(self.header):
                what = f"{len(cells)} cells, expected {len(self.header)}"
                raise DataError(f"{self.name}:{place}: {what} ({self.todo})")
            yield Row(self.name, place, tuple(cells[i] for i in order))


def _has_content(cell: object) -> bool:
    return cell is not None and cell != "" and not (isinstance(cell, str) and cell.isspace())


def _width(cells: Sequence[object]) -> int:
    """The number of cells up to the last that has content."""
    return next((i for i in range(len(cells), 0, -1) if _has_content(cells[i - 1])), 0)
