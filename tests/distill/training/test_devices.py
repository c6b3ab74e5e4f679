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
    accelerator = make_accelerator(parse_recipe({**RAW, "precision": "no"}), tmp_path)
    assert (accelerator.mixed_precision, accelerator.device.type) == ("no", "cpu")


def test_a_tracker_must_be_installed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'wandb' is not installed"):
        make_accelerator(parse_recipe({**RAW, "trackers": ["wandb"]}), tmp_path)
    assert make_accelerator(parse_recipe({**RAW, "trackers": ["tensorboard"]}), tmp_path)
