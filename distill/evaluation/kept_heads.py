"""What the training of a student changes of the heads that it has kept from an earlier run."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.evaluation import metrics, significance
from distill.evaluation.calibration import Calibration
from distill.evaluation.metrics import Array
from distill.heads import Head
from distill.recipe.schema import Gates

CHANGED, DROP = 0.03, 0.003  # the gates that a recipe leaves open
SIGNIFICANT = 0.05  # a p-value from which a difference may be noise


def check_kept(
    head: Head,
    before: Array,
    after: Array,
    labels: Array,
    fitted: tuple[Calibration, Calibration],
    gates: Gates,
) -> tuple[dict[str, Any], list[str]]:
    """What changes of a kept head on its labelled texts of test; on all texts, where none is labelled.

    As with int8, what exceeds a gate is refused only where it cannot be noise.

    Args:
        head: The head.
        before: Its logits before the training, `[texts, labels]`.
        after: Its logits now.
        labels: Labels as in `metrics.quality`.
        fitted: The calibration before and now.
        gates: Of the recipe.

    Returns:
        The measurements as JSON values, and a line for each gate that refuses.
    """
    known = metrics.labelled(labels, head)
    rows = known if known.any() else np.ones(len(labels), bool)
    pairs = [(logits[rows], own) for logits, own in zip((before, after), fitted, strict=True)]
    decisions = [metrics.decisions(head, logits, own.thresholds, own.temperature) for logits, own in pairs]
    changed = np.not_equal(*decisions)
    limit = CHANGED if gates.kept_changed is None else gates.kept_changed
    found: dict[str, Any] = {
        "texts": int(rows.sum()),
        "changed": float(changed.mean()),
        "difference": float(np.abs(before[rows] - after[rows]).max(initial=0)),
    }
    where, name = f"of {found['texts']} texts of test", f"kept head {head.name!r}"
    lines = [
        (
            found["changed"] > limit,
            f"{name}: {found['changed']:.4f} of its decisions {where} changed, more than {limit:g} "
            "(gates.kept_changed)",
            significance.changed_p_value(int(changed.sum()), changed.size, limit),
        )
    ]
    if known.any():
        limit = DROP if gates.kept_drop is None else gates.kept_drop
        first, second = (
            metrics.quality(
                head, logits, labels[rows], temperature=own.temperature, thresholds=own.thresholds
            )[head.first_metric]
            for logits, own in pairs
        )
        found |= {"metric": head.first_metric, "before": first, "after": second}
        lines.append(
            (
                not second >= first - limit - 1e-9,
                f"{name}: its {head.first_metric} drops from {first:.4f} to {second:.4f} on "
                f"{found['texts']} labelled texts of test, by more than {limit:g} (gates.kept_drop)",
                significance.drop_p_value(head, before, after, labels, fitted[0], fitted[1]),
            )
        )
    refused = [line for exceeds, line, p in lines if exceeds and p < SIGNIFICANT]
    found["noise"] = [line for exceeds, line, p in lines if exceeds and p >= SIGNIFICANT]
    return found, refused
