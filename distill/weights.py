"""What weights a recipe names: found whole, and told from others of the same name. Torch-free."""

from __future__ import annotations

from pathlib import Path

from distill.recipe import Job, Recipe
from students.start_folder import is_start, start_identity
from teachers.locate import identity


def weights_named(recipe: Job) -> dict[str, list[str]]:
    """The identity of each encoder and start that a recipe names, by section.

    Raises:
        EncoderError: One is not there, not whole, or not as pinned.
    """
    teacher, augment = recipe.teacher, recipe.augment
    named = {"teacher": [identity(teacher.encoder, teacher.sha256)], "student": [], "augment": []}
    if augment.masked and augment.masked_lm:
        named["augment"].append(identity(augment.masked_lm, augment.masked_sha256))
    if isinstance(recipe, Recipe):
        encoder, start = recipe.student.encoder, recipe.student.start
        if encoder:
            named["student"].append(identity(encoder))
        elif start not in (None, "teacher", "random"):
            named["student"].append(start_identity(Path(start)) if is_start(start) else identity(start))
    return named
