"""What weights a recipe names: found whole, and told from others of the same name. Torch-free."""

from __future__ import annotations

from pathlib import Path

from distill.recipe import Job, Recipe
from students.start_folder import is_start, start_identity
from teachers.locate import EncoderError, file_sha256, identity


def weights_named(recipe: Job) -> dict[str, list[str]]:
    """The identity of each encoder and start that a recipe names, by side.

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
        elif start not in (None, "teacher", "random"):
            named["student"].append(start_identity(Path(start)) if is_start(start) else identity(start))
    return named


def _network_identity(folder: str) -> str:
    if not all(Path(folder, name).is_file() for name in ("heads.json", "model.safetensors")):
        raise EncoderError(
            f"teacher.networks: {folder} holds no network (give RUN/stages/fit_teacher or fit_student)"
        )
    return f"{identity(folder)}/{file_sha256(Path(folder, 'heads.json'))}"
