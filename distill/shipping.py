"""The stages that ship: calibrate, export, check, bundle.

Each is a function (run, its folder) -> figures. The bundle is made before it is checked, so that what
the gates see is what users load: the same files read by the same runtime.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill import metrics
from distill.calibration import Calibration, calibrate
from distill.heads import Head, columns
from distill.learning import student_logits
from distill.model_card import model_card
from distill.network import load_network
from distill.prepared import hard_labels, load_heads, load_split
from distill.stage import Run, read_json, versions, write_json
from distill.teaching import teacher_logits
from distill.tokens import Array
from export import manifest as manifests
from export.bench import bench
from export.bundle import read_bundle, write_bundle
from export.parity import Toll, check_int8, check_parity
from export.runtime import Classifier

SHIPPED = ("validation", "test")


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


def export(run: Run, folder: Path) -> dict[str, Any]:
    """Write the student as ONNX, fp32 and int8, in a bundle that is yet to be checked."""
    from export.quantize import quantize_int8
    from export.replay import replay_file
    from export.to_onnx import to_onnx

    settings, student = run.recipe.export, run.stage("fit_student")
    network, tokenizer = load_network(student)
    only = len(network.heads) == 1
    outputs = ["logits" if only else f"logits_{head.name}" for head in network.heads]
    work = folder / "onnx"
    work.mkdir(exist_ok=True)
    tokens = int(tokenizer.model_max_length)
    to_onnx(network, outputs, work / "model.onnx", positions=tokens, opset=settings.opset)
    variants = {"fp32": manifests.FP32}
    if settings.quantize == "int8":
        quantize_int8(work / "model.onnx", work / "model_quantized.onnx")
        variants["int8"] = manifests.INT8
    calibrations = _calibrations(run, "student")
    manifest = manifests.Manifest(
        name=run.recipe.name,
        heads=tuple(
            manifests.Head(h.name, h.kind, h.labels, output, **calibrations[h.name].to_json())
            for h, output in zip(network.heads, outputs, strict=True)
        ),
        max_length=tokens,
        pad_token_id=int(tokenizer.pad_token_id or 0),
        variants=variants,
        default_variant=list(variants)[-1],
    )
    contents: dict[str, Path | bytes] = {file: folder / file for file in variants.values()}
    contents["tokenizer.json"] = student / "tokenizer.json"
    contents["tokenizer_config.json"] = student / "tokenizer_config.json"
    contents["config.json"] = _config(network).encode()
    contents[manifests.REPLAY] = replay_file(folder, manifest, network.config.vocab_size - 1)
    write_bundle(folder / "candidate", manifest, contents)
    sizes = {f"{name}_bytes": (folder / file).stat().st_size for name, file in variants.items()}
    shutil.rmtree(work)
    return sizes


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
    student = _calibrations(run, "student")
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
    fitted = dict.fromkeys(logits["test"], student) | {"teacher": _calibrations(run, "teacher")}
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


def bundle(run: Run, folder: Path) -> dict[str, Any]:
    """Publish the checked bundle with its figures and model card, and time it."""
    candidate, target = run.stage("export") / "candidate", run.folder / "bundle"
    checked, manifest = run.figures("check"), read_bundle(candidate)
    # what `distill evaluate` must know to read labelled data as this run did
    layout = {h.name: run.recipe.heads[h.name].model_dump(mode="json") for h in manifest.heads}
    for head in manifest.heads:
        if layout[head.name]["columns"] is None:
            layout[head.name]["labels"] = list(head.labels)
    details = {
        "reads": {"text": run.recipe.data.text, "heads": layout},
        "recipe_sha256": run.recipe.digest(),
        "quality": checked["quality"],
        "parity": checked["parity"],
        "allowed": checked["allowed"],
        "versions": versions(),
        "parameters": run.figures("fit_student")["parameters"],
    }
    texts = list(load_split(run.stage("prepare"), "test")["text"])
    contents: dict[str, Path | bytes] = {file: candidate / file for file in manifest.files}
    rows = run.figures("prepare")["rows"]
    sizes = run.figures("export")
    card = model_card(run.recipe, manifest.heads, checked, rows, sizes, manifest.max_length)
    contents["README.md"] = card.encode()
    final = manifests.Manifest(**{**vars(manifest), "files": {}, "details": details})
    write_bundle(target, final, contents)
    return dict(bench(Classifier.load(target), texts))


def _quality(head: Head, logits: Array, labels: Array, fitted: Calibration) -> dict[str, float]:
    """A head's metrics as users get them: calibrated, over its thresholds."""
    return metrics.quality(head, logits, labels, temperature=fitted.temperature, thresholds=fitted.thresholds)


def _toll(head: Head, fp32: Array, int8: Array, labels: Array, fitted: Calibration) -> Toll:
    """What int8 costs a head, judged as users get it: calibrated, over its thresholds."""
    before, after = (_quality(head, logits, labels, fitted) for logits in (fp32, int8))
    said = [metrics.decisions(head, x, fitted.thresholds, fitted.temperature) for x in (fp32, int8)]
    return Toll(
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


def _calibrations(run: Run, side: str) -> dict[str, Calibration]:
    found = read_json(run.stage("calibrate") / "calibration.json")[side]
    return {name: Calibration(**value) for name, value in found.items()}


def _spread_of_lengths(texts: list[str], count: int = 32) -> list[int]:
    """Positions of texts from the shortest to the longest."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return sorted({order[round(i)] for i in np.linspace(0, len(order) - 1, count)})


def _config(network: Any) -> str:
    """config.json as readers of a bundle want it: labels of the only head, and its kind."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    config = network.config.to_dict()
    config.pop("_name_or_path", None)
    if len(network.heads) == 1:
        (head,) = network.heads
        name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config["model_type"])
        config["architectures"] = [name] if name else None
        config["problem_type"] = f"{head.kind}_classification"
        config["id2label"] = {str(i): name for i, name in enumerate(head.labels)}
        config["label2id"] = {name: i for i, name in enumerate(head.labels)}
    return str(type(network.config).from_dict(config).to_json_string(use_diff=False))
