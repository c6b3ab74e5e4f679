"""What a cell means: a text, a label, several labels, flags; and which cells are invalid."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from distill.data.sources import MARK, DataError, Row
from distill.recipe.data_section import HeadRecipe

SURROGATE = re.compile("[\ud800-\udfff]")
YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}

Reader = Callable[[Iterator[Any], Row], tuple[str, ...] | None]


class InvalidCell(Exception):
    """A row at fault: the kind, by which faults are counted, and what of the row to show."""


def text_of(cell: Any, limit: int) -> str:
    """The text of a cell, stripped. Raises: InvalidCell, also if it has over `limit` bytes."""
    if isinstance(cell, (list, dict)):
        raise InvalidCell("text is a list or an object", repr(cell))
    text = "" if _missing(cell) else str(cell).strip()
    if not text:
        raise InvalidCell("empty text", "")
    if len(_decoded(text).encode()) > limit:
        raise InvalidCell("text over max_text_bytes", text)
    return text


def _decoded(text: str) -> str:
    # JSON can escape half a surrogate pair, which UTF-8 does not have
    if MARK in text or SURROGATE.search(text):
        raise InvalidCell("undecodable bytes", text.replace(MARK, "\ufffd"))
    return text


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def label_of(cell: Any) -> str:
    """A cell as a label; integers that a column with gaps made floats are integers again."""
    if _missing(cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return _decoded(str(cell).strip())


def label_reader(name: str, head: HeadRecipe) -> Reader:
    """What takes a head's cells off a row and gives the labels that apply, None if unlabelled."""

    def allowed(labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            if head.labels is not None and label not in head.labels:
                raise InvalidCell("label not in the recipe's list", f"{name}: {label}")
        return labels

    def single(cells: Iterator[Any], row: Row) -> tuple[str, ...] | None:
        cell = next(cells)
        if isinstance(cell, (list, dict)):
            raise DataError(
                f"{row.file}:{row.place}: column {head.column!r} holds a list, expected one label "
                f"(set `heads.{name}.kind: multi_label`)"
            )
        label = label_of(cell)
        return allowed((label,)) if label else None

    def listed(cells: Iterator[Any], row: Row) -> tuple[str, ...] | None:
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

    def flagged(cells: Iterator[Any], row: Row) -> tuple[str, ...] | None:
        columns = head.columns or ()
        values = {column: label_of(next(cells)) for column in columns}
        for column, value in values.items():
            if value and value.lower() not in YES_NO:
                raise InvalidCell("value not 0 or 1", f"{column}: {value}")
        if not all(values.values()):
            return None
        return tuple(column for column, value in values.items() if YES_NO[value.lower()])

    if head.columns:
        return flagged
    return single if head.kind == "single_label" else listed
