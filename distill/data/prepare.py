"""Data preparation: reads the sources of a recipe, checks rows and labels, and writes the splits.

`prepare` drops and counts invalid rows and raises DataError for labels that no model can learn.
Labelled splits are held in memory. Unlabelled texts are streamed, and eight bytes of each are kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import ceil, log
from pathlib import Path
from typing import TypedDict

from distill.data.dataset import write_texts
from distill.data.labels import InvalidCell, joined_text
from distill.data.rows import (
    LOG,
    SHOWN,
    OtherSpelling,
    RowIssues,
    RowKind,
    RowReader,
    Text,
    encoded,
    labels_of,
    other_spellings,
)
from distill.data.sources import (
    DataError,
    Source,
    encoding_hint,
    fingerprint,
    listed,
    open_source,
    quoted,
)
from distill.data.splits import (
    PRIORITY,
    SPLITS,
    count_labels,
    leave_out_rare,
    make_heads,
    remove_leaks,
    sample_fractions,
    sample_train,
)
from distill.recipe.data_section import Data, Texts
from distill.recipe.data_sources import Fraction, Hub, LabelledSource
from distill.recipe.merge_section import frozen_heads
from distill.recipe.near import near
from distill.recipe.schema import Recipe
from distill.storage import json_digest, write_json


class SourceCounts(TypedDict):
    """The texts of a source by split, and those that are labelled by head and split."""

    name: str
    rows: dict[str, int]
    labelled: dict[str, dict[str, int]]


class DataReport(TypedDict, total=False):
    """The content of data_report.json. `rows` and `labels` are missing if a source cannot be read."""

    rows: dict[str, int]  # by split, and of the unlabelled texts
    dropped: dict[str, RowKind]  # invalid rows by kind
    leaked: dict[str, RowKind]  # texts that were removed because another split has them
    labels: dict[str, dict[str, dict[str, int]]]  # texts by head, label and split
    labelled: dict[str, dict[str, int]]  # texts with labels by head and split
    spellings: dict[str, list[OtherSpelling]]  # of labels, by head
    rare: dict[str, dict[str, int]]  # texts in train by head and label, of labels that `min_texts` leaves out
    sources: list[SourceCounts]  # where the recipe lists several


class DataCounts(TypedDict, total=False):
    """The counts that `prepare` returns.

    They are rows by split, invalid rows by kind, labels by head, labelled texts by head and split, and where
    the recipe lists several sources the counts of each.
    """

    rows: dict[str, int]
    dropped: dict[str, int]
    leaked: int
    heads: dict[str, int]
    labelled: dict[str, dict[str, int]]
    sources: list[SourceCounts]


def prepare(recipe: Recipe, folder: Path, report_path: Path) -> DataCounts:
    """Write the splits and heads.json to an empty folder, and a `DataReport`; returns the counts.

    Without `data.train` the unlabelled texts are the training texts, each once.

    The splits are train, validation, test and unlabeled, each a `datasets.Dataset`. The columns are `text`
    and, for each head, `Head.column`: an int32 class index or UNLABELLED, or for multi_label a list of int8
    0/1, all UNKNOWN if unlabelled. The report is also written on failure. Where the recipe lists several
    sources, the column `source` has the number of each text's source, and sources.json their counts.

    Raises:
        DataError: A source cannot be read, too many rows are invalid, or labels cannot be learned.
            `folder` is then empty.
    """
    dropped, leaked = RowIssues(), RowIssues()
    report: DataReport = {"rows": {}, "dropped": dropped.kinds, "leaked": leaked.kinds}
    try:
        splits = _labelled(recipe, dropped, report)
        if recipe.data.train is None:
            splits["train"] = _unlabelled_training_texts(recipe, dropped)
        remove_leaks(splits, leaked)
        sample_fractions(recipe, splits)
        remove_leaks(splits, leaked)  # a text of several sources may be in other splits of each
        sample_train(recipe, splits)
        report["rare"] = leave_out_rare(recipe, splits)
        counts = count_labels(recipe, splits)
        heads, errors = make_heads(recipe, splits, counts)
        report["rows"] = {split: len(splits[split]) for split in SPLITS}
        report["labels"] = {
            head.name: {label: {s: count[s][label] for s in SPLITS} for label in head.labels}
            for head, count in zip(heads, counts, strict=True)
        }
        report["labelled"] = {
            head.name: {split: count[split][None] for split in SPLITS}
            for head, count in zip(heads, counts, strict=True)
        }
        if several := recipe.data.several:
            report["sources"] = _source_counts(recipe, splits)
        errors += _abstain_errors(recipe, report["labelled"])
        if errors:
            raise DataError("\n".join(errors))
        if several:
            _log_labels_apart(recipe, splits["train"])
        _log_unlabelled(report["labelled"])
        others = unlabelled(recipe.data, splits, dropped, leaked) if recipe.data.train is not None else ()
        report["rows"]["unlabeled"] = write_texts(folder / "unlabeled", ({"text": t.text} for t in others))
        for split in SPLITS:
            rows = (encoded(text, heads) for text in splits[split])
            write_texts(folder / split, rows, heads, sourced=several)
        if several:
            write_json(folder / "sources.json", report["sources"])
        write_json(folder / "heads.json", [head.to_json() for head in heads])
    finally:
        dropped.log("dropped")
        leaked.log("removed")
        write_json(report_path, report)
    counts_of_run: DataCounts = {
        "rows": report["rows"],
        "dropped": dict(dropped.counts()),
        "leaked": leaked.counts().total(),
        "heads": {head.name: len(head.labels) for head in heads},
        "labelled": report["labelled"],
    }
    if several:
        counts_of_run["sources"] = report["sources"]
    return counts_of_run


def contents(data: Texts) -> tuple[list[str | float], list[str]]:
    """Values that change with the content of the sources: those of the splits, and of unlabelled texts."""
    root = Path(data.root)
    unlabelled = [fingerprint(source, root) for source in data.unlabeled]
    sources = data.sources if isinstance(data, Data) else ()
    return (
        [
            json_digest(unlabelled)  # which are the training texts
            if one is None
            else one.fraction
            if isinstance(one, Fraction)
            else fingerprint(one, root)
            for source in sources
            for one in (source.train, source.validation, source.test)
        ],
        unlabelled,
    )


def _labelled(recipe: Recipe, dropped: RowIssues, report: DataReport) -> dict[str, list[Text]]:
    """The valid rows of the splits that have a source of their own."""
    splits: dict[str, list[Text]] = {split: [] for split in SPLITS}
    labels = labels_of(recipe.heads)
    for number, source in enumerate(recipe.data.sources):
        reader = RowReader(
            recipe.heads,
            source.text_columns,
            source.id,
            columns=source.columns,
            labels=labels,
            source=number,
        )
        for split, opened, absent in _opened(recipe, source, reader):
            before = dropped.counts()
            texts = [*reader.read(opened, dropped, absent)]
            invalid = dropped.counts() - before
            total = len(texts) + invalid.total()
            place = getattr(source, split)
            check_invalid(f"{opened.name}: {split}", invalid, total, recipe.data, place)
            if not texts:
                raise DataError(f"{opened.name}: {split} has no rows, expected labelled texts")
            splits[split] += texts
    report["spellings"] = other_spellings(labels)
    return {split: reader.name_labels(items) for split, items in splits.items()}


def _opened(
    recipe: Recipe, source: LabelledSource, reader: RowReader
) -> Iterator[tuple[str, Source, list[str]]]:
    """The splits of a source that are no fractions, each with the heads that it has no columns for."""
    places = {split: getattr(source, split) for split in PRIORITY}
    places = {split: one for split, one in places.items() if isinstance(one, str | Hub)}
    found: set[str] = set()
    for split, place in places.items():
        opened = open_source(
            place, Path(recipe.data.root), text=source.text_columns, role=split, encoding=source.encoding
        )
        absent = _absent(reader, source, opened)
        if recipe.data.several:
            if split == "train" and source.columns:
                absent = []
            if not any(reader.columns(name) and name not in absent for name in recipe.heads):
                raise DataError(
                    f"{opened.name}: {split} has the column of no head, {listed(opened.columns)} (name those "
                    f"of its heads in `columns` of {source.name})"
                )
        else:
            found |= recipe.heads.keys() - {*absent}
            if split == [*places][-1]:  # which has what no other source has; train has all columns
                absent = [] if split == "train" else [name for name in absent if name in found]
        yield split, opened, absent


def _absent(reader: RowReader, source: LabelledSource, opened: Source) -> list[str]:
    """The heads that a source has no columns for, unless a column of a similar name belongs to no head."""
    columns = {name: reader.columns(name) for name in reader.labels}
    used = {*source.text_columns, source.id, *(column for own in columns.values() for column in own)}
    missing = {name: [c for c in own if not opened.has(c)] for name, own in columns.items()}
    free = {*opened.columns} - used
    return [name for name, lost in missing.items() if lost and not any(near(one, free) for one in lost)]


def _source_counts(recipe: Recipe, splits: Mapping[str, Sequence[Text]]) -> list[SourceCounts]:
    found = []
    for number, source in enumerate(recipe.data.sources):
        own = {split: [text for text in splits[split] if text.source == number] for split in SPLITS}
        counts = zip(recipe.heads, count_labels(recipe, own), strict=True)
        labelled = {head: {split: count[split][None] for split in SPLITS} for head, count in counts}
        rows = {split: len(texts) for split, texts in own.items()}
        found.append(SourceCounts(name=source.name, rows=rows, labelled=labelled))
    return found


def _log_labels_apart(recipe: Recipe, train: Sequence[Text]) -> None:
    """Log a head of which several sources have labels of their own, as if one label had several names."""
    for index, head in enumerate(recipe.heads):
        sources: dict[str, set[int]] = {}
        for text in train:
            for label in text.labels[index] or ():
                sources.setdefault(label, set()).add(text.source)
        own = {
            number: [x for x, some in sources.items() if some == {number}]
            for number in {*chain(*sources.values())}
        }
        apart = {number: labels for number, labels in own.items() if labels}
        if len(apart) > 1:
            names = [
                f"{recipe.data.sources[number].name}: {', '.join(map(quoted, labels[:SHOWN]))}"
                for number, labels in sorted(apart.items())
            ]
            LOG.info(
                f"data: head {head!r}: labels of one source alone, {'; '.join(names)} (if they mean the "
                "same, give them one name in the files)"
            )


def _unlabelled_training_texts(recipe: Recipe, dropped: RowIssues) -> list[Text]:
    texts = unlabelled(recipe.data, {}, dropped, RowIssues())
    if found := [replace(text, labels=(None,) * len(recipe.heads)) for text in texts]:
        return found
    raise DataError("data.unlabeled: has no texts, expected some")


def _abstain_errors(recipe: Recipe, labelled: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The heads whose promise of accuracy no validation text could keep, a line each."""
    lines = []
    for name, head in recipe.heads.items():
        count, rule = labelled[name]["validation"], head.abstain
        if not rule or name in frozen_heads(recipe):  # which abstains as before
            continue
        fewest = 1 if rule.accuracy is None else fewest_texts(rule.accuracy, rule.confidence)
        if count < fewest:
            promise = ""
            if rule.accuracy is not None:
                promise = f" for accuracy {rule.accuracy:g} with confidence {rule.confidence:g}"
            lines.append(
                f"head {name!r}: abstain: {count} texts of validation are labelled, expected {fewest} or more"
                f"{promise} (label more of them, or leave abstain out)"
            )
    return lines


