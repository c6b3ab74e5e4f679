"""What a run computes on: device, precision and trackers, through accelerate."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs

from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Job


def make_accelerator(recipe: Job, folder: Path) -> Accelerator:
    """The device, precision and trackers of a run, as the recipe and `accelerate launch` say.

    Raises:
        RecipeError: The precision needs another device, or a tracker is not installed.
    """
    AcceleratorState._reset_state()  # a second run in one process may ask for another precision
    cpu = recipe.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = recipe.precision
    if precision == "auto":
        # without these units bf16 is emulated on a CPU, and slower than float32
        fast = (
            torch.cpu._is_avx512_bf16_supported()
            if cpu
            else torch.cuda.is_bf16_supported(including_emulation=False)
        )
        precision = "bf16" if fast else "no"
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for tracker in recipe.trackers:
        if tracker not in available:  # which accelerate would leave out without a word
            raise RecipeError(f"trackers: {tracker!r} is not installed (pip install {tracker})")
    if precision == "fp16" and cpu:
        raise RecipeError("precision: fp16 needs a GPU (set precision: bf16 or no)")
    try:
        return Accelerator(
            mixed_precision=precision,
            cpu=cpu,
            log_with=list(recipe.trackers) or None,
            project_dir=folder / "trackers",
            # a student's buffers are the same everywhere, and its teacher's words among them
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        raise RecipeError(f"precision or trackers: {error}") from None
