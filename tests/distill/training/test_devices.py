from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.recipe.data_section import RecipeError
from distill.recipe.load import parse_recipe
from distill.training.devices import describe, make_accelerator

HEADS = {"intent": {"column": "intent"}}
RAW = {"name": "a", "data": {"train": "a.csv"}, "heads": HEADS, "device": "cpu", "trackers": []}


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fp16"):
        make_accelerator(parse_recipe({**RAW, "precision": "fp16"}), tmp_path)
    accelerator = make_accelerator(parse_recipe({**RAW, "precision": "no"}), tmp_path)
    assert (accelerator.mixed_precision, accelerator.device.type) == ("no", "cpu")


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("cpu", "no", "cpu, float32"),
        ("mps", "no", "mps, float32"),
        ("cuda", "fp16", "cuda, NVIDIA H100, fp16"),
    ],
)
def test_the_device_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, words: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100")
    accelerator = SimpleNamespace(device=SimpleNamespace(type=device), mixed_precision=precision)
    assert describe(accelerator) == words  # type: ignore[arg-type]


def test_a_tracker_must_be_installed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'wandb' is not installed"):
        make_accelerator(parse_recipe({**RAW, "trackers": ["wandb"]}), tmp_path)
    assert make_accelerator(parse_recipe({**RAW, "trackers": ["tensorboard"]}), tmp_path)


def test_processes_wait_longer_for_the_main_process_than_ten_minutes(tmp_path: Path) -> None:
    """It alone prepares the texts; NCCL would end the others."""
    accelerator = make_accelerator(parse_recipe(RAW), tmp_path)
    assert accelerator.init_handler.timeout > timedelta(hours=1)
