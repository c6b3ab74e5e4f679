"""The stage calibrate: calibration temperatures and thresholds of teacher and student, from validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.evaluation.calibration import calibrate
from distill.run import Run
from distill.stages import artifacts
from distill.storage import write_json


def calibrate_heads(run: Run[Any], folder: Path) -> dict[str, Any]:
    """Fit the calibration of each head of teacher and student on validation.

    If a head has no labelled texts there, the student is calibrated to the teacher's probabilities.
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
            ).to_json()
            for head in artifacts.heads(run)
            if head.name in found
        }
        for side, found in logits.items()
    }
    write_json(folder / "calibration.json", calibrations)
    return calibrations
