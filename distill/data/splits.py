"""Splits: which text is in which split, and the heads that the labels make.

A split that is a fraction is a seeded, stratified sample of train. The same rows and seed give the same
sample. Rows with equal texts stay together, and the first two texts of each label stay in train. This
module works on rows in memory and writes nothing. Errors are returned as lines, for `prepare` to raise.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.data.labels import are_whole_numbers, label_key, label_name
from distill.data.rows import FIRST, LOG, LabelsOfText, RowIssues, Text
from distill.data.sources import quoted
from distill.heads import Head
from distill.recipe.data_section import HeadRecipe
from distill.recipe.data_sources import Fraction
from distill.recipe.near import near
from distill.recipe.schema import Recipe

SPLITS = ("train", "validation", "test")
PRIORITY = ("test", "validation", "train")  # a text or id in several splits stays in the first of these

MOST = 100.0  # balanced weight of a label

LabelCounts = dict[str, Counter[str | None]]  # texts of a head by split and label; None: all labelled texts


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
    """Move the splits that are fractions out of train, first test, then validation, of each source alone."""
    for number, source in enumerate(recipe.data.sources):
        size = len({item.text for item in splits["train"] if item.source == number})
        for split in ("test", "validation"):
            if isinstance(part := getattr(source, split), Fraction):
                splits[split] += _taken(splits, number, part.fraction, f"{recipe.seed} {split}", size)


def sample_train(recipe: Recipe, splits: dict[str, list[Text]]) -> None:
    """Leave at most `max_texts` training texts of each source, each once, and always two of every label."""
    for number, source in enumerate(recipe.data.sources):
        rows = sum(item.source == number for item in splits["train"])
        if not source.max_texts or rows <= source.max_texts:
            continue
        first = {item.text: item for item in reversed(splits["train"]) if item.source == number}
        size = len(first)
        splits["train"] = [
            item for item in splits["train"] if item.source != number or first[item.text] is item
        ]
        _taken(splits, number, max(0.0, 1 - source.max_texts / size), f"{recipe.seed} train", size)
        left = sum(item.source == number for item in splits["train"])
        LOG.info(f"data: {source.name}: {left:,} of {rows:,} training texts are used (max_texts)")


def _taken(splits: dict[str, list[Text]], source: int, fraction: float, seed: str, size: int) -> list[Text]:
    """A stratified sample of the training texts of a source, which is taken out of train."""
    train = splits["train"]
    rows = [row for row, item in enumerate(train) if item.source == source]
    texts, labels = [train[row].text for row in rows], [train[row].labels for row in rows]
    sample = {rows[i] for i in stratified(texts, labels, fraction, seed, of=size)}
    splits["train"] = [item for row, item in enumerate(train) if row not in sample]
    return [item for row, item in enumerate(train) if row in sample]


def stratified(
    texts: Sequence[str],
    labels: Sequence[LabelsOfText],
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


def _first_two(rows: Mapping[str, Sequence[int]], labels: Sequence[LabelsOfText]) -> set[str]:
    """The first two texts of each label of each head, in the order of the file."""
    seen: Counter[tuple[int, str]] = Counter()
    kept: set[str] = set()
    for text, places in rows.items():
        own = {(head, x) for row in places for head, some in enumerate(labels[row]) for x in some or ()}
        if any(seen[label] < 2 for label in own):
            kept.add(text)
        seen.update(own)
    return kept


def leave_out_rare(recipe: Recipe, splits: dict[str, list[Text]]) -> dict[str, dict[str, int]]:
    """Remove the labels with fewer than `min_texts` texts in train; returns their texts in train, by head.

    A text is then unlabelled for a single_label head. For a multi_label head its other labels apply.
    """
    removed: dict[str, dict[str, int]] = {}
    for index, (name, head) in enumerate(recipe.heads.items()):
        if not head.min_texts:
            continue
        seen = {x for split in SPLITS for text in splits[split] for x in text.labels[index] or ()}
        seen.update(head.labels or map(label_name, head.columns or ()))
        train = Counter(x for text in splits["train"] for x in text.labels[index] or ())
        rare = {label: train[label] for label in sorted(seen) if train[label] < head.min_texts}
        if not rare:
            continue
        removed[name] = rare
        LOG.info(
            f"data: head {name!r}: labels with fewer than {head.min_texts} texts in train are left out: "
            f"{_listed(rare)}"
        )
        for split, items in splits.items():
            splits[split] = [_without(text, index, rare, head.kind) for text in items]
    return removed


def _without(text: Text, index: int, rare: Mapping[str, int], kind: str) -> Text:
    labels = text.labels[index]
    if labels is None or not rare.keys() & {*labels}:
        return text
    kept = None if kind == "single_label" else tuple(label for label in labels if label not in rare)
    return replace(text, labels=(*text.labels[:index], kept, *text.labels[index + 1 :]))


def _todo(name: str) -> str:
    return f"(add texts of them to train, or set heads.{name}.min_texts: 2, which leaves them out)"


def _listed(counts: Mapping[str, int]) -> str:
    """Labels and their numbers of texts, the first ten."""
    first = ", ".join(f"{quoted(label)} ({count})" for label, count in [*counts.items()][:FIRST])
    return first + (f" and {len(counts) - FIRST} more" if len(counts) > FIRST else "")


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
    """The heads with their labels in order, and all errors of the labels, a line each.

    A head needs labelled texts in train, unless a teacher knows it already, with the labels that the recipe
    lists.
    """
    listed = {name for name, head in recipe.heads.items() if recipe.needs_no_labels(name) and head.names}
    lines = [
        f"data.{split}: no text is labelled for any head, expected some (check the columns of the heads)"
        for split in SPLITS
        if splits[split] and not any(count[split][None] for count in counts) and listed != {*recipe.heads}
    ]
    lines += [
        f"data.{split}: no rows are left, expected texts (give more texts, another fraction or a file)"
        for split in SPLITS
        if not splits[split]
    ]
    heads = []
    for index, (name, head) in enumerate(recipe.heads.items()):
        count = counts[index]
        present = [label for label in count["train"] if label is not None]
        present.sort(key=int if are_whole_numbers(present) else None)
        columns = tuple(map(label_name, head.columns or ()))
        labels = head.labels or columns or tuple(present)
        labels = tuple(label for label in labels if count["train"][label] >= (head.min_texts or 0))
        if splits["train"] and not count["train"][None] and not (name in listed and labels):
            todo = " (name its column in a source of data.train)" if recipe.data.several else ""
            lines.append(f"head {name!r}: no text of train is labelled, expected some{todo}")
        keys = Counter(map(label_key, labels))
        if repeated := [label for label in labels if keys[label_key(label)] > 1]:
            lines.append(f"head {name!r}: label {quoted(repeated[0])} is listed twice (remove one)")
        if columns and head.labels and {*columns} != {*head.labels}:
            lines.append(f"head {name!r}: `labels` must be the names in `columns` (or leave it out)")
        elif count["train"][None]:
            for split in ("validation", "test"):
                if new := {x: count[split][x] for x in sorted({*filter(None, count[split])} - {*labels})}:
                    first = next(t for t in splits[split] if new.keys() & {*(t.labels[index] or ())})
                    lines.append(
                        f"{first.file}:{first.place}: head {name!r}: labels of {split} that are not in "
                        f"train: {_listed(new)} {_todo(name)}"
                    )
            if name not in listed:
                lines += _label_errors(name, head, labels, count["train"])
        if name in listed and head.kind == "single_label" and len(labels) == 1:
            lines.append(f"head {name!r}: one label, {quoted(labels[0])}, expected two or more (list them)")
        if count["train"][None] and not head.names:
            lines += [
                f"head {name!r}: {setting}: no text of train has label {quoted(x)}{near(x, present)}"
                for setting, given in head.by_label.items()
                for x in given
                if x not in present
            ]
        described = {x: text for x, text in (head.descriptions or {}).items() if x in labels}
        weights = _class_weights(head, labels, count["train"])
        hypothesis = head.hypothesis or ""
        heads.append(Head(name, head.kind, tuple(labels), head.weight, hypothesis, described, weights))
    return tuple(heads), lines


def _class_weights(
    head: HeadRecipe, labels: Sequence[str], train: Counter[str | None]
) -> tuple[float, ...] | None:
    """The weight of each label in the hard loss; None if all are 1.

    The balanced weight of a label that `c` of `n` texts have is that of scikit-learn, `n / (labels * c)`. In
    a multi_label head it is `(n - c) / c`, at most 100, so that no text outweighs several batches.
    """
    if isinstance(head.class_weight, dict):
        return tuple(head.class_weight.get(label, 1.0) for label in labels)
    if head.class_weight is None:
        return None
    texts, present = train[None], sum(train[label] > 0 for label in labels)
    if head.kind == "single_label":
        return tuple(texts / (present * train[x]) if train[x] else 1.0 for x in labels)
    return tuple(min((texts - train[x]) / train[x] or 1.0, MOST) if train[x] else 1.0 for x in labels)


def _label_errors(
    name: str, head: HeadRecipe, labels: Sequence[str], train: Counter[str | None]
) -> list[str]:
    """The reasons why a head cannot be trained on its labels in train, a line each."""
    present = [label for label in labels if train[label]]
    if head.kind == "single_label" and len(present) < 2:
        return [
            f"head {name!r}: one class in train, {', '.join(map(quoted, present))}, expected two or "
            "more (check its column, or leave the head out)"
        ]
    if head.kind == "multi_label" and len(labels) < 2:
        share = train[labels[0]] if labels else 0
        if share in (0, train[None]):
            word = "always" if share else "never"
            return [f"head {name!r}: its one label {word} applies in train, expected both"]
    if head.kind == "multi_label" and (head.labels or head.columns):
        return []  # a label that the recipe names may never apply
    if rare := {label: train[label] for label in labels if train[label] < 2}:
        return [f"head {name!r}: labels with fewer than 2 texts in train: {_listed(rare)} {_todo(name)}"]
    return []
