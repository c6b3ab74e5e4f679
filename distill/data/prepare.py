"""Data: the rows of a recipe's sources, checked, put in splits and written for the stages.

`prepare` decides what a cell means, drops rows that are at fault and counts them, and refuses data
that no model can learn from. Labelled splits are held in memory once; unlabelled texts stream
through, and only eight bytes of each are kept. How a file is read is left to `sources`, the files of
the prepared texts to `prepared`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import write_texts
from distill.data.labels import InvalidCell, label_of, label_reader, text_of
from distill.data.sources import DataError, fingerprint, open_source
from distill.data.splits import PRIORITY, SPLITS, Faults, Text, draw, heads_of, keep_once, tally
from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.recipe.data_section import Data, Fraction, Texts
from distill.recipe.schema import Recipe


def prepare(recipe: Recipe, folder: Path, report_path: Path) -> dict[str, Any]:
    """Figures of the prepared data: rows of each split, rows dropped and leaked, labels of heads.

    Writes train, validation, test and unlabeled, each a `datasets.Dataset` on disk, and heads.json
    into `folder`, which is there and empty. Columns: `text`; for each head `Head.column`, an int32
    class index or UNLABELLED, or for multi_label a list of 0/1 int8, all UNKNOWN if not labelled.

    Raises:
        DataError: If a source cannot be read, too many rows are at fault or the labels are no use;
            `folder` is then as before, and the report is written if rows were read.
    """
    dropped, leaked = Faults(), Faults()
    report: dict[str, Any] = {"rows": {}, "dropped": dropped.kinds, "leaked": leaked.kinds}
    try:
        splits = _labelled(recipe, dropped)
        keep_once(splits, leaked)
        draw(recipe, splits)
        counts = tally(recipe, splits)
        heads, faults = heads_of(recipe, splits, counts)
        report["rows"] = {split: len(splits[split]) for split in SPLITS}
        report["labels"] = {
            head.name: {label: {s: count[s][label] for s in SPLITS} for label in head.labels}
            for head, count in zip(heads, counts, strict=True)
        }
        if faults:
            raise DataError("\n".join(faults))
        texts = ({"text": text} for text in unlabelled(recipe.data, splits, dropped, leaked))
        report["rows"]["unlabeled"] = write_texts(folder / "unlabeled", texts)
        for split in SPLITS:
            write_texts(folder / split, (_encoded(text, heads) for text in splits[split]), heads)
        content = json.dumps([head.to_json() for head in heads], ensure_ascii=False, indent=1)
        (folder / "heads.json").write_text(content, "utf-8")
    finally:
        dropped.tell("dropped")
        leaked.tell("kept once")
        report_path.write_text(json.dumps(report, ensure_ascii=False, indent=1), "utf-8")
    return {
        "rows": report["rows"],
        "dropped": dict(dropped.counts()),
        "leaked": leaked.counts().total(),
        "heads": {head.name: len(head.labels) for head in heads},
    }


def read_labelled(recipe: Recipe, heads: Sequence[Head]) -> tuple[list[str], dict[str, Any]]:
    """Texts and labels (as `prepared.hard_labels` gives them) of a recipe's train, and of it alone.

    Args:
        recipe: Whose validation and test are fractions, which are not drawn.
        heads: With the labels to count by, in order.

    Raises:
        DataError: As `prepare`.
    """
    dropped = Faults()
    try:
        rows = _labelled(recipe, dropped)["train"]
    finally:
        dropped.tell("dropped")
    encoded = [_encoded(row, heads) for row in rows]
    labels = {head.name: np.array([row[head.column] for row in encoded]) for head in heads}
    return [row.text for row in rows], labels


def contents(data: Texts) -> tuple[list[Any], list[Any]]:
    """What tells the contents of the labelled sources from others, and those of the unlabelled ones."""
    root = Path(data.root)
    labelled = (data.train, data.validation, data.test) if isinstance(data, Data) else ()
    return (
        [one.fraction if isinstance(one, Fraction) else fingerprint(one, root) for one in labelled],
        [fingerprint(source, root) for source in data.unlabeled],
    )


def _labelled(recipe: Recipe, dropped: Faults) -> dict[str, list[Text]]:
    """The sound rows of the splits that are sources of their own."""
    data, ids = recipe.data, set[str]()
    readers = [label_reader(name, head) for name, head in recipe.heads.items()]
    columns = [data.text, *([data.id] if data.id else [])]
    start = len(columns)
    for head in recipe.heads.values():
        columns += [head.column] if head.column else head.columns or ()
    splits: dict[str, list[Text]] = {split: [] for split in SPLITS}
    for split in PRIORITY:
        source = getattr(data, split)
        if isinstance(source, Fraction):
            continue
        total, before = 0, dropped.counts()
        opened = open_source(source, Path(data.root), text=data.text, role=split)
        for row in opened.rows(columns):
            total += 1
            try:
                text = text_of(row.cells[0], data.max_text_bytes)
                cells = iter(row.cells[start:])
                labels = tuple(read(cells, row) for read in readers)
                if data.id and (name := label_of(row.cells[1])):
                    if name in ids:
                        raise InvalidCell("duplicate id", name)
                    ids.add(name)
                splits[split].append(Text(text, labels, row.file, row.place))
            except InvalidCell as fault:
                dropped.add(fault.args[0], row.file, row.place, fault.args[1])
        _bearable(f"{opened.name}: {split}", dropped.counts() - before, total, data.max_bad_rows)
        if not splits[split]:
            raise DataError(f"{opened.name}: {split} has no rows, expected labelled texts")
    return splits


def _bearable(where: str, bad: Counter[str], total: int, limit: float) -> None:
    if bad.total() > limit * total:
        [(kind, count)] = bad.most_common(1)
        raise DataError(
            f"{where}: {bad.total()} of {total} rows are at fault, mostly {kind} ({count}), "
            f"expected a share of at most {limit:g} (mend the rows, which a run's data_report.json lists, or "
            "raise data.max_bad_rows in the recipe)"
        )


def unlabelled(
    data: Texts, splits: Mapping[str, Sequence[Text]], dropped: Faults, leaked: Faults
) -> Iterator[str]:
    """The unlabelled texts, each once and none of the splits given, streamed.

    Raises:
        DataError: A source cannot be read, or too many rows are at fault.
    """
    held = {_short(item.text): split for split, items in splits.items() for item in items}
    seen: set[int] = set()
    total, before = 0, dropped.counts()
    for source in data.unlabeled:
        opened = open_source(source, Path(data.root), text=data.text, role="unlabeled")
        for row in opened.rows([data.text]):
            total += 1
            try:
                text = text_of(row.cells[0], data.max_text_bytes)
            except InvalidCell as fault:
                dropped.add(fault.args[0], row.file, row.place, fault.args[1])
                continue
            short = _short(text)
            if (split := held.get(short, "train")) != "train":
                leaked.add(f"text of unlabeled in {split}", row.file, row.place, text)
            elif short not in seen and short not in held:
                seen.add(short)
                yield text
    _bearable("data.unlabeled", dropped.counts() - before, total, data.max_bad_rows)


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _encoded(item: Text, heads: Sequence[Head]) -> dict[str, Any]:
    row: dict[str, Any] = {"text": item.text}
    for head, labels in zip(heads, item.labels, strict=True):
        if head.kind == "single_label":
            row[head.column] = UNLABELLED if labels is None else head.labels.index(labels[0])
        elif labels is None:
            row[head.column] = [UNKNOWN] * len(head.labels)
        else:
            row[head.column] = [int(label in labels) for label in head.labels]
    return row