def fewest_texts(accuracy: float, confidence: float) -> int:
    """The number of texts that must all be right before an accuracy can be promised."""
    return ceil(log(1 - confidence) / log(accuracy))


def _log_unlabelled(labelled: Mapping[str, Mapping[str, int]]) -> None:
    """Log the heads that cannot be measured on validation or test."""
    for head, counts in labelled.items():
        for split in ("validation", "test"):
            if not counts[split]:
                why = f"no text of {split} is labelled, so it has no metrics there"
                LOG.info(f"data: head {head!r}: {why} but the student's agreement with the teacher")


class InvalidRows(DataError):
    """Too many rows of a source are invalid."""


def check_invalid(where: str, invalid: Counter[str], total: int, data: Texts, source: str | Hub) -> None:
    """Raise InvalidRows if the share of invalid rows is larger than the recipe allows."""
    if invalid.total() > data.max_bad_rows * total:
        [(kind, count)] = invalid.most_common(1)
        todo = "fix the rows, which a run lists in data_report.json, or raise data.max_bad_rows in the recipe"
        if kind == "undecodable bytes" and (encoding := encoding_hint(source, Path(data.root))):
            todo = f"set data.encoding, probably to {encoding}, or save the file as UTF-8"
        raise InvalidRows(
            f"{where}: {invalid.total()} of {total} rows are invalid, mostly {kind} ({count}), expected a "
            f"share of at most {data.max_bad_rows:g} ({todo})"
        )


def unlabelled(
    data: Texts, splits: Mapping[str, Sequence[Text]], dropped: RowIssues, leaked: RowIssues
) -> Iterator[Text]:
    """The unlabelled texts, streamed, without repeats and without the texts of `splits`.

    Raises:
        DataError: A source cannot be read, or too many rows are invalid.
    """
    held = {_short(item.text): split for split, items in splits.items() for item in items}
    seen: set[int] = set()
    total, before, root = 0, dropped.counts(), Path(data.root)
    for source in data.unlabeled:
        columns = data.text_columns
        opened = open_source(source, root, text=columns, role="unlabeled", encoding=data.encoding)
        for row in opened.rows(columns):
            total += 1
            try:
                text = joined_text(row.cells)
            except InvalidCell as error:
                dropped.add(error.kind, row.file, row.place, error.excerpt)
                continue
            short = _short(text)
            if (split := held.get(short, "train")) != "train":
                leaked.add(f"text of unlabeled in {split}", row.file, row.place, text)
            elif short not in seen and short not in held:
                seen.add(short)
                yield Text(text, (), row.file, row.place)
    if data.unlabeled:
        check_invalid("data.unlabeled", dropped.counts() - before, total, data, data.unlabeled[0])


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
