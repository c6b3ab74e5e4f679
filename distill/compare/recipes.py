"""The recipes by which a comparison trains its candidates."""

from __future__ import annotations

from distill.compare.candidates import Candidate
from distill.recipe.schema import Recipe, Student, Training

NO_SHAPE = dict.fromkeys(("size", "layers", "hidden", "attention_heads", "encoder", "start"))


def fine_tuning(recipe: Recipe, encoder: str, seed: int) -> Recipe:
    """The recipe whose teacher is the encoder. The learning rates of the recipe are for its own teacher."""
    teacher = recipe.teacher
    if teacher.networks or encoder != teacher.encoder:
        own = ("sha256", "layers", "lr", "head_lr", "network", "negatives")
        teacher = teacher.model_copy(update={**dict.fromkeys(own), "encoder": encoder, "networks": ()})
    if seed != recipe.seed:
        teacher = teacher.model_copy(update={"seed": _moved(teacher, recipe, seed)})
    return recipe.model_copy(update={"teacher": teacher, "student": Student(start="random")})


def distillation(recipe: Recipe, candidate: Candidate, encoder: str | None, seed: int) -> Recipe:
    """The recipe whose student is the candidate: one of our shapes, or an encoder."""
    shape = {"size": candidate.size} if candidate.size else {"encoder": encoder, "vocabulary": None}
    student = recipe.student.model_copy(update={**NO_SHAPE, "lr": None, **shape})
    if seed != recipe.seed:
        student = student.model_copy(update={"seed": _moved(student, recipe, seed)})
    return recipe.model_copy(update={"student": student})


def _moved(settings: Training, recipe: Recipe, seed: int) -> int:
    """The seed of a training, moved as far as the seed is from the recipe's."""
    return (recipe.seed if settings.seed is None else settings.seed) + seed - recipe.seed
