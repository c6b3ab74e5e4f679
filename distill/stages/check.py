"""The stage check: every form of the classifier measured on test, and against the gates.

The candidate bundle is checked as users load it: the same files, read by the same runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.data import out_of_scope
from distill.evaluation import analysis, floor, metrics, significance, suspects
from distill.evaluation.abstention import Texts, fit_abstention
from distill.evaluation.analysis import Answers
from distill.evaluation.calibration import Calibration
from distill.evaluation.kept_heads import check_kept
from distill.evaluation.module import HeadQuality
from distill.heads import Head
from distill.models.base import Array
from distill.recipe.merge_section import frozen_heads
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.storage import write_json
from export.bundle.files import read_bundle
from export.graph.gates import Int8Degradation, Int8Failures, check_int8, check_parity
from export.runtime.classifier import Classifier

SPLITS = ("validation", "test")
Logits = Mapping[str, Array]  # of each head, [texts, labels]


def check(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Measure every form of the classifier on test, and note which gates it fails.

    The next stage refuses it, so that the measurements of a refused bundle are kept.
    """
    variants = read_bundle(artifacts.candidate(run)).variants
    refused: list[str] = []
    parity, logits = {}, {}
    for split in SPLITS:
        forms: dict[str, Logits] = {
            "teacher": artifacts.teacher_logits(run, split),
            "student": artifacts.student_logits(run, split),
        }
        served, parity[split] = _served(run, split, forms["student"], variants, refused)
        logits[split] = forms | served
    labels = {split: artifacts.labels(run, split) for split in SPLITS}
    student = artifacts.calibrations(run, "student")
    calibrations = dict.fromkeys(logits["test"], student) | {
        "teacher": artifacts.calibrations(run, "teacher")
    }
    int8 = Int8Failures({}, {}, {})
    if "int8" in variants:
        int8 = _check_int8(run, logits, labels, student)
        refused += [f"int8: head {head!r} {line}" for head, lines in int8.refused.items() for line in lines]
        if int8.refused:
            refused[-1] += " (--allow HEAD exports it anyway; export.quantize: none keeps fp32)"
    kept = _check_kept(run, logits["test"]["student"], labels["test"], student, refused)
    abstention = _abstention(run, logits, labels, student)
    _check_promises(run, abstention, refused)
    _analyse(run, folder, logits, labels, calibrations, abstention)
    return {
        "refused": refused,
        **({"kept": kept} if kept else {}),
        "allowed": int8.allowed,
        "noise": int8.noise,
        "parity": parity["test"],
        "abstention": abstention,
        "quality": {
            head.name: _against_teacher(
                head,
                {form: found[head.name] for form, found in logits["test"].items() if head.name in found},
                labels["test"][head.name],
                {form: found[head.name] for form, found in calibrations.items() if head.name in found},
                folder / "scratch",
            )
            for head in artifacts.heads(run)
        },
    }


def _check_kept(
    run: Run[Recipe],
    logits: Logits,
    labels: Mapping[str, Array],
    student: Mapping[str, Calibration],
    refused: list[str],
) -> dict[str, Any]:
    """What the training changed of each head that the student has kept, on test; adds to `refused`."""
    found = {}
    before, calibrations = artifacts.kept_logits(run, "test"), artifacts.kept_calibrations(run)
    for head in artifacts.heads(run):
        if (name := head.name) in before:
            fitted = calibrations[name], student[name]
            found[name], lines = check_kept(
                head, before[name], logits[name], labels[name], fitted, run.recipe.gates
            )
            refused += lines
            found[name]["frozen"] = name in frozen_heads(run.recipe)
            for line in found[name]["noise"]:
                run.info(f"{line}, which may be noise")
    return found


def _analyse(
    run: Run[Recipe],
    folder: Path,
    logits: Mapping[str, Mapping[str, Logits]],
    labels: Mapping[str, Mapping[str, Array]],
    calibrations: Mapping[str, Mapping[str, Calibration]],
    abstention: Mapping[str, Any],
) -> None:
    """Write analysis.json, where each head is right and wrong, and label_review.csv, labels that look wrong.

    Args:
        run: The run.
        folder: Of the stage.
        logits: Of each form on validation and test.
        labels: Of each head on validation and test.
        calibrations: Of each form.
        abstention: Of each head that may abstain.
    """
    form = _served_form(logits)
    texts = {split: artifacts.texts(run, split) for split in ("train", *SPLITS)}
    labels = {"train": artifacts.labels(run, "train"), **labels}
    review, heads = _labels_to_review(run, texts, labels, calibrations["teacher"]), {}
    floors = floor.floors(artifacts.heads(run), texts, labels)
    for head in artifacts.heads(run):
        own = {split: found[head.name] for split, found in labels.items()}
        forms = {
            name: Answers(head, found[head.name], fitted.temperature, fitted.thresholds)
            for name, found in logits["test"].items()
            if (fitted := calibrations[name].get(head.name))
        }
        analysed = analysis.analyse(forms[form], own["test"], texts["test"])
        lowest = floors.get(head.name)
        if lowest:
            forms["floor"] = lowest.answers["test"]
        teacher = forms.get("teacher")
        heads[head.name] = analysed | {
            "intervals": {name: answers.interval(own["test"]) for name, answers in forms.items()},
            "floor": lowest
            and {
                **metrics.without_nan(lowest.answers["test"].quality(own["test"])),
                "train_texts": lowest.train_texts,
            },
            "train_labels": analysis.label_counts(head, own["train"]),
            "abstention": abstention.get(head.name),
            "wanted_precision": calibrations[form][head.name].precision,
            "disagreements": analysis.disagreements(forms[form], teacher, own["test"], texts["test"])
            if teacher
            else [],
            "suspect_labels": [row.to_json() for row in review if row.head == head.name][: analysis.TEXTS],
        }
    write_json(folder / "analysis.json", {"split": "test", "form": form, "heads": heads})
    suspects.write_review(folder / "label_review.csv", review)


