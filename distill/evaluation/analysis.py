"""Where a head is right and wrong on labelled texts, as JSON values; in numpy alone.

A value that does not exist, such as the precision of a label that is never predicted, is None. Without a
labelled text, the lists are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from distill.evaluation.intervals import Interval, interval
from distill.evaluation.metrics import Array, average_precision, decisions, labelled, probabilities, quality
from distill.heads import Head
from export.bundle.manifest import Abstain
from export.runtime.probabilities import confidence

Json = dict[str, Any]

BINS = 15  # of the reliability diagram
POINTS = 50  # of coverage against accuracy
MATRIX = 25  # labels of the confusion matrix
CONFUSIONS = 30
TEXTS = 20  # disagreements, and confident errors
CHARACTERS = 300  # of a text


@dataclass(frozen=True)
class Answers:
    """What one form of a classifier answers to texts for one head.

    Attributes:
        head: A single_label or multi_label head.
        logits: `[texts, labels]`.
        temperature: Calibration temperature.
        thresholds: Probability from which each label of a multi_label head applies; by default 0.5.
    """

    head: Head
    logits: Array
    temperature: float = 1.0
    thresholds: Sequence[float] | None = None

    @cached_property
    def p(self) -> Array:
        """The probabilities `[texts, labels]`; 0 where a logit is not finite."""
        with np.errstate(all="ignore"):
            return np.nan_to_num(probabilities(self.logits, self.head, self.temperature))

    @cached_property
    def decisions(self) -> Array:
        """The predicted labels: class indices `[texts]`, or bools `[texts, labels]`."""
        return decisions(self.head, self.logits, self.thresholds, self.temperature)

    @cached_property
    def confidence(self) -> Array:
        """The probability of the prediction, `[texts]`."""
        return self.probability(self.decisions)

    def probability(self, labels: Array) -> Array:
        """The probability of these labels of each text, `[texts]`; labels as `decisions` are.

        That of a multi_label head is the product over its labels, which are independent.
        """
        if self.head.kind == "single_label":
            return np.asarray(self.p[np.arange(len(labels)), labels])
        return np.asarray(np.where(labels == 1, self.p, 1 - self.p).prod(-1))

    def quality(self, labels: Array) -> dict[str, float]:
        """The head's metrics; labels as in `metrics.quality`."""
        return quality(
            self.head, self.logits, labels, temperature=self.temperature, thresholds=self.thresholds
        )

    def interval(self, labels: Array) -> Interval | None:
        """The 95 % interval of the head's first metric, None if no text is labelled."""
        return interval(
            self.head, self.logits, labels, temperature=self.temperature, thresholds=self.thresholds
        )

    def __getitem__(self, rows: Array) -> Answers:
        return Answers(self.head, self.logits[rows], self.temperature, self.thresholds)


def analyse(answers: Answers, labels: Array, texts: Sequence[str]) -> Json:
    """Classes, confusions, calibration and errors of a form that is served.

    Args:
        answers: To the texts.
        labels: As in `metrics.quality`.
        texts: The texts.
    """
    head, known = answers.head, np.flatnonzero(labelled(labels, answers.head))
    own, true = answers[known], labels[known]
    single = head.kind == "single_label"
    pairs = Pairs.of(own.decisions, true) if single else None
    return {
        "kind": head.kind,
        "labels": list(head.labels),
        "texts": len(labels),
        "labelled": len(known),
        "metric": head.first_metric,
        "classes": class_metrics(own, true),
        "confusion": confusion(head, pairs) if pairs else None,
        "confusions": confusions(head, pairs) if pairs else None,
        "reliability": reliability(own, true),
        "coverage": coverage(own, true) if single else None,
        "thresholds": None
        if single
        else dict(zip(head.labels, answers.thresholds or [0.5] * len(head.labels), strict=True)),
        "confident_errors": confident_errors(own, true, [texts[int(i)] for i in known]),
    }


