"""Typed readers of what the stages leave on disk: all that one stage knows of another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.tokens import Mixture
from distill.evaluation.calibration import Calibration
from distill.heads import Head
from distill.models.base import Array, TextClassifier
from distill.models.network_teacher import NetworkTeacher, teacher_digest
from distill.models.saved_networks import load_classifier
from distill.recipe.defaults import MIXING
from distill.recipe.merge_section import frozen_heads, kept_heads
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.storage import read_json
from distill.teaching.combined import CombinedTeacher, combined_digest
from distill.teaching.named import kept_labels, merged, merged_digests
from distill.training.checkpoint import load_tensors
from teachers.base import Teacher
from teachers.soft_labels import SoftLabels, text_digests

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK = 10_000  # texts whose logits are in memory at a time
KEPT = "kept.json"  # what the student keeps of an earlier run (`checkpoints.kept_from`)


def heads(run: Run[Any]) -> tuple[Head, ...]:
    """The heads of the prepared data, in order (of `prepare`)."""
    return load_heads(run.stage("prepare"))


def split(run: Run[Any], name: str) -> datasets.Dataset:
    """A prepared split: train, validation, test or unlabeled (of `prepare`)."""
    return load_split(run.stage("prepare"), name)


def texts(run: Run[Any], name: str) -> list[str]:
    """The texts of a prepared split, in memory (of `prepare`)."""
    return list(split(run, name)["text"])


def labels(run: Run[Any], name: str) -> dict[str, Array]:
    """The hard labels of each head on a prepared split (of `prepare`)."""
    return hard_labels(split(run, name), heads(run))


def mixture(run: Run[Any], texts: datasets.Dataset) -> Mixture | None:
    """How an epoch reads the texts of several sources, None where the recipe lists none (of `prepare`).

    Unlabelled texts are one more source. The share of a source follows from its training texts, not from
    their augmented texts.
    """
    if "source" not in texts.column_names:
        return None
    sizes = [source["rows"]["train"] for source in sources(run)] + [len(split(run, "unlabeled"))]
    shares = np.array([size and float(size) ** mixing(run) for size in sizes])
    return Mixture(np.asarray(texts.with_format("numpy")["source"][:]), shares)


def mixing(run: Run[Any]) -> float:
    """The exponent of the size of a source."""
    given: float | None = run.recipe.data.mixing
    return MIXING if given is None else given


def sources(run: Run[Any]) -> list[dict[str, Any]]:
    """The name, rows and labelled texts of each source that the recipe lists (of `prepare`)."""
    return list(read_json(run.stage("prepare") / "sources.json") or ())


def rows(run: Run[Any]) -> dict[str, int]:
    """The number of texts in each split (of `prepare`)."""
    return dict(run.metrics("prepare")["rows"])


def rare_labels(run: Run[Any]) -> dict[str, list[str]]:
    """The labels that `min_texts` leaves out, by head (of `prepare`)."""
    rare = read_json(run.folder / "data_report.json")["rare"]
    return {head: list(labels) for head, labels in rare.items()}


def max_length(run: Run[Any]) -> int:
    """The tokens of a text that the teacher reads (of `fit_teacher`)."""
    return int(run.metrics("fit_teacher")["max_length"])


def unknown_tokens(run: Run[Any]) -> float:
    """The share of validation tokens that the teacher's vocabulary does not cover (of `fit_teacher`)."""
    return float(run.metrics("fit_teacher").get("unknown_tokens", 0.0))


def teacher(run: Run[Any]) -> Teacher:
    """What labels texts in this run (of `fit_teacher`)."""
    stage = run.stage("fit_teacher")
    kept = kept_labels(stage)
    others: list[Teacher] = [kept] if kept else []
    if merged_digests(run.recipe, stage):
        others += merged(run.recipe, heads(run), run.accelerator, stage)
    network = NetworkTeacher(stage, max_length(run), run.accelerator)
    return CombinedTeacher([*others, network]) if others else network


def label_confidence(run: Run[Any]) -> dict[str, Array]:
    """The teacher's mean probability of the labels of each training text, by head (of `fit_teacher`).

    Empty for a teacher of other runs, or of an earlier version. NaN for a text that it has not read.
    """
    path = run.stage("fit_teacher") / "label_confidence.safetensors"
    if not path.exists():
        return {}
    return {head: mean.numpy() for head, mean in load_tensors(path)[0].items()}


def teacher_network(run: Run[Any]) -> tuple[TextClassifier, PreTrainedTokenizerFast]:
    """The network that initialises the student, and the tokenizer that it lends (of `fit_teacher`)."""
    return load_classifier(run.stage("fit_teacher"))


