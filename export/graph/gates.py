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


class GateError(Exception):
    """A bundle failed a gate; the message names the head, the text and the difference."""

    exit_code = 1


def check_parity(
    reference: Mapping[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    tolerance: float,
    what: str = "fp32",
) -> dict[str, Any]:
    """For each head, the largest difference of a logit and the number of texts whose best label differs.

    Args:
        reference: Logits `[texts, labels]` of each head, in the order of the heads.
        found: Logits of the form to check, with the same heads in the same order.
        tolerance: Largest difference allowed.
        what: Name of the form to check.

    Raises:
        GateError: The heads differ, or a difference exceeds the tolerance or is not finite.
    """
    if list(reference) != list(found):
        raise GateError(f"parity: heads of {what} are {list(found)}, expected {list(reference)}")
    heads: dict[str, Any] = {}
    for head, expected in reference.items():
        differences = np.abs(expected.astype(np.float64) - found[head]).max(-1)
        worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
        if not differences[worst] <= tolerance:
            raise GateError(
                f"parity: head {head!r} of {what} differs by {differences[worst]:.1e} (tolerance "
                f"{tolerance:.0e}) on text {worst} of {len(differences)} (gates.parity sets the tolerance)"
            )
        other = int((expected.argmax(-1) != found[head].argmax(-1)).sum())
        heads[head] = {"max_difference": float(differences[worst]), "other_labels": other}
    return {"texts": len(differences), "heads": heads}


@dataclass(frozen=True)
class Int8Degradation:
    """The degradation of a head by int8, measured on real texts.

    Attributes:
        metric: Name of the first metric of the head.
        fp32: Value of the metric in fp32.
        int8: Value of the metric in int8.
        changed: Share of changed decisions (one per text, or per text and label of a multi_label head).
        log_loss: Increase of the log loss.
    """

    metric: str
    fp32: float
    int8: float
    changed: float
    log_loss: float


def check_int8(
    degradations: Mapping[str, Int8Degradation],
    *,
    texts: int,
    drop: float,
    changed: float,
    log_loss: float,
    allow: Sequence[str] = (),
) -> dict[str, list[str]]:
    """The failures of the heads in `allow`; any other failure is an error.

    Args:
        degradations: Degradation of each head.
        texts: Number of texts that they were measured on.
        drop: Largest drop of the first metric (0.005 is half a percentage point).
        changed: Largest share of changed decisions.
        log_loss: Largest increase of the log loss.
        allow: Heads that may fail.

    Raises:
        GateError: A head failed; one line for each head and gate.
    """
    failed: dict[str, list[str]] = {}
    for head, measured in degradations.items():
        failures = []
        # `not <=` so that NaN fails
        if not measured.int8 >= measured.fp32 - drop - ROUNDING:
            values = f"from {measured.fp32:.4f} to {measured.int8:.4f}"
            failures.append(f"drops in {measured.metric} {values}, by more than {drop:g} (gates.int8_drop)")
        if not measured.changed <= changed + ROUNDING:
            share = f"changes {measured.changed:.4f} of its decisions"
            failures.append(f"{share}, more than {changed:g} (gates.int8_changed)")
        if not measured.log_loss <= log_loss + ROUNDING:
            increase = f"is over-confident: its log loss increases by {measured.log_loss:.4f}"
            failures.append(f"{increase}, more than {log_loss:g} (gates.int8_log_loss)")
        if failures:
            failed[head] = failures
    lines = [
        f"int8: head {head!r} {failure}"
        for head, failures in failed.items()
        for failure in failures
        if head not in allow
    ]
    if lines:
        lines[-1] += f", on {texts} texts (--allow HEAD exports it anyway; export.quantize: none keeps fp32)"
        raise GateError("\n".join(lines))
    return failed
