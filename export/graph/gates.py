"""Whether two forms of a classifier say the same: the gates that refuse a bundle.

`check_parity` compares logits of torch and ONNX on real texts; `check_int8` compares the quality, the
decisions and the calibration of fp32 and int8. Both return what they found, or raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ROUNDING = 1e-9  # of subtracting figures: 0.05 - 0.005 comes out above 0.045


class GateError(Exception):
    """A gate refused: which head, which text, how far."""

    exit_code = 1


def check_parity(
    reference: Mapping[str, Array], found: Mapping[str, Array], tolerance: float, what: str = "fp32"
) -> dict[str, Any]:
    """The largest difference of a logit, and on how many texts another one is the largest, a head.

    Args:
        reference: Logits a head `[texts, labels]`, in the order of the heads.
        found: The same of the other form; the same heads in the same order.
        tolerance: Largest difference allowed.
        what: The other form's name.

    Raises:
        GateError: Another order of heads, or a difference over the tolerance, or not finite.
    """
    if list(reference) != list(found):
        raise GateError(f"parity: heads of {what} are {list(found)}, expected {list(reference)}")
    measured: dict[str, Any] = {}
    for head, expected in reference.items():
        gaps = np.abs(expected.astype(np.float64) - found[head]).max(-1)
        worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
        if not gaps[worst] <= tolerance:
            raise GateError(
                f"parity: head {head!r} of {what} differs by {gaps[worst]:.1e} (tolerance "
                f"{tolerance:.0e}) on text {worst} of {len(gaps)} (gates.parity sets the tolerance)"
            )
        other = int((expected.argmax(-1) != found[head].argmax(-1)).sum())
        measured[head] = {"max_difference": float(gaps[worst]), "other_labels": other}
    return {"texts": len(gaps), "heads": measured}


@dataclass(frozen=True)
class Toll:
    """What int8 costs a head on real texts.

    Attributes:
        metric: name of the head's first metric.
        before: that metric in fp32; `after` in int8.
        changed: share of its decisions (texts, or texts times labels) that are other ones.
        log_loss: how much it rises, which tells of worse probabilities.
    """

    metric: str
    before: float
    after: float
    changed: float
    log_loss: float


def check_int8(
    tolls: Mapping[str, Toll],
    *,
    texts: int,
    drop: float,
    changed: float,
    log_loss: float,
    allow: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Refuse int8 where it costs a head more than allowed; what heads in `allow` fail is returned.

    Args:
        tolls: Of each head.
        texts: How many they were measured on.
        drop: Largest fall of the first metric (0.005 is half a point).
        changed: Largest share of other decisions.
        log_loss: Largest rise of the log loss.
        allow: Heads that may fail.

    Raises:
        GateError: A line for each gate that a head failed, with both figures.
    """
    failed: dict[str, list[str]] = {}
    for head, toll in tolls.items():
        faults = []
        # so that what is not a number is refused too
        if not toll.after >= toll.before - drop - ROUNDING:
            fall = f"{toll.metric} {toll.before:.4f} to {toll.after:.4f}"
            faults.append(f"falls from {fall}, more than {drop:g} (gates.int8_drop)")
        if not toll.changed <= changed + ROUNDING:
            other = f"decides otherwise in {toll.changed:.4f} of the cases"
            faults.append(f"{other}, more than {changed:g} (gates.int8_changed)")
        if not toll.log_loss <= log_loss + ROUNDING:
            rise = f"is surer than right: its log loss rises by {toll.log_loss:.4f}"
            faults.append(f"{rise}, more than {log_loss:g} (gates.int8_log_loss)")
        if faults:
            failed[head] = faults
    lines = [
        f"int8: head {h!r} {fault}" for h, faults in failed.items() if h not in allow for fault in faults
    ]
    if lines:
        lines[-1] += (
            f", on {texts} texts (--allow HEAD ships it all the same; export.quantize: none keeps fp32)"
        )
        raise GateError("\n".join(lines))
    return failed