def soft_labels_folder(run: Run[Any]) -> Path:
    """The folder of the soft labels of the run's teacher, named by its digest (of `label`)."""
    stage = run.stage("fit_teacher")
    kept = kept_labels(stage)
    others = [*([kept.digest] if kept else []), *merged_digests(run.recipe, stage)]
    digest = teacher_digest(stage, max_length(run))
    if others:
        digest = combined_digest([*others, digest])
    return run.folder / "soft_labels" / digest[:16]


def soft_labels(run: Run[Any]) -> SoftLabels:
    """The soft labels of the run's teacher (of `label`)."""
    stage = run.stage("fit_teacher")
    about = read_json(stage / "heads.json")["heads"]
    sizes = {head["name"]: len(head["labels"]) for head in about}
    if kept_labels(stage) or merged_digests(run.recipe, stage):
        sizes = {head.name: len(head.labels) for head in heads(run)}  # each known to one of them at least
    return SoftLabels(soft_labels_folder(run), sizes)


def transfer_set(run: Run[Any]) -> datasets.Dataset:
    """The texts that the student learns from, the training texts first (of `label`)."""
    return load_split(run.stage("label"), "transfer")


def teacher_logits(run: Run[Any], name: str) -> dict[str, Array]:
    """The teacher's logits of each head that it knows on a split, float32 `[texts, labels]` (of `label`)."""
    soft = soft_labels(run)
    found = soft.logits(soft.rows(text_digests(texts(run, name))))
    return {head: logits.astype(np.float32) for head, logits in found.items()}


def teacher_logits_by_chunk(run: Run[Any], name: str) -> Iterator[tuple[slice, dict[str, Array]]]:
    """The same, a few thousand texts at a time: their rows and logits."""
    soft, every = soft_labels(run), texts(run, name)
    for start in range(0, len(every), CHUNK):
        rows = slice(start, start + CHUNK)
        found = soft.logits(soft.rows(text_digests(every[rows])))
        yield rows, {head: logits.astype(np.float32) for head, logits in found.items()}


def student(run: Run[Any]) -> tuple[TextClassifier, PreTrainedTokenizerFast]:
    """The trained student and its tokenizer (of `fit_student`)."""
    return load_classifier(run.stage("fit_student"))


def student_logits(run: Run[Any], name: str) -> dict[str, Array]:
    """The student's logits of each head on a split, float32 `[texts, labels]` (of `fit_student`)."""
    tensors = load_tensors(run.stage("fit_student") / "logits.safetensors")[0]
    return {head.name: tensors[f"{name}.{head.name}"].numpy() for head in heads(run)}


def kept_logits(run: Run[Recipe], name: str) -> dict[str, Array]:
    """The logits that the kept heads had before the training, as `student_logits` (of `fit_student`)."""
    tensors = load_tensors(run.stage("fit_student") / "logits.safetensors")[0]
    return {head: tensors[f"before.{name}.{head}"].numpy() for head in kept_heads(run.recipe)}


def kept_calibrations(run: Run[Recipe]) -> dict[str, Calibration]:
    """The calibration that the kept heads had before the training (of `fit_student`)."""
    return {name: Calibration(**kept["calibration"]) for name, kept in _kept(run)["heads"].items()}


def kept_abstention(run: Run[Recipe]) -> dict[str, dict[str, Any]]:
    """What the earlier run found on when its heads abstain, of those that are frozen (of `fit_student`)."""
    kept, frozen = _kept(run)["heads"], frozen_heads(run.recipe)
    return {name: kept[name]["abstention"] for name in frozen if kept[name]["abstention"]}


def kept_scales(run: Run[Recipe]) -> dict[str, tuple[float, int]]:
    """The scales of a frozen encoder's int8 activations in the earlier run (of `fit_student`)."""
    return {name: (scale, zero) for name, (scale, zero) in _kept(run)["scales"].items()}


def _kept(run: Run[Recipe]) -> dict[str, Any]:
    found = read_json(run.stage("fit_student") / KEPT) if kept_heads(run.recipe) else None
    return dict(found or {"heads": {}, "scales": {}})


def calibrations(run: Run[Any], side: str) -> dict[str, Calibration]:
    """The calibration of each head of `teacher` or `student` (of `calibrate`)."""
    found = read_json(run.stage("calibrate") / "calibration.json")[side]
    return {name: Calibration(**value) for name, value in found.items()}


def analysis(run: Run[Any]) -> dict[str, Any]:
    """Where each head is right and wrong on test (of `check`)."""
    return dict(read_json(run.stage("check") / "analysis.json"))


def candidate(run: Run[Any]) -> Path:
    """The folder of the bundle that is not checked yet (of `export`)."""
    return run.stage("export") / "candidate"