class Pairs(NamedTuple):
    """The pairs of a true and a predicted label that occur, and the number of texts of each, `[pairs]`."""

    true: Array
    predicted: Array
    texts: Array

    @staticmethod
    def of(predicted: Array, true: Array) -> Pairs:
        """The pairs of class indices `[texts]`."""
        each = np.stack([true, predicted], -1).reshape(-1, 2)
        found, texts = np.unique(each, axis=0, return_counts=True)
        return Pairs(found[:, 0], found[:, 1], texts)


def class_metrics(answers: Answers, labels: Array) -> list[Json]:
    """Precision, recall and F1 of each label, lowest F1 first; labels that never occur last.

    Those of a multi_label head also have their average precision.
    """
    found, names = answers.decisions, answers.head.labels
    if answers.head.kind == "single_label":
        sets = (found[found == labels], found, labels)
        hits, predicted, support = (np.bincount(some, minlength=len(names)) for some in sets)
    else:
        hits, predicted, support = (x.sum(0) for x in (found & (labels == 1), found, labels == 1))
    rows: list[Json] = [
        {
            "label": label,
            "precision": _share(hit, chosen),
            "recall": _share(hit, occurs),
            "f1": _share(2 * hit, chosen + occurs),
            "support": int(occurs),
            "predicted": int(chosen),
        }
        for label, hit, chosen, occurs in zip(names, hits, predicted, support, strict=True)
    ]
    if answers.head.kind == "multi_label":
        for i, row in enumerate(rows):
            row["average_precision"] = average_precision(answers.p[:, i], labels[:, i] == 1)
    return sorted(rows, key=lambda row: (row["f1"] is None, row["f1"] or 0.0, -row["support"]))


def confusion(head: Head, pairs: Pairs) -> Json:
    """The confusion matrix, `counts[true][predicted]`, of the labels with the most errors."""
    wrong = pairs.texts * (pairs.true != pairs.predicted)
    errors = sum(np.bincount(some, wrong, len(head.labels)) for some in (pairs.true, pairs.predicted))
    shown = np.sort(np.argsort(-errors, kind="stable")[:MATRIX])
    place = np.full(len(head.labels), -1)
    place[shown] = np.arange(len(shown))
    rows, columns = place[pairs.true], place[pairs.predicted]
    inside = (rows >= 0) & (columns >= 0)
    counts = np.zeros((len(shown), len(shown)), int)
    counts[rows[inside], columns[inside]] = pairs.texts[inside]
    return {"labels": [head.labels[i] for i in shown], "counts": counts.tolist()}


def confusions(head: Head, pairs: Pairs) -> list[Json]:
    """The most frequent errors, with their share of the texts that have the label."""
    support = np.bincount(pairs.true, pairs.texts, len(head.labels))
    wrong = np.flatnonzero(pairs.true != pairs.predicted)
    first = wrong[np.argsort(-pairs.texts[wrong], kind="stable")][:CONFUSIONS]
    return [
        {
            "label": head.labels[pairs.true[i]],
            "predicted": head.labels[pairs.predicted[i]],
            "texts": int(pairs.texts[i]),
            "share": _share(pairs.texts[i], support[pairs.true[i]]),
        }
        for i in first
    ]


def reliability(answers: Answers, labels: Array) -> list[Json]:
    """The mean confidence and the accuracy of the texts in each bin of confidence.

    For a multi_label head, the mean probability and the share of true labels, over all labels of all texts.
    """
    if answers.head.kind == "single_label":
        confidence, right = answers.p.max(-1), answers.p.argmax(-1) == labels
    else:
        confidence, right = answers.p.ravel(), labels.ravel() == 1
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts, sums, hits = (np.bincount(bins, weights, BINS) for weights in (None, confidence, right))
    return [
        {"confidence": float(total / n), "accuracy": float(hit / n), "texts": int(n)}
        for n, total, hit in zip(counts, sums, hits, strict=True)
        if n
    ]


