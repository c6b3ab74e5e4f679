"""Cells: the text of a cell, its label or labels, and which cells are invalid."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from unicodedata import normalize

from distill.data.sources import MARK, DataError, Row
from export.text import strip_text

if TYPE_CHECKING:
    from distill.recipe.data_section import HeadRecipe

MAX_TEXT_BYTES = 1_000_000
SURROGATE = re.compile("[\ud800-\udfff]")
NOT_GIVEN = "-1"  # among 0/1 columns, as Jigsaw and CheXpert mark rows without labels
YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,14})(\.0+|,0)?")  # below 2**53, which every reader of JSON keeps
NUMBER_OF = {"true": "1", "false": "0"}
BOOLEAN_OF = {number: word for word, number in NUMBER_OF.items()}
# soft hyphens, joiners, directions, variation selectors: labels that differ in these alone look the same
INVISIBLE = dict.fromkeys(
    code
    for first, last in (
        *((0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x180E, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E)),
        *((0x2060, 0x2069), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    )
    for code in range(first, last + 1)
)

CONTROL = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace())
INVISIBLE |= CONTROL
ITEM = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
LIST = re.compile(rf"\s*\[\s*(?:(?:{ITEM})[\s,]*)*\]\s*", re.DOTALL)

# takes the cells of a head off a row; returns the keys of the labels that apply, or None if unlabelled
Reader = Callable[[Iterator[object], Row], tuple[str, ...] | None]


class InvalidCell(Exception):
    """A cell makes its row invalid: `kind` says why, `excerpt` is the part of the row to show."""

    def __init__(self, kind: str, excerpt: str) -> None:
        super().__init__(kind, excerpt)
        self.kind, self.excerpt = kind, excerpt


def text_of(cell: object) -> str:
    """The text of a cell, stripped.

    Raises:
        InvalidCell: The text is missing, not decodable, or longer than MAX_TEXT_BYTES in UTF-8.
    """
    if isinstance(cell, (list, dict)):
        raise InvalidCell("text is a list or an object", repr(cell))
    text = "" if _missing(cell) else strip_text(str(cell))
    if not text:
        raise InvalidCell("empty text", "")
    if len(_decoded(text).encode()) > MAX_TEXT_BYTES:
        raise InvalidCell("text over 1 MB", text)
    return text


def joined_text(cells: Sequence[object]) -> str:
    """The texts of several cells, each on a line of its own; empty ones are left out.

    Raises:
        InvalidCell: As `text_of`.
    """
    one = cells[0] if len(cells) == 1 else "\n".join(text_of(cell) for cell in cells if word_of(cell))
    return text_of(one)


def _decoded(text: str) -> str:
    # a JSON escape can be half of a surrogate pair, which UTF-8 cannot encode
    if MARK in text or SURROGATE.search(text):
        raise InvalidCell("undecodable bytes", text.replace(MARK, "\ufffd"))
    return text


def _missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def word_of(cell: object) -> str:
    """The content of a cell as a label; "" if there is none. A whole float such as 2.0 gives "2"."""
    return label_name(_raw_word(cell))


def _raw_word(cell: object) -> str:
    if _missing(cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # pandas makes floats of integers with gaps
        cell = int(cell)
    return str(cell)


def listed_in(cell: object) -> list[str] | None:
    """The items of a list of strings in a cell, as pandas and numpy write lists; None for other cells."""
    if not isinstance(cell, str) or not LIST.fullmatch(cell):
        return None
    return [re.sub(r"\\(.)", r"\1", item[1:-1]) for item in re.findall(ITEM, cell, re.DOTALL)]


def label_of(cell: object) -> str:
    """The label of a cell, as in `word_of`; raises InvalidCell if it is not decodable."""
    return _decoded(word_of(cell))


@lru_cache(4096)
def label_name(word: str) -> str:
    """A label as a bundle has it: one line in NFC, without control characters."""
    return " ".join(normalize("NFC", strip_text(word)).translate(CONTROL).split())


@lru_cache(4096)
def label_key(word: str) -> str:
    """What all spellings of a label have in common.

    They may differ in Unicode form, white space and characters of no width; 1, 1.0 and "1" are one label, and
    so are true, "True" and "TRUE".
    """
    key = " ".join(normalize("NFC", word.translate(INVISIBLE)).split())
    if match := WHOLE.fullmatch(key):
        return match[1]
    return key.lower() if key.lower() in NUMBER_OF else key


def are_whole_numbers(labels: Iterable[str]) -> bool:
    """Whether all labels are whole numbers as Python writes them, so that "007" and "1.0" are not."""
    return all((match := WHOLE.fullmatch(label)) and match[1] == label for label in labels)


@dataclass
class Spelling:
    """A spelling of a label: its cells, and the row of the first."""

    cells: int
    file: str
    place: int | str


class Labels:
    """The labels of a head, each with its spellings.

    Args:
        listed: The labels that the recipe or the bundle allows; None allows every label.
        strict: Whether another label makes its row invalid; otherwise the row is unlabelled.
    """

    def __init__(self, listed: Sequence[str] | None, *, strict: bool = True) -> None:
        self.strict = strict
        self.listed = {label_key(label): label for label in listed or ()}
        self.spellings: dict[str, dict[str, Spelling]] = {}
        self._keys: dict[str, str] = {}

    def key(self, word: str, row: Row) -> str:
        """The key of a label in a row, "" if there is none. Counts its spelling.

        Raises:
            InvalidCell: The label is not decodable.
        """
        if (key := self._keys.get(word)) is None:
            key = self._keys[word] = label_key(_decoded(word))
            other = NUMBER_OF.get(key) or BOOLEAN_OF.get(key)
            if key not in self.listed and other in self.listed:
                key = self._keys[word] = other
        if key:
            found = self.spellings.setdefault(key, {}).setdefault(word, Spelling(0, row.file, row.place))
            found.cells += 1
        return key

    def names(self) -> dict[str, str]:
        """The label of each key: as listed, a whole number, or its most frequent spelling in NFC.

        Where a head has 1 or 0, true and false are these.
        """
        if self.listed:
            return self.listed
        numbers = NUMBER_OF if self.spellings.keys() & BOOLEAN_OF.keys() else {}
        keys = {key: numbers.get(key, key) for key in self.spellings}
        if are_whole_numbers(keys.values()):
            return keys
        return {key: self._most_frequent(name) for key, name in keys.items()}

    def unlisted(self) -> dict[str, int]:
        """The labels that are not listed, each with its cells, the most frequent first."""
        cells = Counter(
            {
                self._most_frequent(key): sum(spelling.cells for spelling in spellings.values())
                for key, spellings in self.spellings.items()
                if key not in self.listed
            }
        )
        return dict(cells.most_common())

    def other_spellings(self) -> Iterator[tuple[str, str, Spelling]]:
        """Each spelling that is not its label, with the label.

        White space at the ends counts only where the label has several spellings.
        """
        names = self.names()
        for key, spellings in self.spellings.items():
            for word, spelling in spellings.items():
                name = names.get(key, word)
                if (word if len(spellings) > 1 else word.strip()) != name:
                    yield name, word, spelling

    def _most_frequent(self, key: str) -> str:
        counts = Counter({key: 0})
        for word, spelling in self.spellings.get(key, {}).items():
            counts[label_name(word)] += spelling.cells
        usual = key.title() if key in NUMBER_OF else key
        return min(counts, key=lambda word: (-counts[word], word != usual, word))


def label_reader(name: str, head: HeadRecipe, labels: Labels, columns: str | Sequence[str]) -> Reader:
    """The function that reads the labels of a head from a row, from as many cells as there are columns.

    Several columns are flags of 0/1, of the labels with their names or else of the head's labels in order.

    It raises InvalidCell for a label that is not allowed, and DataError if a single_label column has a list.
    """
    none = None if head.none is None else label_key(head.none)

    def keys(words: Iterable[str], row: Row) -> tuple[str, ...] | None:
        found = {key: word for word in words if (key := labels.key(word, row))}
        unseen = [word for key, word in found.items() if labels.listed and key not in labels.listed]
        if unseen and labels.strict:
            raise InvalidCell("label not in the recipe's list", f"{name}: {unseen[0]}")
        return None if unseen else tuple(sorted(found))

    def single(cells: Iterator[object], row: Row) -> tuple[str, ...] | None:
        cell = next(cells)
        items = cell if isinstance(cell, list) else listed_in(cell)
        if items is not None and len(items) <= 1:  # as doccano writes one label
            cell = next(iter(items), None)
        if isinstance(cell, (list, dict)):
            raise DataError(
                f"{row.file}:{row.place}: column {columns!r} has a list, expected one label "
                f"(set `heads.{name}.kind: multi_label`)"
            )
        return keys([_raw_word(cell)], row) or None

    def several(cells: Iterator[object], row: Row) -> tuple[str, ...] | None:
        cell = next(cells)
        if (items := cell if isinstance(cell, list) else listed_in(cell)) is not None:
            return keys(map(_raw_word, items), row)
        word = _raw_word(cell)
        if not _missing(cell) and none is not None and label_key(word) == none:
            return ()
        parts = [part for part in map(str.strip, word.split(head.separator)) if part]
        if none is not None and none in map(label_key, parts):
            raise InvalidCell("`none` beside labels", f"{name}: {word.strip()}")
        return keys(parts, row) or None

    names = [label_name(label) for label in head.columns or head.labels or ()]
    if {*map(label_key, columns)} == {*map(label_key, names)}:
        names = [label_name(column) for column in columns]

    def flags(cells: Iterator[object], row: Row) -> tuple[str, ...] | None:
        values = [label_key(label_of(next(cells))) for _ in columns]
        values = ["" if value == NOT_GIVEN else value for value in values]
        for column, value in zip(columns, values, strict=True):
            if value and value not in YES_NO:
                raise InvalidCell("value not 0 or 1", f"{column}: {value}")
        if not all(values):
            return None
        return tuple(name for name, value in zip(names, values, strict=True) if YES_NO[value])

    if not isinstance(columns, str):
        return flags
    return single if head.kind == "single_label" else several
