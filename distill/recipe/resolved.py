"""A recipe as a run used it: the settings that it leaves open have the values that the stages chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from distill.recipe.schema import Job

Choices = Mapping[str, Mapping[str, Any]]  # {section: {setting: value}}
Kind = TypeVar("Kind", bound=Job)


def resolved(recipe: Kind, chosen: Choices) -> Kind:
    """The recipe with the chosen values where it leaves a setting open."""
    return _with(recipe, chosen, lambda given, value: value if given is None else given)


def reopened(recipe: Kind, chosen: Choices) -> Kind:
    """The recipe with a setting left open where it says what was chosen; it describes the same run."""
    return _with(recipe, chosen, lambda given, value: None if given == value else given)


def _with(recipe: Kind, chosen: Choices, change: Any) -> Kind:
    sections = {}
    for name, settings in chosen.items():
        section = getattr(recipe, name)
        values = {key: change(getattr(section, key), value) for key, value in settings.items()}
        sections[name] = section.model_copy(update=values)
    return recipe.model_copy(update=sections)
