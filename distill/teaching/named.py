"""The teachers that a recipe names besides its encoder, and the heads that are left to the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill.heads import Head
from distill.recipe.schema import Job
from distill.run import Run
from distill.storage import read_json, write_json
from distill.teaching.combined import CombinedTeacher, KeptLabels
from distill.teaching.labelling import label_texts
from teachers.base import Teacher
from teachers.soft_labels import SoftLabels

KEPT = "kept"  # folder of the soft labels that were asked of teachers that know some texts only


def asked(recipe: Job, heads: Sequence[Head]) -> list[Teacher]:
    """The teachers that know some texts only, the preferred first; their answers are kept."""
    return []


def merged(recipe: Job, heads: Sequence[Head], accelerator: Accelerator) -> list[Teacher]:
    """The teachers that know every text of some heads."""
    return []


def merged_digests(recipe: Job, heads: Sequence[Head]) -> list[str]:
    """The digests of the teachers in `merged`, without loading them."""
    return []


def fitted_heads(recipe: Job, heads: Sequence[Head]) -> tuple[Head, ...]:
    """The heads that the encoder is fine-tuned for: those that no other teacher knows for every text."""
    return tuple(heads)


def keep_asked(run: Run[Any], heads: Sequence[Head], columns: list[Any], stage: Path) -> KeptLabels | None:
    """Ask the teachers that know some texts only, and keep their soft labels in a stage's folder.

    Args:
        run: Its recipe names the teachers.
        heads: Of the data.
        columns: Columns of the texts to ask for.
        stage: The folder of the stage.
    """
    if not (teachers := asked(run.recipe, heads)):
        return None
    teacher = CombinedTeacher(teachers)
    if run.accelerator.is_main_process:
        (stage / KEPT).mkdir(exist_ok=True)
        write_json(stage / KEPT / "labels.json", teacher.labels)
    run.accelerator.wait_for_everyone()
    label_texts(run, teacher, _open(stage, teacher.labels), columns)
    return kept_labels(stage)


def kept_labels(stage: Path) -> KeptLabels | None:
    """What `keep_asked` kept in a stage's folder, if it asked any teacher."""
    if not (path := stage / KEPT / "labels.json").exists():
        return None
    labels = {head: tuple(own) for head, own in read_json(path).items()}
    return KeptLabels(_open(stage, labels), labels)


def _open(stage: Path, labels: Mapping[str, tuple[str, ...]]) -> SoftLabels:
    return SoftLabels(stage / KEPT, {head: len(own) for head, own in labels.items()})
