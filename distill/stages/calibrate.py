"""The stage calibrate: calibration temperatures and thresholds of teacher and student, from validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.data.sources import quoted
from distill.evaluation.calibration import NEVER, calibrate
from distill.heads import Head
from distill.recipe.data_section import RecipeError
from distill.recipe.merge_section import frozen_heads
from distill.recipe.near import near
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.storage import write_json

FIRST = 10  # labels that a line names


def calibrate_heads(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Fit the calibration of each head of teacher and student on validation.

    If a head has no labelled texts there, the student is calibrated to the teacher's probabilities. A head
    that the student keeps as it was keeps its calibration.
    """
    labels = artifacts.labels(run, "validation")
    logits = {
        "teacher": artifacts.teacher_logits(run, "validation"),
        "student": artifacts.student_logits(run, "validation"),
    }
    calibrations = {
        side: {
            head.name: calibrate(
                head,
                found[head.name],
                labels[head.name],
                logits["teacher"].get(head.name) if side == "student" else None,
                *_wanted_precision(run.recipe, head),
            ).to_json()
            for head in artifacts.heads(run)
            if head.name in found
        }
        for side, found in logits.items()
    }
    kept = artifacts.kept_calibrations(run)
    for side in calibrations.values():  # the earlier student teaches them
        side |= {name: kept[name].to_json() for name in frozen_heads(run.recipe) if name in side}
    for head in artifacts.heads(run):
        wanted, confidence = _wanted_precision(run.recipe, head)
        thresholds = calibrations["student"][head.name]["thresholds"]
        if never := [x for i, x in enumerate(head.labels) if x in wanted and thresholds[i] == NEVER]:
            more = f" and {len(never) - FIRST} more" if len(never) > FIRST else ""
            run.info(
                f"calibrate: head {head.name!r}: labels that never apply, as no threshold of theirs has "
                f"the wanted precision on validation with confidence {confidence:g}: "
                f"{', '.join(map(quoted, never[:FIRST]))}{more} (give more validation texts, or lower either)"
            )
    write_json(folder / "calibration.json", calibrations)
    return calibrations


def _wanted_precision(recipe: Recipe, head: Head) -> tuple[Mapping[str, float], float]:
    """The wanted precision of the labels of a head that have one, and the confidence of its bound.

    Raises:
        RecipeError: The recipe names a label that the head does not have.
    """
    if (setting := recipe.heads[head.name].thresholds) is None:
        return {}, 0.95
    wanted = setting.of(head.labels)
    for label in wanted:
        if label not in head.labels:
            where = f"heads.{head.name}.thresholds.precision"
            raise RecipeError(f"{where}: no label {label!r}{near(label, head.labels)}")
    return wanted, setting.confidence
