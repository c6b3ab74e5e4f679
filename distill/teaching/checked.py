"""Compares teachers with labelled texts before they label anything: a wrong label map shows at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.evaluation.analysis import Answers, Pairs, confusion, confusions
from distill.evaluation.calibration import calibrate
from distill.evaluation.metrics import labelled, quality
from distill.heads import Head
from distill.models.base import Array
from distill.models.sequence_classifier import MergedTeacher, combined
from distill.recipe.data_section import RecipeError
from distill.reports.text import one_line
from distill.teaching.combined import unknown
from teachers.base import Teacher

TEXTS = 500  # labelled texts that a teacher is compared on, a head
MATRIX = 12  # labels of a head whose confusion is printed whole
CONFUSIONS = 5  # that are printed of a head of more labels
CHARACTERS = 16  # of a label in the matrix


@dataclass(frozen=True)
class LabelledTexts:
    """Some labelled texts of each head, those of validation first.

    Attributes:
        texts: The texts.
        labels: Of each head, as in `metrics.quality`.
        validation: Which texts are of validation, `[texts]` of bool.
    """

    texts: list[str]
    labels: dict[str, Array]
    validation: Array

    @staticmethod
    def of(
        splits: Iterable[tuple[str, Sequence[str], Mapping[str, Array]]],
        heads: Sequence[Head],
        seed: int,
        most: int = TEXTS,
    ) -> LabelledTexts:
        """At most so many labelled texts of each head, drawn from the splits in order.

        Args:
            splits: The name, the texts and the labels of each split, `validation` first.
            heads: The heads.
            seed: Of the draw.
            most: Texts of a head.
        """
        draw = np.random.default_rng(seed)
        lacking = dict.fromkeys((head.name for head in heads), most)
        texts: list[str] = []
        labels: dict[str, list[Array]] = {head.name: [] for head in heads}
        validation: list[Array] = []
        for name, every, hard in splits:
            chosen = np.zeros(len(every), bool)
            for head in heads:
                known = labelled(hard[head.name], head)
                more = draw.permutation(np.flatnonzero(known & ~chosen))
                wanted = lacking[head.name] - int((known & chosen).sum())
                chosen[more[: max(0, wanted)]] = True
            rows = np.flatnonzero(chosen)
            texts += [every[row] for row in rows.tolist()]
            for head in heads:
                labels[head.name].append(hard[head.name][rows])
                lacking[head.name] -= int(labelled(hard[head.name][rows], head).sum())
            validation.append(np.full(len(rows), name == "validation"))
        return LabelledTexts(
            texts,
            {head: np.concatenate(parts) for head, parts in labels.items()},
            np.concatenate(validation),
        )


def check_teacher(
    name: str, teacher: Teacher, heads: Sequence[Head], sample: LabelledTexts, say: Callable[[str], None]
) -> None:
    """Print the confusion of a teacher of each head against labelled texts.

    Args:
        name: Of the teacher, for messages.
        teacher: Knows some heads, and possibly some texts only.
        heads: Of the data.
        sample: The labelled texts.
        say: Prints lines.

    Raises:
        RecipeError: It is worse than the most frequent label, or the best constant set of labels, by more
            than two standard errors.
    """
    own = [head for head in heads if head.name in teacher.labels]
    check_logits(name, teacher.logits(sample.texts) if sample.texts else {}, own, sample, say)


def check_logits(
    name: str,
    logits: Mapping[str, Array],
    heads: Sequence[Head],
    sample: LabelledTexts,
    say: Callable[[str], None],
) -> None:
    """As `check_teacher`, of the logits of the sample."""
    wrong = []
    for head in heads:
        labels, own, where = sample.labels[head.name], logits.get(head.name), f"{name}: head {head.name!r}"
        rows = np.zeros(0, bool) if own is None else labelled(labels, head) & ~unknown(own)
        if own is None or not rows.any():
            say(f"{where}: no labelled text to compare it with")
            continue
        labels, own = labels[rows], own[rows]
        found = quality(head, own, labels)[head.first_metric]
        constant = constant_quality(head, labels)
        metric = f"{head.first_metric.replace('_', ' ')} {found:.3f} on {len(labels):,} labelled texts"
        say(f"{where}: {metric}, {constant:.3f} for the same answer to every text")
        for line in _lines(head, own, labels):
            say(f"  {line}")
        # less is noise: three texts of one label, or a rare label
        if found + 2 * math.sqrt(found * (1 - found) / len(labels)) < constant:
            wrong.append(
                f"{where}: {metric}, expected at least the {constant:.3f} of the same answer to every text "
                f"(its labels are probably mapped to others{_most_confused(head, own, labels)})"
            )
    if wrong:
        raise RecipeError("\n".join(wrong))


def constant_quality(head: Head, labels: Array) -> float:
    """The head's first metric, accuracy or micro F1, of the best constant answer to labelled texts."""
    if head.kind == "single_label":
        return float(np.bincount(labels).max() / len(labels))
    hits = np.sort((labels == 1).sum(0))[::-1].cumsum()
    chosen = np.arange(1, len(hits) + 1) * len(labels)
    return float((2 * hits / np.maximum(1, chosen + hits[-1])).max())


def fit_temperatures(teacher: MergedTeacher, sample: LabelledTexts) -> dict[str, Array]:
    """Calibrate the members of ensembles on validation, in place; returns the logits of the sample.

    Without labelled texts of validation, a temperature stays 1.
    """
    if not sample.texts:
        return {}
    parts = teacher.member_logits(sample.texts)
    for head in teacher.heads:
        rows, labels = sample.validation, sample.labels[head.name]
        if len(parts[head.name]) > 1:
            teacher.temperatures[head.name] = [
                calibrate(head, part[rows], labels[rows]).temperature for part in parts[head.name]
            ]
    return {h.name: combined(h, parts[h.name], teacher.temperatures[h.name]) for h in teacher.heads}


def _lines(head: Head, logits: Array, labels: Array) -> Iterator[str]:
    """The confusion matrix of a head of few labels, the most frequent confusions of others."""
    answers = Answers(head, logits)
    if head.kind == "multi_label":
        found, true = answers.decisions, labels == 1
        rows = [["label", "texts", "predicted", "both"]]
        order = np.argsort(-true.sum(0), kind="stable")[:MATRIX]
        rows += [
            [_short(head.labels[i]), *(str(int(x[:, i].sum())) for x in (true, found, found & true))]
            for i in order
        ]
        yield from _table(rows)
        return
    pairs = Pairs.of(answers.decisions, labels)
    if len(head.labels) <= MATRIX:
        counts: Any = confusion(head, pairs)
        rows = [["label \\ teacher", *map(_short, counts["labels"])]]
        rows += [
            [_short(label), *map(str, row)]
            for label, row in zip(counts["labels"], counts["counts"], strict=True)
        ]
        yield from _table(rows)
        return
    for one in confusions(head, pairs)[:CONFUSIONS]:
        yield f"{one['texts']} of label {one_line(one['label'])!r} are {one_line(one['predicted'])!r} to it"


def _most_confused(head: Head, logits: Array, labels: Array) -> str:
    """The most frequent confusion of a single_label head."""
    if head.kind == "multi_label":
        return ""
    one = confusions(head, Pairs.of(Answers(head, logits).decisions, labels))[0]
    label, predicted = one_line(one["label"]), one_line(one["predicted"])
    return f": {one['texts']:,} texts of label {label!r} are {predicted!r} to it"


def _short(label: str) -> str:
    line = one_line(label)
    return line if len(line) <= CHARACTERS else f"{line[: CHARACTERS - 1]}…"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
