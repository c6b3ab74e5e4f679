"""The records of a finished run, with labels and texts of any kind, from which a report is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.recipe.load import dump_yaml
from distill.storage import write_sealed

FORMS = ("teacher", "student", "fp32", "int8")
SIZES = {"fp32_bytes": 17_301_006, "int8_bytes": 4_379_691}
TEST = 1200


def analysed_head(kind: str, labels: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """The analysis of a head, as analysis.json holds it."""
    single, n = kind == "single_label", len(labels)
    metric = "accuracy" if single else "micro_f1"
    classes = [
        {
            "label": label,
            "precision": 0.9,
            "recall": 0.5,
            "f1": 0.2 + 0.7 * i / n,
            "support": 40,
            "predicted": 38,
        }
        for i, label in enumerate(labels)
    ]
    counts = [[40 if i == j else (i * j) % 4 for j in range(n)] for i in range(n)]
    answers = {
        "teacher": labels[0],
        "teacher_probability": 0.99,
        "student": labels[-1],
        "student_probability": 0.8,
    }
    errors = [
        {"text": text, "label": labels[0], "predicted": labels[-1], "probability": 0.9} for text in texts
    ]
    return {
        "kind": kind,
        "labels": list(labels),
        "texts": TEST,
        "labelled": 1066,
        "metric": metric,
        "intervals": {form: [0.9, 0.94] for form in (*FORMS, "floor")},
        "floor": {metric: 0.85, "macro_f1": 0.8, "train_texts": 4444},
        "train_labels": dict.fromkeys(labels, 1234),
        "classes": classes,
        "confusion": {"labels": list(labels[:25]), "counts": [row[:25] for row in counts[:25]]}
        if single
        else None,
        "confusions": [{"label": labels[0], "predicted": labels[-1], "texts": 9, "share": 0.2}] * 12
        if single
        else None,
        "reliability": [{"confidence": i / 10, "accuracy": i / 11, "texts": 7 * i} for i in range(3, 10)],
        "coverage": [
            {"coverage": i / 50, "accuracy": 1 - i / 500, "threshold": 1 - i / 60} for i in range(1, 51)
        ]
        if single
        else None,
        "thresholds": None if single else dict.fromkeys(labels, 0.25),
        "disagreements": [{"text": text, "label": None, **answers} for text in texts],
        "confident_errors": errors,
        "suspect_labels": [
            {
                "split": "train",
                "row": 17,
                "text": text,
                "label": labels[0],
                "suggested": labels[-1],
                "probability": 1.0,
            }
            for text in texts
        ],
    }


def write_run(
    folder: Path,
    name: str = "toy",
    labels: Sequence[str] = ("refund_request", "order_inquiry", "general_feedback"),
    texts: Sequence[str] = ("where is my parcel?", "the lamp is late"),
    refused: Sequence[str] = (),
) -> Path:
    """Write the records, recipe.yaml and analysis.json of a run; returns its folder."""
    kinds = {"intent": "single_label", "flags": "multi_label"}
    names = {"single_label": ("accuracy", "macro_f1", "log_loss"), "multi_label": ("micro_f1", "macro_f1")}
    rows = {"train": 5000, "validation": 800, "test": TEST, "unlabeled": 3600}
    split = {"train": 4444, "validation": 711, "test": 1066}
    quality = {
        head: {
            "kind": kind,
            "labels": len(labels),
            "labelled": 1066,
            "texts": TEST,
            "test": {form: dict.fromkeys(names[kind], 0.92) for form in FORMS},
            "agreement": 0.9375,
            "retention": 0.962,
        }
        for head, kind in kinds.items()
    }
    fitted = {
        "parameters": 4_321_675,
        "epochs": 3,
        "steps": 314,
        "best_epoch": 2,
        "metric": "mean",
        "texts": 5000,
        "history": [0.8, 0.9, 0.85],
        "validation_history": {"intent.accuracy": [0.8, 0.9, 0.85], "flags.micro_f1": [0.7, None, 0.75]},
        "losses": {"loss": [2.0, 1.0, 0.5], "hard": [1.5, 0.7, 0.3], "distillation": [0.5, 0.3, 0.2]},
    }
    parity = {head: {"max_difference": 3.8e-06, "other_labels": 0} for head in kinds}
    metrics = {
        "prepare": {"rows": rows, "labelled": dict.fromkeys(kinds, split)},
        "fit_teacher": {**fitted, "max_length": 128, "truncated_texts": 0.2, "unknown_tokens": 0.0},
        "fit_student": {**fitted, "start": f"pretrained student: {name}"},
        "export": SIZES,
        "check": {
            "quality": quality,
            "parity": {"texts": TEST, "heads": parity},
            "refused": list(refused),
            "noise": {},
            "allowed": {"flags": [f"changes {labels[0]}"]},
        },
    }
    if not refused:
        latency = {"p50": 0.31, "p99": 3.3, "tokens": 27, "threads": 1}
        metrics["bundle"] = {"latency_ms": latency, "throughput": 3700.7, "threads": 2}
    for number, (stage, values) in enumerate(metrics.items()):
        (folder / "stages" / stage).mkdir(parents=True)
        after = dict.fromkeys([*metrics][:number], "b")
        record = {"seconds": 1.5 * number, "peak_rss_bytes": 10**9, "device": "cpu", "metrics": values}
        record |= {"inputs": {"digest": "a", "after": after}, "results": "b"}
        write_sealed(folder / "stages" / stage / "stage.json", record)
    for stage, hidden in (("fit_teacher", 384), ("fit_student", 128)):
        config = {"model_type": "bert", "hidden_size": hidden, "num_hidden_layers": hidden // 64}
        (folder / "stages" / stage / "config.json").write_text(json.dumps(config), "utf-8")
    heads = {head: analysed_head(kind, labels, texts) for head, kind in kinds.items()}
    analysis = {"split": "test", "form": "int8", "heads": heads}
    (folder / "stages/check/analysis.json").write_text(json.dumps(analysis), "utf-8")
    recipe = {
        "name": name,
        "seed": 7,
        "teacher": {"encoder": name, "networks": [], "epochs": 3, "lr": 1e-4, "head_lr": 3e-3},
        "student": {"size": "tiny", "epochs": 3, "lr": 2e-3, "layers": None, "network": None},
        "distillation": {"loss": None, "temperature": None, "soft_weight": 0.9},
        "export": {"max_length": None},
    }
    (folder / "recipe.yaml").write_text(dump_yaml(recipe), "utf-8")
    first = [{"file": name, "line": 3, "excerpt": texts[0]}]
    data = {
        "rows": rows,
        "dropped": {"empty text": {"count": 12, "first": first}},
        "leaked": {"in test, too": {"count": 1, "first": first}},
        "spellings": {
            "intent": [{"label": labels[0], "spelling": "Refund", "cells": 4, "file": "a", "line": 1}]
        },
        "rare": {"intent": {"rare": 2}},
        "labels": {"intent": {label: {"train": 9, "validation": 0, "test": 5} for label in labels}},
        "labelled": dict.fromkeys(kinds, split),
    }
    (folder / "data_report.json").write_text(json.dumps(data), "utf-8")
    return folder
