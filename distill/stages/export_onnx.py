"""The stage export: the student as ONNX, fp32 and int8, in a candidate bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from distill.data.labels import are_whole_numbers
from distill.evaluation.calibration import Calibration
from distill.models.base import Array, EncodedTexts, TextClassifier
from distill.models.packed import PackedClassifier
from distill.models.saved_networks import load_classifier
from distill.recipe.data_section import HeadRecipe
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.storage import write_json
from export.bundle import manifest as manifests
from export.bundle.files import write_bundle

MEASURED, TOKENS = 512, 2048  # texts for the ranges of activations in all, and their tokens in a batch


def export_onnx(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Write the student as ONNX, fp32 and int8, in a candidate bundle."""
    return export_network(
        run.recipe,
        run.stage("fit_student"),
        artifacts.calibrations(run, "student"),
        folder,
        texts=measured_texts(artifacts.transfer_set(run)),
        known=artifacts.kept_scales(run),
    )


def measured_texts(texts: datasets.Dataset) -> list[str]:
    """Texts from all parts of a data set, for the ranges of activations."""
    rows = np.linspace(0, len(texts) - 1, min(len(texts), MEASURED), dtype=np.int64)
    return list(texts.select(rows)["text"])


def export_network(
    recipe: Recipe,
    source: Path,
    fitted: Mapping[str, Calibration],
    folder: Path,
    tokens: int | None = None,
    *,
    texts: Sequence[str],
    known: Mapping[str, tuple[float, int]] | None = None,
) -> dict[str, Any]:
    """Write a saved network as ONNX, fp32 and int8, in `folder/candidate`; returns the bytes of each variant.

    Args:
        recipe: The recipe, for its name and the section `export`.
        source: The folder of the network and its tokenizer.
        fitted: The calibration of each head.
        folder: An existing folder.
        tokens: Tokens read of a text; by default those that the tokenizer names.
        texts: On which the ranges of activations are measured for int8.
        known: The scales of activations that an earlier run measured on the same encoder.
    """
    from export.graph.quantize import quantize_int8
    from export.graph.to_onnx import to_onnx
    from export.runtime.doctor import replay_file

    network, tokenizer = load_classifier(source)
    only = len(network.heads) == 1
    outputs = ["logits" if only else f"logits_{head.name}" for head in network.heads]
    work = folder / "onnx"
    work.mkdir(exist_ok=True)
    tokens = int(tokens or tokenizer.model_max_length)
    packed = network if isinstance(network, PackedClassifier) else None
    to_onnx(network, outputs, work / "model.onnx", positions=tokens + network.extra_positions)
    variants = {"fp32": manifests.FP32}
    if recipe.export.quantize == "int8":
        # of a packed network, any label may come with a text: no texts tell the ranges
        batches = None if packed else unpadded(network.text_encoder(tokenizer, tokens)(texts))
        scales = quantize_int8(work / "model.onnx", work / "model_quantized.onnx", batches, known)
        write_json(folder / "scales.json", scales)
        variants["int8"] = manifests.INT8
    manifest = manifests.Manifest(
        name=recipe.name,
        heads=tuple(
            manifests.Head(
                h.name,
                h.kind,
                h.labels,
                output,
                temperature=fitted[h.name].temperature,
                thresholds=fitted[h.name].thresholds,
                label_type=_label_type(recipe.heads[h.name], h.labels),
                hypothesis=h.hypothesis if packed else "",
                descriptions=h.descriptions if packed else {},
            )
            for h, output in zip(network.heads, outputs, strict=True)
        ),
        max_length=tokens,
        pad_token_id=int(tokenizer.pad_token_id or 0),
        variants=variants,
        default_variant=list(variants)[-1],
        kind=manifests.PACKED if packed else manifests.HEADS,
        label_length=packed.label_length if packed else 0,
    )
    contents: dict[str, Path | bytes] = {file: folder / file for file in variants.values()}
    contents["tokenizer.json"] = source / "tokenizer.json"
    contents["tokenizer_config.json"] = source / "tokenizer_config.json"
    contents["config.json"] = _config(network).encode()
    written = (source / "tokenizer.json").read_bytes()
    contents[manifests.REPLAY] = replay_file(folder, manifest, network.config.vocab_size - 1, written)
    write_bundle(folder / "candidate", manifest, contents)
    sizes = {f"{name}_bytes": (folder / file).stat().st_size for name, file in variants.items()}
    shutil.rmtree(work)
    return sizes


def unpadded(texts: EncodedTexts) -> Iterator[dict[str, Array]]:
    """Batches of texts of one length each."""
    for length in np.unique(texts.lengths[texts.lengths > 0]).tolist():
        rows, size = np.flatnonzero(texts.lengths == length), max(1, TOKENS // length)
        for start in range(0, len(rows), size):
            yield texts.batch(rows[start : start + size])


def _label_type(head: HeadRecipe, labels: Sequence[str]) -> str:
    """Whether answers give the labels as whole numbers. The labels of a head of columns are their names."""
    numbers = not head.columns and are_whole_numbers(labels)
    return manifests.INTEGER if numbers else manifests.STRING


def _config(network: TextClassifier) -> str:
    """config.json as other libraries read it: with the labels and kind of a single head."""
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