def coverage(answers: Answers, labels: Array) -> list[Json]:
    """The accuracy on the most confident texts, for growing shares of the texts.

    `threshold` is the lowest confidence of the share.
    """
    order = np.argsort(-answers.confidence, kind="stable")
    confidence = answers.confidence[order]
    accuracy = np.cumsum((answers.decisions == labels)[order]) / np.arange(1, len(order) + 1)
    ends = np.append(np.flatnonzero(confidence[1:] < confidence[:-1]), len(order) - 1)  # equals are together
    ends = ends[ends >= 0]
    wanted = np.linspace(len(order) / POINTS, len(order), POINTS).round() - 1
    chosen = np.unique(ends[np.searchsorted(ends, wanted)]) if len(ends) else ends
    return [
        {
            "coverage": float((i + 1) / len(order)),
            "accuracy": float(accuracy[i]),
            "threshold": float(confidence[i]),
        }
        for i in chosen
    ]


def answered(head: Head, logits: Array, labels: Array, temperature: float, rule: Abstain) -> Json:
    """The coverage of a head that abstains, and the accuracy of what it answers, on labelled texts.

    Args:
        head: A single_label head.
        logits: `[texts, labels]`.
        labels: As in `metrics.quality`.
        temperature: Calibration temperature.
        rule: When the head abstains.

    Returns:
        `{"texts": n, "answered": n, "coverage": x, "accuracy": x, "accuracy_on_all": x}`.
    """
    known = labelled(labels, head)
    own, true = logits[known], labels[known]
    right = own.argmax(-1) == true
    sure = confidence(own / temperature, rule.score) >= rule.threshold if len(own) else right
    return {
        "texts": len(true),
        "answered": int(sure.sum()),
        "coverage": _share(sure.sum(), len(true)),
        "accuracy": _share(right[sure].sum(), sure.sum()),
        "accuracy_on_all": _share(right.sum(), len(true)),
    }


def confident_errors(answers: Answers, labels: Array, texts: Sequence[str]) -> list[Json]:
    """The labelled texts that are answered wrong, the most confident first."""
    right = answers.decisions == (labels if labels.ndim == 1 else labels == 1)
    wrong = np.flatnonzero(~(right if right.ndim == 1 else right.all(-1)))
    first = wrong[np.argsort(-answers.confidence[wrong], kind="stable")][:TEXTS]
    return [
        {
            "text": short(texts[int(i)]),
            "label": named(answers.head, labels[i]),
            "predicted": named(answers.head, answers.decisions[i]),
            "probability": float(answers.confidence[i]),
        }
        for i in first
    ]


def disagreements(student: Answers, teacher: Answers, labels: Array, texts: Sequence[str]) -> list[Json]:
    """The texts that student and teacher answer differently, by the largest difference of a probability.

    `teacher_probability` and `student_probability` are those of their own answers. `label` is None where the
    text is unlabelled.
    """
    differs = student.decisions != teacher.decisions
    rows = np.flatnonzero(differs if differs.ndim == 1 else differs.any(-1))
    largest = np.abs(student.p[rows] - teacher.p[rows]).max(-1)
    known, head = labelled(labels, student.head), student.head
    return [
        {
            "text": short(texts[int(i)]),
            "label": named(head, labels[i]) if known[i] else None,
            "teacher": named(head, teacher.decisions[i]),
            "teacher_probability": float(teacher.confidence[i]),
            "student": named(head, student.decisions[i]),
            "student_probability": float(student.confidence[i]),
        }
        for i in rows[np.argsort(-largest, kind="stable")][:TEXTS]
    ]


def label_counts(head: Head, labels: Array) -> dict[str, int]:
    """The number of texts that have each label; labels as in `metrics.quality`."""
    true = labels[labelled(labels, head)]
    counts = np.bincount(true, minlength=len(head.labels)) if true.ndim == 1 else (true == 1).sum(0)
    return dict(zip(head.labels, map(int, counts), strict=True))


def named(head: Head, labels: Any) -> str:
    """The label of a class index; or the labels of a row of bools, joined by commas, "none" without any."""
    if head.kind == "single_label":
        return head.labels[int(labels)]
    return ", ".join(label for label, applies in zip(head.labels, labels, strict=True) if applies) or "none"


def short(text: str) -> str:
    """The text, cut after 300 characters."""
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
