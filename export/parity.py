"""Whether two forms of a classifier say the same: the gates that refuse a bundle.

`check_parity` compares logits of torch and ONNX on real texts; `check_drop` compares the quality of
fp32 and int8. Both return what they measured, or raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ROUNDING = 1e-9  # of subtracting figures: 0.05 - 0.005 comes out above 0.045


class GateError(Exception):
    """A gate refused: which head, which text, how far."""


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


def check_drop(
    before: Mapping[str, float], after: Mapping[str, float], largest: float, metrics: Sequence[str]
) -> None:
    """Refuse int8 where a head's first metric fell by more than `largest` (0.005 is half a point).

    Raises:
        GateError: Naming the head, the metric and both figures.
    """
    for (head, was), metric in zip(before.items(), metrics, strict=True):
        if not after[head] >= was - largest - ROUNDING:
            raise GateError(
                f"int8: head {head!r} falls from {metric} {was:.4f} to {after[head]:.4f}, more than "
                f"{largest:g} (gates.int8_drop allows more; export.quantize: none keeps fp32)"
            )
