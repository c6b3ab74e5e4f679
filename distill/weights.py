"""What weights a recipe names: found whole, and told from others of the same name. Torch-free."""

from __future__ import annotations

from pathlib import Path

from distill.recipe import Job, Recipe
from students.start_folder import is_start, start_identity
from teachers.locate import identity


def weights_named(recipe: Job) -> dict[str, list[str]]:
    """The identity of each encoder and start that a recipe names, by side.

    Raises:
        EncoderError: One is not there, not whole, or not as pinned.
    """
    named = {"teacher": [identity(recipe.teacher.encoder, recipe.teacher.sha256)], "student": []}
    if isinstance(recipe, Recipe):
        encoder, start = recipe.student.encoder, recipe.student.start
        if encoder:
            named["student"].append(identity(encoder))
        elif start not in (None, "teacher", "random"):
            named["student"].append(start_identity(Path(start)) if is_start(start) else identity(start))
    return named
