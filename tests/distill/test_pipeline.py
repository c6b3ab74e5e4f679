"""What a stage's digest is made of."""

from typing import Any

from distill import pipeline
from distill.recipe.load import parse_recipe

TOY = {"name": "toy", "data": {"train": "train.csv"}, "heads": {"intent": {"column": "intent"}}}


def empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and any(empty(inner) for inner in value.values()))


def test_what_is_left_open_is_no_input() -> None:
    """So an option of a later version, left open, leaves the stages of finished runs done."""
    left_open = pipeline._settings(parse_recipe(TOY))
    assert left_open.pop("licence") is None and not empty(left_open)
    said = pipeline._settings(parse_recipe({**TOY, "student": {"seed": 3}}))
    assert said["student"] == {**left_open["student"], "seed": 3}
    assert said["teacher"] == left_open["teacher"]
