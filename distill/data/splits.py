"""Splits: which text is in which split, and the heads that the labels make.

A split that is a fraction is a seeded, stratified sample of train. The same rows and seed give the same
sample. Rows with equal texts stay together, and the first two texts of each label stay in train. This
module works on rows in memory and writes nothing. Errors are returned as lines, for `prepare` to raise.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from distill.heads import Head
from distill.recipe.data_section import Fraction, HeadRecipe
from distill.recipe.schema import Recipe
from distill.run import LOG

SPLITS = ("train", "validation", "test")
PRIORITY = ("test", "validation", "train")  # a text or id in several splits stays in the first of these
FIRST = 10  # rows of a kind that data_report.json lists
EXCERPT = 80  # characters of a row that are shown

Labels = tuple[tuple[str, ...] | None, ...]  # the labels that apply, by head; None where unlabelled
LabelCounts = dict[str, Counter[str | None]]  # texts of a head by split and label; None: all labelled texts


@dataclass(frozen=True)
class Text:
    """A valid row: its text, its labels by head, and its file and place."""

    text: str
    labels: Labels
    file: str
    place: int | str


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


def remove_leaks(splits: dict[str, list[Text]], leaked: RowIssues) -> None:
    """Remove a text from train if it is in validation or test, and from validation if it is in test."""
    seen: dict[str, str] = {}
    for split in PRIORITY:
        kept = []
        for item in splits[split]:
            if other := seen.get(item.text):
                leaked.add(f"text of {split} in {other}", item.file, item.place, item.text)
            else:
                kept.append(item)
        seen.update((item.text, split) for item in kept)
        splits[split] = kept


def sample_fractions(recipe: Recipe, splits: dict[str, list[Text]]) -> None:
    """Move the splits that are fractions out of train, first test, then validation."""
    size = len({item.text for item in splits["train"]})
    for split in ("test", "validation"):
        source = getattr(recipe.data, split)
        if isinstance(source, Fraction):
            train = splits["train"]
            texts, labels = [item.text for item in train], [item.labels for item in train]
            seed = f"{recipe.seed} {split}"
            sample = set(stratified(texts, labels, source.fraction, seed, of=size))
            splits[split] = [item for row, item in enumerate(train) if row in sample]
            splits["train"] = [item for row, item in enumerate(train) if row not in sample]


def stratified(
    texts: Sequence[str],
    labels: Sequence[Labels],
    fraction: float,
    seed: int | str,
    *,
    of: int | None = None,
) -> list[int]:
    """The rows of a stratified sample, in ascending order.

    The unique texts are sorted by their labels in all heads, then at random, and the sample takes evenly
    spaced ones. The size of each class of the first head is within one of its share, unless the two texts
    that stay in train prevent it. Within these classes the other heads are stratified too.

    `fraction` is a share of `of` unique texts, by default of those in `texts`.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows[text].append(row)
    shuffle = random.Random(seed)
    key: dict[str, Any] = {}
    for text, [first, *_] in rows.items():
        key[text] = (*((v is not None, v or ()) for v in labels[first]), shuffle.random())
    kept = _first_two(rows, labels)
    units = sorted(rows, key=key.__getitem__)
    wanted = min(round(fraction * (of or len(units))), len(units))
    share = Counter(key[units[(2 * i + 1) * len(units) // (2 * wanted)]][0] for i in range(wanted))
    free: dict[Any, list[str]] = defaultdict(list)
    for text in units:
        if text not in kept:
            free[key[text][0]].append(text)
    sample: list[int] = []
    for block, candidates in free.items():
        count = min(share[block], len(candidates))
        for i in range(count):
            sample += rows[candidates[(2 * i + 1) * len(candidates) // (2 * count)]]
    return sorted(sample)


def _first_two(rows: Mapping[str, Sequence[int]], labels: Sequence[Labels]) -> set[str]:
    """The first two texts of each label of each head, in the order of the file."""
    seen: Counter[tuple[int, str]] = Counter()
    kept: set[str] = set()
    for text, places in rows.items():
        own = {(head, x) for row in places for head, some in enumerate(labels[row]) for x in some or ()}
        if any(seen[label] < 2 for label in own):
            kept.add(text)
        seen.update(own)
    return kept


def count_labels(recipe: Recipe, splits: Mapping[str, Sequence[Text]]) -> list[LabelCounts]:
    """By head and split, the number of texts with each label, and under None of labelled texts."""
    counts: list[LabelCounts] = [{split: Counter() for split in SPLITS} for _ in recipe.heads]
    for split, items in splits.items():
        for item in items:
            for count, labels in zip(counts, item.labels, strict=True):
                if labels is not None:
                    count[split].update((None, *labels))
    return counts


def make_heads(
    recipe: Recipe, splits: Mapping[str, Sequence[Text]], counts: Sequence[LabelCounts]
) -> tuple[tuple[Head, ...], list[str]]:
    """The heads with their labels in order, and all errors of the labels, a line each."""
    lines = [
        f"data.{split}: no rows are left, expected labelled texts "
        "(give more texts, another fraction or a file)"
        for split in SPLITS
        if not splits[split]
    ]
    heads = []
    for index, (name, head) in enumerate(recipe.heads.items()):
        count = counts[index]
        present = sorted(label for label in count["train"] if label is not None)
        labels = head.labels or head.columns or tuple(present)
        for split in SPLITS:
            if splits[split] and not count[split][None]:
                lines.append(f"head {name!r}: no text of {split} is labelled, expected some")
        if repeated := [label for label, count in Counter(labels).items() if count > 1]:
            lines.append(f"head {name!r}: label {repeated[0]!r} is listed twice (remove one)")
        if head.columns and head.labels and set(head.columns) != set(head.labels):
            lines.append(f"head {name!r}: `labels` must be the names in `columns` (or leave it out)")
        elif count["train"][None]:
            for split in ("validation", "test"):
                for label in sorted({x for x in count[split] if x is not None} - {*labels}):
                    first = next(t for t in splits[split] if label in (t.labels[index] or ()))
                    lines.append(
                        f"{first.file}:{first.place}: head {name!r}: label {label!r} is in {split} "
                        "but not in train (add texts of it to train, or remove it)"
                    )
            lines += _label_errors(name, head, labels, count["train"])
        heads.append(Head(name, head.kind, tuple(labels), head.weight))
    return tuple(heads), lines


def _label_errors(
    name: str, head: HeadRecipe, labels: Sequence[str], train: Counter[str | None]
) -> list[str]:
    """The reasons why a head cannot be trained on its labels in train, a line each."""
    present = [label for label in labels if train[label]]
    if head.kind == "single_label" and len(present) < 2:
        return [
            f"head {name!r}: one class in train, {', '.join(map(repr, present))}, expected two or "
            "more (check its column, or leave the head out)"
        ]
    if head.kind == "multi_label" and len(labels) < 2:
        share = train[labels[0]] if labels else 0
        if share in (0, train[None]):
            word = "always" if share else "never"
            return [f"head {name!r}: its one label {word} applies in train, expected both"]
    if head.kind == "multi_label" and (head.labels or head.columns):
        return []  # a label that the recipe names may never apply
    todo = "add texts of it, or empty its cells, which leaves them unlabelled"
    return [
        f"head {name!r}: label {label!r} has {train[label]} text(s) in train, expected 2 ({todo})"
        for label in labels
        if train[label] < 2
    ]
