"""What weights a recipe names: found whole, and told from others of the same name. Torch-free."""

from __future__ import annotations

from pathlib import Path

from distill.recipe.schema import Job, Recipe, SmallEncoder
from students.pretrained_files import is_start, shipped_start, start_identity
from students.shapes import SIZES, Shape
from teachers.checkpoints import EncoderError, file_sha256, identity, weights_sha256


def weights_named(recipe: Job) -> dict[str, list[str]]:
    """The identity of each encoder and start that a recipe names, by section.

    Raises:
        EncoderError: One is not there, not whole, or not as pinned.
    """
    networks = recipe.teacher.networks if isinstance(recipe, Recipe) else ()
    named = {"teacher": [_network_identity(folder) for folder in networks], "student": []}
    if not networks:
        named["teacher"].append(identity(recipe.teacher.encoder, recipe.teacher.sha256))
    if isinstance(recipe, Recipe):
        encoder, start = recipe.student.encoder, recipe.student.start
        if encoder:
            named["student"].append(identity(encoder))
        elif (start := start or usual_start(recipe)) not in ("teacher", "random"):
            named["student"].append(start_identity(Path(start)) if is_start(start) else identity(start))
    return named


def shape_of(settings: SmallEncoder) -> Shape:
    """The shape asked for, by name or by numbers."""
    if settings.layers and settings.hidden and settings.attention_heads:
        return Shape(settings.layers, settings.hidden, settings.attention_heads)
    return SIZES[settings.size or "tiny"]


def usual_start(recipe: Recipe) -> str:
    """What a student starts from where the recipe does not say.

    For a teacher from the hub the miniature of the student's size, where there is one. For any other the
    general start that is shipped for its weights and the student's shape, and else the teacher.

    Raises:
        EncoderError: The teacher is not there, not whole, or not as pinned.
    """
    student, teacher, shape = recipe.student, recipe.teacher, shape_of(recipe.student)
    if teacher.networks:
        return "teacher"
    weights = weights_sha256(teacher.encoder, teacher.sha256)
    if weights is None:
        return "teacher" if student.layers else shape.miniature
    return str(shipped_start(shape, weights) or "teacher")


def _network_identity(folder: str) -> str:
    if not all(Path(folder, name).is_file() for name in ("heads.json", "model.safetensors")):
        raise EncoderError(
            f"teacher.networks: {folder} holds no network (give RUN/stages/fit_teacher or fit_student)"
        )
    if any(Path(folder).glob("member-*")):
        raise EncoderError(f"teacher.networks: {folder} is an ensemble itself (name its networks instead)")
    return f"{identity(folder)}/{file_sha256(Path(folder, 'heads.json'))}"
