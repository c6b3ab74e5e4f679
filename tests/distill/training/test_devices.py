"""Device, precision and trackers of a run; faults are told before anything is trained."""

from pathlib import Path

import pytest

from distill.recipe.data_section import RecipeError
from distill.recipe.load import parse_recipe
from distill.training.devices import make_accelerator

HEADS = {"intent": {"column": "intent"}}
RAW = {"name": "a", "data": {"train": "a.csv"}, "heads": HEADS, "device": "cpu", "trackers": []}


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fp16"):
        make_accelerator(parse_recipe({**RAW, "precision": "fp16"}), tmp_path)
    made = make_accelerator(parse_recipe({**RAW, "precision": "no"}), tmp_path)
    assert (made.mixed_precision, made.device.type) == ("no", "cpu")


def test_a_tracker_that_is_not_installed_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'wandb' is not installed"):
        make_accelerator(parse_recipe({**RAW, "trackers": ["wandb"]}), tmp_path)
    assert make_accelerator(parse_recipe({**RAW, "trackers": ["tensorboard"]}), tmp_path)
