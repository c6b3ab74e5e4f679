"""The stage calibrate: temperatures and thresholds of teacher and student, fitted on validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.evaluation.calibration import Calibration, calibrate
from distill.heads import columns
from distill.run import Run, read_json, write_json
from distill.stages.fit_student import student_logits
from distill.stages.fit_teacher import teacher_logits


def calibrate_heads(run: Run, folder: Path) -> dict[str, Any]:
    """Fit temperatures and thresholds of teacher and student on validation."""
    heads = load_heads(run.stage("prepare"))
    labels = hard_labels(load_split(run.stage("prepare"), "validation"), heads)
    sides = {"teacher": teacher_logits(run, "validation"), "student": student_logits(run, "validation")}
    found = {
        side: {
            head.name: calibrate(head, logits[:, part], labels[head.name]).to_json()
            for head, part in columns(heads)
        }
        for side, logits in sides.items()
    }
    write_json(folder / "calibration.json", found)
    return found


def calibrations(run: Run, side: str) -> dict[str, Calibration]:
    """The calibration of each head of a side, `teacher` or `student`."""
    found = read_json(run.stage("calibrate") / "calibration.json")[side]
    return {name: Calibration(**value) for name, value in found.items()}
