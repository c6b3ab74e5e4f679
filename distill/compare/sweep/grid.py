"""The settings of a sweep: the choices of each key, and the recipes that they make."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.recipe.data_section import RecipeError
from distill.recipe.load import load_yaml, parse_recipe
from distill.recipe.schema import Recipe
from distill.storage import json_digest

MOST = 1000  # settings
# what changes neither the texts and labels that settings are compared on, nor how
COMPARABLE = re.compile(
    r"(teacher|precision|augment|student(?!\.metric$)|distillation|match)(\.|$)"
    r"|export\.max_length$|data\.unlabeled$|heads\.[^.]+\.(weight|hypothesis|descriptions)$"
)
Grid = Mapping[str, Sequence[Any]]  # the choices of each key


@dataclass(frozen=True)
class Setting:
    """One value of each key.

    Attributes:
        values: The values by key, JSON.
        recipes: The recipe with these values, by seed of the student.
    """

    values: Mapping[str, Any]
    recipes: Mapping[int, Recipe]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first seed."""
        return next(iter(self.recipes.values()))

    @property
    def name(self) -> str:
        """The name of a folder: the values as far as a file name can hold them, and their digest."""
        words = ",".join(argument(key.rpartition(".")[2], value) for key, value in self.values.items())
        return f"{re.sub(r'[^A-Za-z0-9,._=-]+', '-', words)[:60]}-{json_digest(self.values)[:8]}"

    @property
    def choices(self) -> dict[str, str]:
        """The values by key, each as JSON text."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in self.values.items()}

    def __str__(self) -> str:
        return " ".join(argument(key, value) for key, value in self.values.items())


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """The choices of each key from words such as "student.lr=0.001,0.002" or "match.layers=[1,2],[3,6]".

    Args:
        words: A key, =, and its values in YAML, separated by commas.

    Raises:
        RecipeError: A word is not of this form, has no value, or repeats a key.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        where = f"--grid {word!r}"
        if not equals or not key:
            raise RecipeError(f"{where}: expected KEY=VALUE,VALUE, such as student.lr=0.001,0.002")
        if key in grid:
            raise RecipeError(f"{where}: {key} is given twice (give its values in one --grid)")
        grid[key] = list(load_yaml(f"[{text}]", where))
        if not grid[key]:
            raise RecipeError(f"{where}: has no value, expected at least one")
    if not grid:
        raise RecipeError("--grid: is required, expected KEY=VALUE,VALUE, such as student.lr=0.001,0.002")
    if (count := math.prod(map(len, grid.values()))) > MOST:
        raise RecipeError(f"--grid: {count:,} settings, expected at most {MOST:,} (give fewer values)")
    return grid


def settings(recipe: Recipe, grid: Grid, seeds: int) -> list[Setting]:
    """Every setting of a grid, the last key changing fastest.

    The first seed is that of the recipe's student, so its run is the run of the recipe with these values; the
    others follow. The teacher's seed stays.

    Args:
        recipe: What the values are set in.
        grid: The choices of each key.
        seeds: The number of seeds.

    Raises:
        RecipeError: A key is unknown or cannot be compared over, a value is invalid, two settings are equal,
            there is no seed, or `student.metric` is one that falls as a student gets better.
    """
    if seeds < 1:
        raise RecipeError(f"--seeds: {seeds} is too small, expected at least 1")
    if seeds > 1 and "student.seed" in grid:
        raise RecipeError("--grid: student.seed is what --seeds changes (leave one of them out)")
    start = recipe.seed if recipe.student.seed is None else recipe.student.seed
    raw = recipe.model_dump(mode="json", by_alias=True)
    found: list[Setting] = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        seeded = {seed: {"student.seed": seed} for seed in range(start, start + seeds)}
        seeded[start] = {}
        recipes = {
            seed: parse_recipe(_with(raw, {**chosen, **own}), where="--grid") for seed, own in seeded.items()
        }
        found.append(Setting(json.loads(json.dumps(chosen, default=str)), recipes))
    for key in grid:
        if not COMPARABLE.match(key):
            raise RecipeError(
                f"--grid: {key} changes what settings are compared on, or nothing that a student learns from "
                "(sweep settings of teacher, student, augment, distillation or match)"
            )
    first: dict[str, Setting] = {}
    for setting in found:
        if (metric := setting.recipe.student.metric or "").endswith((".log_loss", ".ece")):
            raise RecipeError(
                f"student.metric: {metric!r} falls as a student gets better, and a sweep compares "
                "metrics that rise (name another, or --set student.metric=null for the heads' first metrics)"
            )
        if (other := first.setdefault(setting.recipe.digest(), setting)) is not setting:
            raise RecipeError(f"--grid: {other} and {setting} are the same setting (leave one out)")
    return found


def argument(key: str, value: Any) -> str:
    """KEY=VALUE, as `--set` takes it."""
    plain = value if isinstance(value, str) else None
    try:
        if plain is not None and load_yaml(plain) == plain and "," not in plain:
            return f"{key}={plain}"
    except RecipeError:
        pass
    return f"{key}={json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"


def _with(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe with values by dotted key; sections that they are not in are shared."""
    content = dict(raw)
    for key, value in values.items():
        *path, last = key.split(".")
        place = content
        for step in path:
            inner = place.get(step)
            if inner is not None and not isinstance(inner, dict):
                raise RecipeError(f"--grid: {key}: {step!r} is a value, expected a section")
            place[step] = dict(inner or {})
            place = place[step]
        place[last] = value
    return content
