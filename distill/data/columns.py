"""Tells by their names and values what the columns of a table are: texts, ids, labels, or none of these."""

from __future__ import annotations

import re
from calendar import day_abbr, day_name, month_abbr, month_name
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distill.data.labels import NOT_GIVEN, YES_NO, label_key, listed_in, word_of
from distill.data.sources import DataError, listed

TEXT_NAMES = (
    *("text", "comment_text", "sentence", "utterance", "message", "review", "content", "body"),
    *("tweet", "comment", "question", "query", "document", "description", "input", "prompt", "title"),
)
LABEL_NAMES = ("label", "labels", "class", "category", "target", "topic", "intent", "sentiment")
ID = re.compile(r"((.*[\W_])?(?i:ids?|idx|guid|uuid|index)|.*[a-z](Id|ID)s?|Unnamed.*)?\Z")
METADATA = re.compile(
    r"_.*|annotat(or|ors|ed_by)|labell?ed_by|labell?er|completed_by|(author|user)(name)?|session|lead_time|"
    r"(created|updated|timestamp).*|.*_at|split|fold|cross_validation",
    re.IGNORECASE,
)
NUMBER = re.compile(r"[-+(]?[€$£]? ?\d[\d.,'’\s]*([eE][-+]?\d+)? ?[%€$£)]?")
WHOLE = re.compile(r"[-+]?\d+([.,]0+)?")
AMOUNT = re.compile(r".*[€$£%( ].*")  # a number with a unit
YEAR = re.compile(r"(19|20)\d\d([.,]0+)?")
ADDRESS = re.compile(r"[^\s@]+@\S+\.\w+|(https?://|www\.)\S+", re.IGNORECASE)
MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
DATE = re.compile(
    r"(\d{4}[-./]\d{1,2}([-./]\d{1,2})?|\d{1,2}[-./]\d{1,2}[-./]\d{2,4})(([T ]|, ).*)?|"
    r"\d{1,2}:\d{2}(:\d{2})?|"
    rf"([a-z]{{3,9}}\.?,? )?(\d{{1,2}}\.? {MONTH}|{MONTH} \d{{1,2}}),? \d{{2,4}}.*",
    re.IGNORECASE,
)
NO_LABEL = (
    *("", "?", "-", "--", "n/a", "na", "n.a.", "nan", "null"),
    *("none", "nil", "unknown", "#n/a", "tbd", "(blank)"),
)
CALENDAR = {name.lower() for name in (*month_name, *month_abbr, *day_name, *day_abbr) if name}
DECISIONS = {"accept", "reject", "ignore"}  # of Prodigy, about the whole row
MANY = 1000  # most labels of a head
FEW = 20  # most numbers that are labels
LONG = 60  # mean characters of cells, over which they are free text

Columns = Mapping[str, Sequence[Any]]


def text_column(name: str, cells: Columns) -> str:
    """The column with a known name, or else the one with the longest of mostly different texts.

    Raises:
        DataError: No column looks like text.
    """
    length: dict[str, float] = {}
    for column, values in cells.items():
        texts = [value for value in values if isinstance(value, str) and re.search(r"[^\W\d_]", value)]
        dates = sum(DATE.fullmatch(text.strip()) is not None for text in texts[:100])
        repeats = 4 if column.lower().rpartition(".")[2] in TEXT_NAMES else 2
        different = len(set(texts)) * repeats > len(texts) and dates * 2 < len(texts[:100])
        if len(texts) * 2 > len(values) and different:
            length[column] = sum(map(len, texts)) / len(texts)
    for known in TEXT_NAMES:
        for column in length:
            if column.lower().rpartition(".")[2] == known:
                return column
    if not length:
        raise DataError(
            f"{name}: no column looks like text, expected one of mostly different strings, {listed(cells)}"
        )
    return max(length, key=length.__getitem__)


def is_row(text: str, cells: Columns) -> bool:
    """Whether the names of the columns look like a row, as in a file without a header."""
    others = [column for column in cells if column and column != text]
    as_value = [column for column in others if column in {word_of(value) for value in cells[column]}]
    words = len(text.split())
    return (words > 3 and len(text) > 25) or (words > 2 and bool(others) and others == as_value)


def id_column(text: str, cells: Columns) -> str | None:
    """The first column with the name of an id whose values are all different."""
    for column, values in cells.items():
        words = {word_of(value) for value in values if not isinstance(value, (list, dict))}
        if column != text and ID.match(column) and len(words) == len(values) and "" not in words:
            return column
    return None


