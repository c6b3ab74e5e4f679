"""Temperature of a head and thresholds of its labels, fitted on validation logits, and its quality there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from distill.evaluation.metrics import labelled, probabilities, quality
from distill.heads import Head, columns

Array = NDArray[Any]
FEW = 5  # positive texts of a label below which a threshold of its own would be noise
ROUNDS = 20  # in which thresholds move; 3 to 5 are enough as a rule


@dataclass(frozen=True)
class Calibration:
    """A head's calibration temperature, and a threshold a label where it is multi_label."""

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The calibration as a JSON object."""
        return asdict(self)


def calibrate(head: Head, logits: Array, labels: Array) -> Calibration:
    """The calibration of a head on labelled texts.

    The temperature minimises the log loss (Guo et al. 2017, arXiv:1706.04599, section 4.2), between
    0.1 and 10. The thresholds maximise micro F1, a multi_label head's first metric, at that temperature.

    Args:
        head: Whose.
        logits: `[texts, labels]`.
        labels: As `metrics.quality` takes them; unlabelled rows are left out.
    """
    rows = labelled(labels, head)
    logits, labels = logits[rows], labels[rows]
    if not len(labels):
        return Calibration(1.0, (0.5,) * len(head.labels) if head.kind == "multi_label" else None)

    def log_loss(log_temperature: float) -> float:
        p = probabilities(logits, head, float(np.exp(log_temperature)))
        if head.kind == "single_label":
            right = p[np.arange(len(labels)), labels]
        else:
            right = np.where(labels == 1, p, 1 - p)
        return float(-np.log(np.maximum(right, 1e-12)).mean())

    best = minimize_scalar(log_loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    temperature = round(float(np.exp(best.x)), 4)
    if head.kind == "single_label":
        return Calibration(temperature)
    return Calibration(temperature, best_thresholds(probabilities(logits, head, temperature), labels == 1))


def best_thresholds(p: Array, y: Array) -> tuple[float, ...]:
    """The threshold of each label at which micro F1 is highest, each in turn until none gains.

    They begin at the one threshold that is best for all labels together, which a label with fewer than 5
    positive texts keeps. Each label is predicted for one of the texts at least.

    Args:
        p: Probabilities `[texts, labels]`.
        y: Which are positive, of bool.
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
            best = int(np.argmax(np.where(label.parts, f1, -1)))
            if f1[best] > f1[counts[i]] + 1e-12:
                chosen, hits = others + best, others_hit + int(label.hits[best])
                counts[i], thresholds[i] = best, label.below(best)
        if counts == before:
            break
    return tuple(thresholds)


def best_threshold(p: Array, y: Array) -> float:
    """The threshold of probabilities `[n]` that maximises F1 against bools `[n]`; 0.5 without any.

    It lies halfway between the two probabilities that it parts.
    """
    if not y.any():
        return 0.5
    ranked = _Ranked(p, y)
    f1 = 2 * ranked.hits / (np.arange(len(ranked.hits)) + y.sum())
    return ranked.below(int(np.argmax(np.where(ranked.parts, f1, -1))))


def validation_quality(heads: Sequence[Head], logits: Array, hard: Mapping[str, Array]) -> dict[str, float]:
    """Every metric of every head, `{"HEAD.METRIC": x}`, and `mean` of the heads' first metrics.

    A multi_label head is judged at the one threshold that is best on these texts, not at 0.5: where its
    labels are rare, hardly any probability reaches 0.5, and epochs could not be told apart.

    Args:
        heads: In order.
        logits: Of all heads side by side, `[texts, sum of labels]`.
        hard: Labels a head, as `metrics.quality` takes them.
    """
    found: dict[str, float] = {}
    for head, part in columns(heads):
        mine, labels, thresholds = logits[:, part], hard[head.name], None
        if head.kind == "multi_label":
            rows = labelled(labels, head)
            p = probabilities(mine[rows], head)
            thresholds = [best_threshold(p.ravel(), labels[rows].ravel() == 1)] * len(head.labels)
        of_head = quality(head, mine, labels, thresholds=thresholds)
        found |= {f"{head.name}.{metric}": value for metric, value in of_head.items()}
    return found | {"mean": float(np.nanmean([found[f"{h.name}.{h.first_metric}"] for h in heads]))}


class _Ranked:
    """Probabilities from the highest down: `hits[n]` are right of the first n, `parts[n]` where they end."""

    def __init__(self, p: Array, y: Array) -> None:
        order = np.argsort(-p, kind="stable")
        self.p = p[order]
        self.hits = np.concatenate([[0], np.cumsum(y[order])])
        # none is no choice, and equal probabilities cannot be parted
        self.parts = np.concatenate([[False], self.p[1:] < self.p[:-1], [True]])

    def below(self, count: int) -> float:
        """A threshold that the first `count` reach and no other, halfway to the next."""
        last, following = self.p[count - 1], self.p[count] if count < len(self.p) else 0.0
        halfway = float((last + following) / 2)
        short = round(halfway, 6)
        return short if following < short <= last else halfway  # near 0 and 1 six digits may not part them
