"""Cells: the text of a cell, its label or labels, and which cells are invalid."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from distill.data.sources import MARK, DataError, Row
from distill.recipe.data_section import HeadRecipe

MAX_TEXT_BYTES = 1_000_000
SURROGATE = re.compile("[\ud800-\udfff]")
YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}

# takes the cells of a head off a row; returns the labels that apply, or None if the row is unlabelled
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
    text = "" if _missing(cell) else str(cell).strip()
    if not text:
        raise InvalidCell("empty text", "")
    if len(_decoded(text).encode()) > MAX_TEXT_BYTES:
        raise InvalidCell("text over 1 MB", text)
    return text


def _decoded(text: str) -> str:
    # a JSON escape can be half of a surrogate pair, which UTF-8 cannot encode
    if MARK in text or SURROGATE.search(text):
        raise InvalidCell("undecodable bytes", text.replace(MARK, "\ufffd"))
    return text


def _missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def word_of(cell: object) -> str:
    """The content of a cell, stripped; "" if there is none. A whole float such as 2.0 gives "2"."""
    if _missing(cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # pandas makes floats of integers with gaps
        cell = int(cell)
    return str(cell).strip()


def label_of(cell: object) -> str:
    """The label of a cell, as in `word_of`; raises InvalidCell if it is not decodable."""
    return _decoded(word_of(cell))


def label_reader(name: str, head: HeadRecipe) -> Reader:
    """The function that reads the labels of a head from a row, from as many cells as it has columns.

    It raises InvalidCell for a label that is not allowed, and DataError if a single_label column has a list.
    """

    def allowed(labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            if head.labels is not None and label not in head.labels:
                raise InvalidCell("label not in the recipe's list", f"{name}: {label}")
        return labels

    def single(cells: Iterator[object], row: Row) -> tuple[str, ...] | None:
        cell = next(cells)
        if isinstance(cell, (list, dict)):
            raise DataError(
                f"{row.file}:{row.place}: column {head.column!r} has a list, expected one label "
                f"(set `heads.{name}.kind: multi_label`)"
            )
        label = label_of(cell)
        return allowed((label,)) if label else None

    def several(cells: Iterator[object], row: Row) -> tuple[str, ...] | None:
        cell = next(cells)
        if isinstance(cell, list):
            return allowed(tuple(sorted({label for item in cell if (label := label_of(item))})))
        label = label_of(cell)
        if not _missing(cell) and head.none is not None and label == head.none.strip():
            return ()
        parts = {part.strip() for part in label.split(head.separator)} - {""}
        if head.none in parts:
            raise InvalidCell("`none` beside labels", f"{name}: {label}")
        return allowed(tuple(sorted(parts))) if parts else None

    def flags(cells: Iterator[object], row: Row) -> tuple[str, ...] | None:
        values = {column: label_of(next(cells)) for column in head.columns or ()}
        for column, value in values.items():
            if value and value.lower() not in YES_NO:
                raise InvalidCell("value not 0 or 1", f"{column}: {value}")
        if not all(values.values()):
            return None
        return tuple(column for column, value in values.items() if YES_NO[value.lower()])

    if head.columns:
        return flags
    return single if head.kind == "single_label" else several