def head_columns(cells: Columns) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The settings of a head for each column that looks like labels, and why the others do not.

    Several columns of 0 and 1 are one head, under the name of the first.
    """
    flags = [column for column, values in cells.items() if _are_flags(values)]
    heads: dict[str, dict[str, Any]] = {}
    others: dict[str, str] = {}
    for column, values in cells.items():
        if len(flags) > 1 and column in flags:
            if column == flags[0]:
                heads[column] = {"columns": flags}
        elif isinstance(found := _head(column, values), str):
            others[column] = found
        else:
            heads[column] = {"column": column, **found}
    return heads, others


def remarks(labels: Mapping[str, int]) -> list[str]:
    """What to look at in the labels of a head: those that differ in case alone, and words for no label."""
    same: dict[str, list[str]] = {}
    for label in labels:
        same.setdefault(label_key(label).casefold(), []).append(label)
    found = [
        f"{' and '.join(map(repr, group))} are different labels" for group in same.values() if len(group) > 1
    ]
    if empty := [label for label in labels if label.lower() in NO_LABEL]:
        also = "".join(f", and so is {label!r}" for label in empty[1:])
        found.append(f"{empty[0]!r} is a label{also} (empty the cells if they mean unlabelled)")
    return found


def _are_flags(values: Sequence[Any]) -> bool:
    if any(isinstance(value, (list, dict)) for value in values):
        return False
    words = [word for value in values if (word := word_of(value).lower())]
    return len(words) * 2 > len(values) and {*words} - {NOT_GIVEN} <= {*YES_NO} and {*words} != {NOT_GIVEN}


def _head(column: str, values: Sequence[Any]) -> dict[str, Any] | str:
    """The settings of a column's head, or why it is none."""
    values = [value if (items := listed_in(value)) is None else items for value in values]
    lists = [value for value in values if isinstance(value, list)]
    cells = [value for value in values if not isinstance(value, list) and word_of(value)]
    if any(isinstance(item, (list, dict)) for value in (cells, *lists) for item in value):
        return "objects"
    if not (
        counts := Counter(word_of(value) for value in (*cells, *(item for each in lists for item in each)))
    ):
        return "empty"
    if len(counts) < 2 and not any(len(value) == 0 for value in lists):
        gaps = len(cells) < len(values) and ", besides empty cells, which mean unlabelled"
        return f"one value, {next(iter(counts))!r}{gaps or ''}"
    name = column.rpartition(".")[2]
    likely = re.split(r"[\W_]", name)[0].lower() in LABEL_NAMES
    is_id = bool(name) and not likely and ID.match(name) is not None
    if not likely and METADATA.fullmatch(name):
        return "metadata"
    if counts.keys() <= DECISIONS:
        return "decisions of an annotator, which do not change how a row is read"
    known = {word: count for word, count in counts.items() if word.lower() not in NO_LABEL} or counts
    total, repeated = sum(known.values()), sum(count for count in known.values() if count > 1)
    if _share(DATE, known) > 0.9 or (not likely and _share(YEAR, known) == 1):
        return "dates"
    if not likely and {word.lower() for word in known} <= CALENDAR:
        return "months or days of the week"
    if _share(ADDRESS, known) > 0.9:
        return "addresses"
    if _share(NUMBER, known) == 1:
        most = FEW if _share(WHOLE, known) == 1 else FEW // 2
        few = len(known) * 2 <= total if likely else len(known) <= min(most, total / 4)
        if not few or len(known) > MANY or is_id or (not likely and _share(AMOUNT, known)):
            return "numbers"
        return {"kind": "multi_label"} if any(len(each) > 1 for each in lists) else {}
    if is_id:
        return "ids"
    if any(len(value) > 1 for value in lists):
        few = len(counts) <= MANY and len(counts) * 2 <= counts.total()
        return {"kind": "multi_label"} if few else "lists of mostly different values"
    if not lists and (separator := _separator(counts)):
        return {"kind": "multi_label"} | ({"separator": separator} if separator != "|" else {})
    if sum(len(word) * count for word, count in known.items()) > LONG * total:
        return "free text"
    if len(known) * 2 > total or len(known) > MANY or repeated < 0.8 * total:
        return "mostly different values"
    return {}


def _separator(counts: Counter[str]) -> str | None:
    """What separates several labels in the cells of a column, if they look like that."""
    for separator in "|;,":
        parts = Counter(p.strip() for word in counts.elements() for p in word.split(separator) if p.strip())
        joined = sum(separator in word for word in counts)
        recombine = len(parts) < len(counts) + (separator != ",")
        short = sum(map(len, parts)) <= LONG * len(parts)
        if joined and recombine and short and len(parts) * 2 <= parts.total() and len(parts) <= MANY:
            return separator
    return None


def _share(pattern: re.Pattern[str], counts: Mapping[str, int]) -> float:
    """The share of cells that a pattern matches."""
    return sum(n for word, n in counts.items() if pattern.fullmatch(word)) / sum(counts.values())