def _served_form(logits: Mapping[str, Mapping[str, Logits]]) -> str:
    return "int8" if "int8" in logits["test"] else "fp32"


def _abstention(
    run: Run[Recipe],
    logits: Mapping[str, Mapping[str, Logits]],
    labels: Mapping[str, Mapping[str, Array]],
    fitted: Mapping[str, Calibration],
) -> dict[str, Any]:
    """When each head abstains, of the form that is served; empty if the recipe does not ask.

    With texts of no class, all single_label heads are measured. A head that is frozen abstains as before.
    """
    frozen, before = frozen_heads(run.recipe), artifacts.kept_abstention(run)
    data, form = run.recipe.data, _served_form(logits)
    wanted = {name: head.abstain for name, head in run.recipe.heads.items()}
    heads = [h for h in artifacts.heads(run) if h.kind == "single_label" and h.name not in frozen]
    heads = [head for head in heads if data.oos or wanted[head.name]]
    outside: dict[str, Logits] = {}
    if heads and data.oos:
        splits = (artifacts.split(run, split) for split in ("train", "unlabeled", *SPLITS))
        known = (text for split in splits for batch in split.iter(10_000) for text in batch["text"])
        classifier = Classifier.load(artifacts.candidate(run), variant=form)
        texts = out_of_scope.texts(data, known)
        outside = {split: classifier.logits(found) for split, found in texts.items()}
    return before | {
        head.name: fit_abstention(
            head,
            wanted[head.name],
            fitted[head.name].temperature,
            {
                split: Texts(
                    logits[split][form][head.name],
                    labels[split][head.name],
                    outside[split][head.name] if split in outside else None,
                )
                for split in SPLITS
            },
        )
        for head in heads
    }


def _check_promises(run: Run[Recipe], abstention: Mapping[str, Any], refused: list[str]) -> None:
    """Refuse the heads that cannot keep the promised accuracy, unless the gates allow them to answer all."""
    for name, found in abstention.items():
        if found["rule"] is None and (rule := run.recipe.heads[name].abstain):
            promise = f"right at a rate of {rule.accuracy:g} with confidence {rule.confidence:g}"
            line = f"head {name!r}: abstain: no threshold has answers on validation that are {promise}"
            if name in run.recipe.gates.allow:
                run.info(f"{line}: allowed, so the head always answers")
            else:
                todo = (
                    f"label more texts of validation, lower heads.{name}.abstain.accuracy, or --allow {name}"
                )
                refused.append(f"{line} ({todo}, which publishes a head that always answers)")


def _labels_to_review(
    run: Run[Recipe],
    texts: Mapping[str, list[str]],
    labels: Mapping[str, Mapping[str, Array]],
    calibrations: Mapping[str, Calibration],
) -> list[suspects.Suspect]:
    """The labels of every split that look wrong to the teacher, in the order of `suspects.ranked`."""
    found, learnt = list[suspects.Suspect](), artifacts.label_confidence(run)
    for split, own in labels.items():
        for rows, logits in artifacts.teacher_logits_by_chunk(run, split):
            for head in (head for head in artifacts.heads(run) if head.name in logits):
                fitted = calibrations[head.name]
                answers = Answers(head, logits[head.name], fitted.temperature, fitted.thresholds)
                mean = learnt[head.name][rows] if split == "train" and head.name in learnt else None
                some, first = (own[head.name][rows], texts[split][rows]), rows.start + 1
                found += suspects.suspects(split, answers, *some, mean, first=first)
    counts = {
        (split, head.name): int(metrics.labelled(own[head.name], head).sum())
        for split, own in labels.items()
        for head in artifacts.heads(run)
    }
    return suspects.ranked(found, counts)


