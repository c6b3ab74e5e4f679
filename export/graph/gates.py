"""Gates that reject a bundle whose forms disagree.

`check_parity` compares the logits of torch and ONNX on real texts. `check_int8` compares quality, decisions
and calibration of fp32 and int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-9  # of a difference of metrics: 0.05 - 0.005 is greater than 0.045
SIGNIFICANT = 0.05  # a p-value from which a difference may be noise


class GateError(Exception):
    """A bundle failed a gate; the message names the head, the text and the difference."""

    exit_code = 1


def check_parity(
    reference: Mapping[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    tolerance: float,
    what: str = "fp32",
) -> tuple[dict[str, Any], list[str]]:
    """For each head, the largest difference of a logit and the number of texts whose best label differs.

    Args:
        reference: Logits `[texts, labels]` of each head, in the order of the heads.
        found: Logits of the form to check, with the same heads in the same order.
        tolerance: Largest difference allowed.
        what: Name of the form to check.

    Returns:
        The measurements as JSON values, where a difference that is not finite is None, and a line for each
        head whose difference exceeds the tolerance or is not finite.

    Raises:
        GateError: The heads differ.
    """
    if list(reference) != list(found):
        raise GateError(f"parity: heads of {what} are {list(found)}, expected {list(reference)}")
    heads: dict[str, Any] = {}
    failures = []
    for head, expected in reference.items():
        differences = np.abs(expected.astype(np.float64) - found[head]).max(-1)
        worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
        largest = float(differences[worst])
        if not largest <= tolerance:
            failures.append(
                f"parity: head {head!r} of {what} differs by {largest:.1e} (tolerance "
                f"{tolerance:.0e}) on text {worst} of {len(differences)} (gates.parity sets the tolerance)"
            )
        other = int((expected.argmax(-1) != found[head].argmax(-1)).sum())
        heads[head] = {"max_difference": largest if np.isfinite(largest) else None, "other_labels": other}
    return {"texts": len(differences), "heads": heads}, failures


@dataclass(frozen=True)
class Int8Degradation:
    """The degradation of a head by int8, measured on real texts.

    Each measurement has a p-value: how likely it is where int8 is as good as the gate asks.

    Attributes:
        metric: Name of the first metric of the head.
        fp32: Value of the metric in fp32.
        int8: Value of the metric in int8.
        changed: Share of changed decisions (one per text, or per text and label of a multi_label head).
        log_loss: Increase of the log loss.
        labelled: Number of labelled texts, on which the metric and the log loss are measured.
        texts: Number of texts, on which the decisions are compared.
        p_drop: p-value of the metric's drop.
        p_changed: p-value of the share of changed decisions.
        p_log_loss: p-value of the increase of the log loss.
    """

    metric: str
    fp32: float
    int8: float
    changed: float
    log_loss: float
    labelled: int
    texts: int
    p_drop: float
    p_changed: float
    p_log_loss: float


@dataclass(frozen=True)
class Int8Failures:
    """What exceeds the int8 gates, `{head: lines}`.

    Attributes:
        refused: On heads that the recipe does not allow.
        allowed: On heads that it allows.
        noise: By so little that the texts cannot tell it from noise.
    """

    refused: dict[str, list[str]]
    allowed: dict[str, list[str]]
    noise: dict[str, list[str]]


def check_int8(
    degradations: Mapping[str, Int8Degradation],
    *,
    drop: float,
    changed: float,
    log_loss: float,
    allow: Sequence[str] = (),
) -> Int8Failures:
    """What exceeds a limit, for each head one line per gate.

    A degradation is refused if it exceeds its limit and its p-value is below 0.05, so that a small split does
    not refuse a bundle for the answers to a few texts.

    Args:
        degradations: Degradation of each head.
        drop: Largest drop of the first metric (0.005 is half a percentage point).
        changed: Largest share of changed decisions.
        log_loss: Largest increase of the log loss.
        allow: Heads that may fail.
    """
    refused: dict[str, list[str]] = {}
    noise: dict[str, list[str]] = {}
    for head, m in degradations.items():
        texts = f"on {m.texts} texts of validation and test"
        labelled = f"on {m.labelled} labelled texts of validation and test"
        # `not <=` so that NaN fails
        exceeding = [
            (
                m.labelled and not m.int8 >= m.fp32 - drop - ROUNDING,
                f"drops in {m.metric} from {m.fp32:.4f} to {m.int8:.4f} {labelled}, by more than {drop:g} "
                "(gates.int8_drop)",
                m.p_drop,
            ),
            (
                not m.changed <= changed + ROUNDING,
                f"changes {m.changed:.4f} of its decisions {texts}, more than {changed:g} "
                "(gates.int8_changed)",
                m.p_changed,
            ),
            (
                m.labelled and not m.log_loss <= log_loss + ROUNDING,
                f"is over-confident: its log loss increases by {m.log_loss:.4f} {labelled}, more than "
                f"{log_loss:g} (gates.int8_log_loss)",
                m.p_log_loss,
            ),
        ]
        for exceeds, line, p in exceeding:
            if exceeds and p >= SIGNIFICANT:
                noise.setdefault(head, []).append(f"{line}, which may be noise (p = {p:.2f})")
            elif exceeds:
                refused.setdefault(head, []).append(line)
    allowed = {head: refused.pop(head) for head in list(refused) if head in allow}
    return Int8Failures(refused, allowed, noise)
