"""The stage check: every form of the classifier measured on test, and refused where it fails a gate.

The bundle is made before it is checked, so that what the gates see is what users load: the same files read
by the same runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.tokens import Array
from distill.evaluation import metrics
from distill.evaluation.calibration import Calibration
from distill.heads import Head, columns
from distill.run import Run
from distill.stages.calibrate import calibrations
from distill.stages.fit_student import student_logits
from distill.stages.fit_teacher import teacher_logits
from export.bundle.files import read_bundle
from export.graph.gates import Int8Degradation, check_int8, check_parity
from export.runtime.classifier import Classifier

SHIPPED = ("validation", "test")


def check(run: Run, folder: Path) -> dict[str, Any]:
    """Measure every form of the classifier on test, and refuse what fails a gate."""
    heads = load_heads(run.stage("prepare"))
    candidate = run.stage("export") / "candidate"
    variants = read_bundle(candidate).variants
    parity, logits = {}, {}
    for split in SHIPPED:
        logits[split] = {"teacher": teacher_logits(run, split), "student": student_logits(run, split)}
        served, parity[split] = _served(run, heads, split, logits[split]["student"], variants)
        logits[split] |= served
    labels = {s: hard_labels(load_split(run.stage("prepare"), s), heads) for s in SHIPPED}
    student = calibrations(run, "student")
    allowed: dict[str, list[str]] = {}
    if "int8" in variants:
        both = {
            variant: np.concatenate([logits[s][variant] for s in SHIPPED]) for variant in ("fp32", "int8")
        }
        tolls = {
            head.name: _toll(
                head,
                both["fp32"][:, part],
                both["int8"][:, part],
                np.concatenate([labels[s][head.name] for s in SHIPPED]),
                student[head.name],
            )
            for head, part in columns(heads)
        }
        gates = run.recipe.gates
        allowed = check_int8(
            tolls,
            texts=len(both["fp32"]),
            drop=gates.int8_drop,
            changed=gates.int8_changed,
            log_loss=gates.int8_log_loss,
            allow=gates.allow,
        )
        for name, faults in allowed.items():
            run.say("\n".join(f"int8: head {name!r} {fault}: allowed" for fault in faults))
    fitted = dict.fromkeys(logits["test"], student) | {"teacher": calibrations(run, "teacher")}
    return {
        "parity": parity["test"],
        "allowed": allowed,
        "quality": {
            head.name: _against_teacher(
                head,
                {form: found[:, part] for form, found in logits["test"].items()},
                labels["test"][head.name],
                {form: calibrations[head.name] for form, calibrations in fitted.items()},
            )
            for head, part in columns(heads)
        },
    }


def _served(
    run: Run, heads: tuple[Head, ...], split: str, student: Array, variants: Iterable[str]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Logits of each variant as the runtime computes them, and the parity of fp32 with the student."""
    candidate, tolerance = run.stage("export") / "candidate", run.recipe.gates.parity
    texts = list(load_split(run.stage("prepare"), split)["text"])
    reference = {head.name: student[:, part] for head, part in columns(heads)}
    parity: dict[str, Any] = {}
    logits = {}
    for variant in variants:
        classifier = Classifier.load(candidate, variant=variant)
        found = classifier.logits(texts)
        logits[variant] = np.concatenate(list(found.values()), -1)
        if variant == "fp32":
            parity = check_parity(reference, found, tolerance, f"fp32 on {split}")
            alone = _spread_of_lengths(texts)
            single = [classifier.logits([texts[i]]) for i in alone]
            check_parity(
                {h: v[alone] for h, v in reference.items()},
                {h: np.concatenate([s[h] for s in single]) for h in found},
                tolerance,
                f"fp32 on {split}, one text a batch",
            )
    return logits, parity


def _quality(head: Head, logits: Array, labels: Array, fitted: Calibration) -> dict[str, float]:
    """A head's metrics as users get them: calibrated, over its thresholds."""
    return metrics.quality(head, logits, labels, temperature=fitted.temperature, thresholds=fitted.thresholds)


def _toll(head: Head, fp32: Array, int8: Array, labels: Array, fitted: Calibration) -> Int8Degradation:
    """What int8 costs a head, judged as users get it: calibrated, over its thresholds."""
    before, after = (_quality(head, logits, labels, fitted) for logits in (fp32, int8))
    said = [metrics.decisions(head, x, fitted.thresholds, fitted.temperature) for x in (fp32, int8)]
    return Int8Degradation(
        head.first_metric,
        before[head.first_metric],
        after[head.first_metric],
        float(np.not_equal(*said).mean()),
        after["log_loss"] - before["log_loss"],
    )


def _against_teacher(
    head: Head, logits: Mapping[str, Array], labels: Array, fitted: Mapping[str, Calibration]
) -> dict[str, Any]:
    """A head's metrics on test for each form, and how the student stands to its teacher."""
    test: dict[str, Any] = {
        form: metrics.without_nan(_quality(head, mine, labels, fitted[form])) for form, mine in logits.items()
    }
    same = np.equal(
        *(
            metrics.decisions(head, logits[side], fitted[side].thresholds, fitted[side].temperature)
            for side in ("teacher", "student")
        )
    )
    teacher, student = (test[side][head.first_metric] for side in ("teacher", "student"))
    return {
        "kind": head.kind,
        "labels": len(head.labels),
        "test": test,
        "agreement": float((same if same.ndim == 1 else same.all(-1)).mean()),
        "retention": student / teacher if teacher else None,
    }


def _spread_of_lengths(texts: list[str], count: int = 32) -> list[int]:
    """Positions of texts from the shortest to the longest."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return sorted({order[round(i)] for i in np.linspace(0, len(order) - 1, count)})