def _served(
    run: Run[Recipe], split: str, student: Logits, variants: Iterable[str], refused: list[str]
) -> tuple[dict[str, Logits], dict[str, Any]]:
    """The logits of each variant as the runtime computes them, and the parity of fp32 with the student.

    Lines on heads that lack parity are added to `refused`.
    """
    tolerance, texts = run.recipe.gates.parity, artifacts.texts(run, split)
    parity: dict[str, Any] = {}
    logits: dict[str, Logits] = {}
    for variant in variants:
        classifier = Classifier.load(artifacts.candidate(run), variant=variant)
        found = logits[variant] = classifier.logits(texts)
        if variant == "fp32":
            parity, failures = check_parity(student, found, tolerance, f"fp32 on {split}")
            alone = _spread_of_lengths(texts)
            single = [classifier.logits([texts[i]]) for i in alone]
            _, more = check_parity(
                {head: expected[alone] for head, expected in student.items()},
                {head: np.concatenate([one[head] for one in single]) for head in found},
                tolerance,
                f"fp32 on {split}, one text a batch",
            )
            refused += failures or more
    return logits, parity


def _check_int8(
    run: Run[Recipe],
    logits: Mapping[str, Mapping[str, Logits]],
    labels: Mapping[str, Mapping[str, Array]],
    calibrations: Mapping[str, Calibration],
) -> Int8Failures:
    """What int8 changes beyond the gates."""
    gates = run.recipe.gates
    degradations = {}
    for head in artifacts.heads(run):
        fp32, int8 = (
            np.concatenate([logits[split][form][head.name] for split in SPLITS]) for form in ("fp32", "int8")
        )
        known = np.concatenate([labels[split][head.name] for split in SPLITS])
        fitted = calibrations[head.name]
        degradations[head.name] = _int8_degradation(head, fp32, int8, known, fitted, gates.int8_changed)
    failures = check_int8(
        degradations,
        drop=gates.int8_drop,
        changed=gates.int8_changed,
        log_loss=gates.int8_log_loss,
        allow=gates.allow,
    )
    for accepted, why in ((failures.allowed, ": allowed"), (failures.noise, "")):
        for name, lines in accepted.items():
            run.info("\n".join(f"int8: head {name!r} {line}{why}" for line in lines))
    return failures


def _quality(head: Head, logits: Array, labels: Array, fitted: Calibration) -> dict[str, float]:
    """A head's metrics as users get them: calibrated, over its thresholds."""
    return metrics.quality(head, logits, labels, temperature=fitted.temperature, thresholds=fitted.thresholds)


def _int8_degradation(
    head: Head, fp32: Array, int8: Array, labels: Array, fitted: Calibration, changed_limit: float
) -> Int8Degradation:
    """What int8 changes of a head, measured as users get it: calibrated, over its thresholds."""
    before, after = (_quality(head, logits, labels, fitted) for logits in (fp32, int8))
    decisions = [metrics.decisions(head, x, fitted.thresholds, fitted.temperature) for x in (fp32, int8)]
    changed = np.not_equal(*decisions)
    return Int8Degradation(
        metric=head.first_metric,
        fp32=before[head.first_metric],
        int8=after[head.first_metric],
        changed=float(changed.mean()),
        log_loss=after["log_loss"] - before["log_loss"],
        labelled=int(metrics.labelled(labels, head).sum()),
        texts=len(labels),
        p_drop=significance.drop_p_value(head, fp32, int8, labels, fitted),
        p_changed=significance.changed_p_value(int(changed.sum()), changed.size, changed_limit),
        p_log_loss=significance.log_loss_p_value(head, fp32, int8, labels, fitted),
    )


def _against_teacher(
    head: Head, logits: Logits, labels: Array, fitted: Mapping[str, Calibration], scratch: Path
) -> dict[str, Any]:
    """A head's metrics on test for each form, and the student's agreement with its teacher and retention.

    The last two are None where the teacher does not know the head. The metrics stand on the `labelled` texts.
    The agreement needs no labels and stands on all `texts`.
    """
    module = HeadQuality(head, scratch)
    test: dict[str, Any] = {
        form: metrics.without_nan(
            module.compute(
                predictions=found,
                references=labels,
                temperature=fitted[form].temperature,
                thresholds=fitted[form].thresholds,
            )
        )
        for form, found in logits.items()
    }
    agreement = retention = None
    if "teacher" in logits:
        decisions = [
            metrics.decisions(head, logits[side], fitted[side].thresholds, fitted[side].temperature)
            for side in ("teacher", "student")
        ]
        agreement = metrics.agreement(*decisions)
        teacher, student = (test[side][head.first_metric] for side in ("teacher", "student"))
        retention = student / teacher if teacher else None
    return {
        "kind": head.kind,
        "labels": len(head.labels),
        "labelled": int(metrics.labelled(labels, head).sum()),
        "texts": len(labels),
        "test": test,
        "agreement": agreement,
        "retention": retention,
    }


def _spread_of_lengths(texts: list[str], count: int = 32) -> list[int]:
    """Positions of texts from the shortest to the longest."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return sorted({order[round(i)] for i in np.linspace(0, len(order) - 1, count)})
