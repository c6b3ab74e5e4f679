"""Calibration of heads on validation logits, and the metrics that compare epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from distill.evaluation.metrics import cross_entropy, labelled, log_losses, probabilities, quality
from distill.heads import Head, columns

Array = NDArray[Any]
FEW = 5  # positive texts below which a threshold of the label alone would be noise
NEVER = 1.0  # threshold of a label that never applies
ROUNDS = 20  # of coordinate ascent on the thresholds; 3 to 5 usually suffice


@dataclass(frozen=True)
class Calibration:
    """A head's calibration temperature, and the threshold of each label of a multi_label head.

    `precision` is the wanted one of the labels whose thresholds are chosen by it.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    precision: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The calibration as a JSON object."""
        return {key: value for key, value in asdict(self).items() if key != "precision" or value}


def calibrate(
    head: Head,
    logits: Array,
    labels: Array,
    teacher: Array | None = None,
    wanted: Mapping[str, float] | None = None,
    confidence: float = 0.95,
) -> Calibration:
    """The calibration of a head on labelled texts.

    The temperature minimises the log loss (Guo et al. 2017, arXiv:1706.04599, section 4.2), between 0.1 and
    10. The thresholds maximise micro F1, the first metric of multi_label heads, at that temperature. Without
    labelled texts, the temperature minimises the cross-entropy with the teacher's probabilities, and the
    thresholds are 0.5.

    Args:
        head: The head.
        logits: Logits `[texts, labels]`.
        labels: Labels as in `metrics.quality`; unlabelled texts are ignored.
        teacher: The logits of the head's teacher; without labelled texts and without a teacher, the
            temperature is 1.
        wanted: The precision of labels whose thresholds are those of `threshold_of_precision` instead.
        confidence: Of their lower bounds.
    """
    rows, precise = labelled(labels, head), wanted or {}
    if not rows.any():
        each = tuple(NEVER if label in precise else 0.5 for label in head.labels)
        thresholds = each if head.kind == "multi_label" else None
        if teacher is None:
            return Calibration(1.0, thresholds, wanted)
        return Calibration(
            _temperature(lambda t: cross_entropy(head, logits, teacher, t)), thresholds, wanted
        )
    logits, labels = logits[rows], labels[rows]

    temperature = _temperature(lambda t: float(log_losses(probabilities(logits, head, t), labels).mean()))
    if head.kind == "single_label":
        return Calibration(temperature)
    p, y = probabilities(logits, head, temperature), labels == 1
    found = best_thresholds(p, y)
    return Calibration(
        temperature,
        tuple(
            threshold_of_precision(p[:, i], y[:, i], precise[x], confidence) if x in precise else found[i]
            for i, x in enumerate(head.labels)
        ),
        wanted,
    )


def _temperature(loss: Callable[[float], float]) -> float:
    """The temperature from 0.1 to 10 of the least loss."""
    best = minimize_scalar(
        lambda log_t: loss(float(np.exp(log_t))), bounds=(np.log(0.1), np.log(10.0)), method="bounded"
    )
    return round(float(np.exp(best.x)), 4)


def best_thresholds(p: Array, y: Array) -> tuple[float, ...]:
    """The thresholds of the labels that maximise micro F1, by coordinate ascent.

    The initial value is the best threshold for all labels together. A label with fewer than 5 positive texts
    keeps it. Every other label is predicted for at least one text.

    Args:
        p: Probabilities `[texts, labels]`.
        y: The positive labels, bools `[texts, labels]`.
    """
    shared = best_threshold(p.ravel(), y.ravel())
    thresholds = [shared] * p.shape[1]
    ranked = {int(i): _Ranked(p[:, i], y[:, i]) for i in np.flatnonzero(y.sum(0) >= FEW)}
    chosen, hits, positives = int((p >= shared).sum()), int((y & (p >= shared)).sum()), int(y.sum())
    counts = {i: int((p[:, i] >= shared).sum()) for i in ranked}
    for _ in range(ROUNDS):
        before = dict(counts)
        for i, label in ranked.items():
            others, others_hit = chosen - counts[i], hits - int(label.hits[counts[i]])
            f1 = 2 * (others_hit + label.hits) / (others + np.arange(len(label.hits)) + positives)
            best = int(np.argmax(np.where(label.separable, f1, -1)))
            if f1[best] > f1[counts[i]] + 1e-12:
                chosen, hits = others + best, others_hit + int(label.hits[best])
                counts[i], thresholds[i] = best, label.threshold(best)
        if counts == before:
            break
    return tuple(thresholds)


def threshold_of_precision(p: Array, y: Array, precision: float, confidence: float) -> float:
    """The lowest threshold of probabilities `[n]` that has the wanted precision; NEVER if none has it.

    It has it if the lower bound of Clopper and Pearson at this confidence does. A label of few texts often
    has a precision by chance that it lacks on others.
    """
    ranked = _Ranked(p, y)
    hits, chosen = ranked.hits[1:], np.arange(1, len(ranked.hits))
    bound = np.where(hits > 0, beta.ppf(1 - confidence, np.maximum(hits, 1), chosen - hits + 1), 0)
    counts = chosen[(bound >= precision) & ranked.separable[1:]]
    return ranked.threshold(int(counts[-1])) if len(counts) else NEVER


def best_threshold(p: Array, y: Array) -> float:
    """The threshold of probabilities `[n]` that maximises F1 against bools `[n]`; 0.5 without positives.

    It is the midpoint of the two probabilities that it separates.
    """
    if not y.any():
        return 0.5
    ranked = _Ranked(p, y)
    f1 = 2 * ranked.hits / (np.arange(len(ranked.hits)) + y.sum())
    return ranked.threshold(int(np.argmax(np.where(ranked.separable, f1, -1))))


def validation_quality(heads: Sequence[Head], logits: Array, hard: Mapping[str, Array]) -> dict[str, float]:
    """The metrics of all heads, `{"HEAD.METRIC": x}`, and `mean`, the mean of the heads' first metrics.

    A head without labelled texts does not count in the mean, which is NaN without any.

    A multi_label head is measured at the one threshold that is best on these texts. If labels are rare, few
    probabilities reach 0.5, and metrics at 0.5 could not compare epochs.

    Args:
        heads: Heads in the order of the logits.
        logits: Logits of all heads side by side, `[texts, sum of labels]`.
        hard: Labels of each head, as in `metrics.quality`.
    """
    metrics: dict[str, float] = {}
    first: list[float] = []
    for head, part in columns(heads):
        own, labels, thresholds = logits[:, part], hard[head.name], None
        if head.kind == "multi_label" and labels.dtype.kind != "f":
            rows = labelled(labels, head)
            p = probabilities(own[rows], head)
            thresholds = [best_threshold(p.ravel(), labels[rows].ravel() == 1)] * len(head.labels)
        values = quality(head, own, labels, thresholds=thresholds)
        metrics |= {f"{head.name}.{metric}": value for metric, value in values.items()}
        first += [value for value in [*values.values()][:1] if not np.isnan(value)]
    return metrics | {"mean": float(np.mean(first)) if first else float("nan")}


class _Ranked:
    """Probabilities in descending order.

    Attributes:
        hits: The number of positives among the first n, for n from 0.
        separable: Whether a threshold can separate the first n from the others; False for n = 0.
    """

    def __init__(self, p: Array, y: Array) -> None:
        order = np.argsort(-p, kind="stable")
        self.p = p[order]
        self.hits = np.concatenate([[0], np.cumsum(y[order])])
        self.separable = np.concatenate([[False], self.p[1:] < self.p[:-1], [True]])

    def threshold(self, count: int) -> float:
        """The midpoint between the first `count` probabilities and the next one."""
        last, following = self.p[count - 1], self.p[count] if count < len(self.p) else 0.0
        midpoint = float((last + following) / 2)
        rounded = round(midpoint, 6)
        return rounded if following < rounded <= last else midpoint  # six digits may be too few near 0 and 1
