"""The encoders that a recipe names: their identities, and the default initialisation. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.data.sources import fingerprint
from distill.recipe.merge_section import frozen_heads, kept_heads
from distill.recipe.schema import Job, Recipe, SmallEncoder
from distill.storage import damaged, json_digest, read_json, read_sealed
from students.pretrained_files import is_start, shipped_start, start_identity
from students.shapes import SIZES, Shape
from teachers.checkpoints import (
    EncoderError,
    classifier_identity,
    file_sha256,
    identity,
    network_folder,
    weights_sha256,
)


def encoder_identities(recipe: Job) -> dict[str, list[str]]:
    """The identities of the encoders of `teacher` and `student`, which change with their weights.

    Raises:
        EncoderError: An encoder is missing or incomplete, or its digest is not the expected one.
    """
    if not isinstance(recipe, Recipe):
        return {"teacher": [identity(recipe.teacher.encoder, recipe.teacher.sha256)], "student": []}
    teacher, student = recipe.teacher, recipe.student
    teachers = [network_identity(folder, "teacher.networks: ") for folder in teacher.networks]
    start = student.encoder or student.start or default_initialisation(recipe)
    if start in ("teacher", "random"):
        students = []
    elif is_start(start):
        students = [start_identity(Path(start))]
    elif is_network(start):
        students = [network_identity(start, "student: "), json_digest(kept_from(recipe))]
    else:
        students = [identity(start)]
    teachers = teachers or [identity(teacher.encoder, teacher.sha256)]
    for head, models in (teacher.merge or {}).items():
        teachers += [_merged_identity(f"teacher.merge.{head}: ", one.model) for one in models]
    files = teacher.soft_labels.files if teacher.soft_labels else ()
    teachers += [fingerprint(file, Path(recipe.data.root)) for file in files]
    return {"teacher": teachers, "student": students}


def _merged_identity(setting: str, name: str) -> str:
    if is_network(name):
        return network_identity(name, setting)
    try:
        return classifier_identity(name)
    except EncoderError as error:
        raise EncoderError(f"{setting}{error}") from None


def is_network(name: str) -> bool:
    """Whether a name is the folder of a network of an earlier run, not a classifier of Hugging Face."""
    return (network_folder(name) / "heads.json").is_file()


def kept_from(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What a student keeps of the earlier run besides its weights, as JSON.

    `heads` are the `calibration` of each kept head and its `abstention` if any. `scales` are those of the
    int8 activations of a frozen encoder, if the earlier run has them.

    Raises:
        EncoderError: The earlier run has no calibration of a head.
    """
    if not (kept := kept_heads(recipe)):
        return {"heads": {}, "scales": {}}
    student = network_folder(str(recipe.student.encoder))
    stages = student.parent
    path = stages / "calibrate" / "calibration.json"
    fitted = (read_json(path) or {}).get("student", {})
    if lacking := [name for name in kept if name not in fitted]:
        raise EncoderError(
            f"student.encoder: {path} has no calibration of head {lacking[0]!r}, expected that of a finished "
            "run (run its recipe again)"
        )
    checked = read_sealed(stages / "check" / "stage.json") or {"metrics": {}}
    abstention = checked["metrics"].get("abstention", {})
    for name in frozen_heads(recipe):  # those of a replay are fitted again
        if recipe.heads[name].abstain and name not in abstention:
            raise EncoderError(
                f"student.encoder: {stages.parent} has no threshold below which head {name!r} abstains, "
                f"as pushed runs lack it (name the run's own folder, or leave out heads.{name}.abstain)"
            )
    exported = bool(frozen_heads(recipe)) and student.name == "fit_student"
    return {
        "heads": {name: {"calibration": fitted[name], "abstention": abstention.get(name)} for name in kept},
        "scales": (read_json(stages / "export" / "scales.json") or {}) if exported else {},
    }


def shape_of(settings: SmallEncoder) -> Shape:
    """The shape of a student, which the recipe gives by name or by numbers."""
    if settings.layers and settings.hidden and settings.attention_heads:
        return Shape(settings.layers, settings.hidden, settings.attention_heads)
    return SIZES[settings.size or "tiny"]


def default_initialisation(recipe: Recipe) -> str:
    """The value of `student.start` if the recipe sets none.

    For a teacher from the hub, it is the BERT miniature of the student's size. For a local teacher, it is the
    pretrained student that is shipped for these weights and this shape. Otherwise it is "teacher".

    Raises:
        EncoderError: The teacher is missing or incomplete, or its digest is not the expected one.
    """
    student, teacher, shape = recipe.student, recipe.teacher, shape_of(recipe.student)
    if teacher.networks:
        return "teacher"
    weights = weights_sha256(teacher.encoder, teacher.sha256)
    if weights is None:
        return "teacher" if student.layers else shape.miniature
    return str(shipped_start(shape, weights) or "teacher")


def network_identity(given: str, setting: str = "") -> str:
    """A string that changes with a network of an earlier run.

    Args:
        given: RUN/stages/fit_teacher or fit_student.
        setting: Of the recipe, in front of messages.

    Raises:
        EncoderError: The folder holds no network, an ensemble, or damaged files.
    """
    folder = network_folder(given)
    if not all((folder / name).is_file() for name in ("heads.json", "model.safetensors", "tokenizer.json")):
        raise EncoderError(
            f"{setting}{given} holds no network, expected RUN/stages/fit_teacher or fit_student"
        )
    if any(folder.glob("member-*")):
        raise EncoderError(f"{setting}{given} is an ensemble (name its networks instead)")
    record = read_sealed(folder / "stage.json") or {"stage": "", "files": {}}
    own = f"stages/{record['stage']}/"
    files = {name[len(own) :]: digest for name, digest in record["files"].items() if name.startswith(own)}
    for name, what in damaged(folder, files).items():
        raise EncoderError(f"{setting}{folder / name}: {what} (run its recipe again)")
    return f"{identity(str(folder))}/{file_sha256(folder / 'heads.json')}"
