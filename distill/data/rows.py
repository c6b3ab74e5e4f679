"""Labelled rows: the text and the labels of each row, and the rows that are invalid. Needs no extra."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

from distill.data.labels import (
    InvalidCell,
    Labels,
    Reader,
    joined_text,
    label_key,
    label_name,
    label_of,
    label_reader,
)
from distill.data.sources import Row, Source
from distill.heads import UNKNOWN, UNLABELLED, Head

if TYPE_CHECKING:
    from distill.recipe.data_section import HeadRecipe

LOG = logging.getLogger("tinyheads")
FIRST = 10  # rows of a kind that data_report.json lists
EXCERPT = 80  # characters of a row that are shown
SHOWN = 3  # spellings of labels that are printed

LabelsOfText = tuple[tuple[str, ...] | None, ...]  # the labels that apply, by head; None where unlabelled


@dataclass(frozen=True)
class Text:
    """A valid row: its text, its labels by head, its file and place, and the number of its source."""

    text: str
    labels: LabelsOfText
    file: str
    place: int | str
    source: int = 0


class ListedRow(TypedDict):
    """A row in data_report.json. `line` is "row N" in formats without lines."""

    file: str
    line: int | str
    excerpt: str


class RowKind(TypedDict):
    """The rows of one kind in data_report.json: how many, and the first of them."""

    count: int
    first: list[ListedRow]


@dataclass
class RowIssues:
    """Rows that were dropped or moved, counted by kind, with the first rows of each kind."""

    kinds: dict[str, RowKind] = field(default_factory=dict)

    def add(self, kind: str, file: str, place: int | str, excerpt: str) -> None:
        """Count a row; the first rows of each kind are listed."""
        entry = self.kinds.setdefault(kind, {"count": 0, "first": []})
        entry["count"] += 1
        if entry["count"] <= FIRST:
            excerpt = excerpt if len(excerpt) <= EXCERPT else excerpt[: EXCERPT - 1] + "…"
            excerpt = excerpt.encode("utf-8", "replace").decode()
            entry["first"].append({"file": file, "line": place, "excerpt": excerpt})

    def counts(self) -> Counter[str]:
        """The number of rows by kind."""
        return Counter({kind: entry["count"] for kind, entry in self.kinds.items()})

    def log(self, what: str) -> None:
        """Log one line per kind; `what` is what happened to the rows."""
        for kind, entry in self.kinds.items():
            first = entry["first"][0]
            place = f"{first['file']}:{first['line']}: {first['excerpt']!r}"
            rows = "1 row" if entry["count"] == 1 else f"{entry['count']} rows"
            LOG.info(f"data: {what} {rows}: {kind}; first {place}")


class OtherSpelling(TypedDict):
    """A spelling of a label in data_report.json: how many cells have it, and the first of them.

    Everything but ASCII is escaped in `spelling`, as the two may look the same.
    """

    label: str
    spelling: str
    cells: int
    file: str
    line: int | str


def other_spellings(labels: Mapping[str, Labels]) -> dict[str, list[OtherSpelling]]:
    """The spellings that are not the label itself, by head, the most frequent first; logs a line a head."""
    found: dict[str, list[OtherSpelling]] = {}
    for head, each in labels.items():
        others = [
            OtherSpelling(label=label, spelling=ascii(word)[1:-1], cells=s.cells, file=s.file, line=s.place)
            for label, word, s in each.other_spellings()
        ]
        if others:
            found[head] = sorted(others, key=lambda other: -other["cells"])
            cells = sum(other["cells"] for other in others)
            shown = [
                f"'{s['spelling']}' is {s['label']!r} ({s['cells']}, first {s['file']}:{s['line']})"
                for s in found[head][:SHOWN]
            ]
            more = [f"{len(others) - SHOWN} more"] if len(others) > SHOWN else []
            has = "1 cell has" if cells == 1 else f"{cells} cells have"
            LOG.info(f"data: head {head!r}: {has} another spelling of a label: {', '.join(shown + more)}")
    return found


def labels_of(heads: Mapping[str, HeadRecipe], *, strict: bool = True) -> dict[str, Labels]:
    """The labels that each head lists; see `RowReader`."""
    return {name: Labels(head.labels or head.columns, strict=strict) for name, head in heads.items()}


class RowReader:
    """Reads labelled rows. Ids are unique over all files that it reads.

    Args:
        heads: How the labels of each head are written.
        text: Columns of the texts.
        id: Column of unique ids.
        strict: Whether a label that its head does not list makes a row invalid; otherwise the text is
            unlabelled for the head.
        columns: The column of the labels of each head, or its 0/1 columns; rows are unlabelled for the other
            heads. By default the columns that the heads name.
        labels: Those of `labels_of`, shared by the readers of several sources, so that labels have one
            spelling.
        source: The number of the source.

    Attributes:
        labels: The labels of each head, and how they are spelled.
    """

    def __init__(
        self,
        heads: Mapping[str, HeadRecipe],
        text: Sequence[str],
        id: str | None = None,
        *,
        strict: bool = True,
        columns: Mapping[str, str | tuple[str, ...]] | None = None,
        labels: dict[str, Labels] | None = None,
        source: int = 0,
    ) -> None:
        self._heads, self._text, self._id, self._ids = heads, text, id, set[str]()
        self._columns = {name: head.columns or head.column for name, head in heads.items()}
        if columns is not None:
            self._columns = {name: columns.get(name) for name in heads}
        self.labels = labels_of(heads, strict=strict) if labels is None else labels
        self.source = source

    def columns(self, head: str) -> Sequence[str]:
        """The columns of a head's labels."""
        columns = self._columns[head]
        return [columns] if isinstance(columns, str) else columns or ()

    def read(self, source: Source, dropped: RowIssues, absent: Collection[str] = ()) -> Iterator[Text]:
        """The valid rows of a source, with the keys of their labels; `name_labels` gives the labels.

        Args:
            source: The source.
            dropped: Counts the invalid rows.
            absent: Heads that have no column in the source; all of its texts are unlabelled for them.

        Raises:
            DataError: The source cannot be read.
        """
        columns = [*self._text, *([] if self._id is None else [self._id])]
        texts, start, readers = len(self._text), len(columns), list[Reader]()
        for name, head in self._heads.items():
            if (own := None if name in absent else self._columns[name]) is None:
                readers.append(_unlabelled)
                continue
            columns += self.columns(name)
            readers.append(label_reader(name, head, self.labels[name], own))
        for row in source.rows(columns):
            try:
                text, cells = joined_text(row.cells[:texts]), iter(row.cells[start:])
                labels = tuple(read(cells, row) for read in readers)
                if self._id is not None and (identity := label_of(row.cells[texts])):
                    if identity in self._ids:
                        raise InvalidCell("duplicate id", identity)
                    self._ids.add(identity)
                yield Text(text, labels, row.file, row.place, self.source)
            except InvalidCell as error:
                dropped.add(error.kind, row.file, row.place, error.excerpt)

    def name_labels(self, texts: Iterable[Text]) -> list[Text]:
        """The texts with labels in place of their keys; call it when all sources are read."""
        names = [
            {label_key(column): label_name(column) for column in head.columns or ()} or labels.names()
            for head, labels in zip(self._heads.values(), self.labels.values(), strict=True)
        ]

        def named(item: Text) -> Text:
            pairs = zip(names, self._heads.values(), item.labels, strict=True)
            return replace(
                item,
                labels=tuple(
                    None
                    if keys is None
                    else tuple(name.get(key, key) for key in keys)  # flags are names already, in order
                    if head.columns
                    else tuple(sorted({name.get(key, key) for key in keys}))
                    for name, head, keys in pairs
                ),
            )

        return [named(item) for item in texts]


def encoded(item: Text, heads: Sequence[Head]) -> dict[str, Any]:
    """A text and its labels as class indices, in the columns of a prepared split (`distill.data.dataset`)."""
    row: dict[str, Any] = {"text": item.text, "source": item.source}
    for head, labels in zip(heads, item.labels, strict=True):
        if head.kind == "single_label":
            row[head.column] = UNLABELLED if labels is None else head.labels.index(labels[0])
        elif labels is None:
            row[head.column] = [UNKNOWN] * len(head.labels)
        else:
            row[head.column] = [int(label in labels) for label in head.labels]
    return row


def _unlabelled(cells: Iterator[object], row: Row) -> None:
    return None
