"""The labelled splits: which text stands in which, and what heads their labels make.

A split that is a fraction is a seeded, stratified part of train, the same for the same file and
seed. Rows with the same text stay together, and the first two texts of each label stay in train.
Works on rows in memory and writes nothing; what is wrong comes back as lines for `data` to raise.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.heads import Head
from distill.recipe.data_section import Fraction, HeadRecipe
from distill.recipe.schema import Recipe

SPLITS = ("train", "validation", "test")
PRIORITY = ("test", "validation", "train")  # the first to hold a text or an id keeps it
FIRST = 10  # faults of a kind that the report shows

Labels = tuple[tuple[str, ...] | None, ...]  # per head those that apply; None is not labelled
Tally = dict[str, Counter[str | None]]  # of a head: by split, texts of each label; None: labelled


@dataclass(frozen=True)
class Text:
    """A sound row: its text, its labels in each head, and where it stands."""

    text: str
    labels: Labels
    file: str
    place: int | str


@dataclass
class Faults:
    """Counts of rows at fault by kind, with the first of each."""

    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, file: str, place: int | str, excerpt: str) -> None:
        """Count a row, and keep where it stands if it is among the first."""
        entry = self.kinds.setdefault(kind, {"count": 0, "first": []})
        entry["count"] += 1
        if entry["count"] <= FIRST:
            excerpt = excerpt if len(excerpt) <= 80 else excerpt[:79] + "…"
            excerpt = excerpt.encode("utf-8", "replace").decode()
            entry["first"].append({"file": file, "line": place, "excerpt": excerpt})

    def counts(self) -> Counter[str]:
        """The number of rows of each kind."""
        return Counter({kind: entry["count"] for kind, entry in self.kinds.items()})

    def tell(self, what: str) -> None:
        """Print one line of each kind on stderr."""
        for kind, entry in self.kinds.items():
            first = entry["first"][0]
            place = f"{first['file']}:{first['line']}: {first['excerpt']!r}"
            print(f"data: {what} {entry['count']} row(s): {kind}; first {place}", file=sys.stderr)


def keep_once(splits: dict[str, list[Text]], leaked: Faults) -> None:
    """Keep a text that stands in two splits only in test, or else in validation."""
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


def draw(recipe: Recipe, splits: dict[str, list[Text]]) -> None:
    """Draw the splits that are fractions from train, first test, then validation."""
    size = len({item.text for item in splits["train"]})
    for split in ("test", "validation"):
        source = getattr(recipe.data, split)
        if isinstance(source, Fraction):
            train = splits["train"]
            texts, labels = [item.text for item in train], [item.labels for item in train]
            seed = f"{recipe.seed} {split}"
            drawn = set(stratified(texts, labels, source.fraction, seed, of=size))
            splits[split] = [item for row, item in enumerate(train) if row in drawn]
            splits["train"] = [item for row, item in enumerate(train) if row not in drawn]


def stratified(
    texts: Sequence[str],
    labels: Sequence[Labels],
    fraction: float,
    seed: int | str,
    *,
    of: int | None = None,
) -> list[int]:
    """The rows of a stratified part, in ascending order.

    The unique texts are sorted by their labels in all heads and then at random, and evenly spaced
    ones are taken: each class of the first head is within one of its share, as far as the two
    texts kept back of every label allow, and the other heads follow within its classes.

    Args:
        texts: The text of each row.
        labels: The labels of each row, for each head.
        fraction: Share of the unique texts to take.
        seed: What the random order depends on.
        of: Number of unique texts that `fraction` is a share of; by default all there are.
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
    taken: list[int] = []
    for block, candidates in free.items():
        count = min(share[block], len(candidates))
        for i in range(count):
            taken += rows[candidates[(2 * i + 1) * len(candidates) // (2 * count)]]
    return sorted(taken)


def _first_two(rows: Mapping[str, Sequence[int]], labels: Sequence[Labels]) -> set[str]:
    """The first two texts of each label of each head, in the order of the file."""
    seen: Counter[tuple[int, str]] = Counter()
    kept: set[str] = set()
    for text, places in rows.items():
        having = {
            (head, label)
            for row in places
            for head, applying in enumerate(labels[row])
            for label in applying or ()
        }
        if any(seen[label] < 2 for label in having):
            kept.add(text)
        seen.update(having)
    return kept


def tally(recipe: Recipe, splits: Mapping[str, Sequence[Text]]) -> list[Tally]:
    """For each head and split, how many texts have each label, and under None any or none."""
    counts: list[Tally] = [{split: Counter() for split in SPLITS} for _ in recipe.heads]
    for split, items in splits.items():
        for item in items:
            for count, labels in zip(counts, item.labels, strict=True):
                if labels is not None:
                    count[split].update((None, *labels))
    return counts


def heads_of(
    recipe: Recipe, splits: Mapping[str, Sequence[Text]], counts: Sequence[Tally]
) -> tuple[tuple[Head, ...], list[str]]:
    """The heads with their labels in order, and every fault of the labels, a line each."""
    lines = [
        f"data.{split}: no rows are left in it, expected labelled texts "
        "(give more texts, another fraction or a file)"
        for split in SPLITS
        if not splits[split]
    ]
    heads = []
    for index, (name, head) in enumerate(recipe.heads.items()):
        count = counts[index]
        found = sorted(label for label in count["train"] if label is not None)
        labels = head.labels or head.columns or tuple(found)
        for split in SPLITS:
            if splits[split] and not count[split][None]:
                lines.append(f"head {name!r}: no text of {split} is labelled, expected some")
        if len(set(labels)) < len(labels):
            lines.append(f"head {name!r}: a label is listed twice: {', '.join(labels)}")
        if head.columns and head.labels and set(head.columns) != set(head.labels):
            lines.append(f"head {name!r}: `labels` must be the names in `columns`, or left out")
        elif count["train"][None]:
            for split in ("validation", "test"):
                for label in sorted({x for x in count[split] if x is not None} - {*labels}):
                    first = next(t for t in splits[split] if label in (t.labels[index] or ()))
                    lines.append(
                        f"{first.file}:{first.place}: head {name!r}: label {label!r} stands in "
                        f"{split} but not in train (add texts of it to train, or take it out)"
                    )
            lines += _useless(name, head, labels, count["train"])
        heads.append(Head(name, head.kind, tuple(labels), head.weight))
    return tuple(heads), lines


def _useless(name: str, head: HeadRecipe, labels: Sequence[str], train: Counter[str | None]) -> list[str]:
    """What training cannot learn from the labels of a head, a line each."""
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
        return []  # a label that was asked for by name may never apply
    todo = "add texts of it, or empty its cells, which leaves them unlabelled"
    return [
        f"head {name!r}: label {label!r} has {train[label]} text(s) in train, expected 2 ({todo})"
        for label in labels
        if train[label] < 2
    ]
