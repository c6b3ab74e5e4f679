"""Temperature of a head and thresholds of its labels, fitted on validation logits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from distill.heads import Head
from distill.metrics import labelled, probabilities

Array = NDArray[Any]
FEW = 5  # positive texts of a label below which a threshold of its own would be noise


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
    0.1 and 10. A threshold maximises its label's F1 at that temperature; a label with fewer than 5
    positive texts shares the one that maximises micro F1 over all labels.

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
    p, y = probabilities(logits, head, temperature), labels == 1
    shared = best_threshold(p.ravel(), y.ravel())
    own = [best_threshold(p[:, i], y[:, i]) if y[:, i].sum() >= FEW else shared for i in range(p.shape[1])]
    return Calibration(temperature, tuple(own))


def best_threshold(p: Array, y: Array) -> float:
    """The threshold of probabilities `[n]` that maximises F1 against bools `[n]`; 0.5 without any.

    It lies halfway between the two probabilities that it parts.
    """
    if not y.any():
        return 0.5
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order])
    f1 = 2 * hits / (np.arange(1, len(y) + 1) + y.sum())
    p = p[order]
    parts = np.append(p[1:] < p[:-1], True)  # equal probabilities cannot be parted
    last = int(np.argmax(np.where(parts, f1, -1)))
    below = p[last + 1] if last + 1 < len(p) else 0.0
    halfway = float((p[last] + below) / 2)
    short = round(halfway, 6)
    return short if below < short <= p[last] else halfway  # near 0 and 1 six digits may not part them
