"""Device, precision and trackers of a run, as one `accelerate.Accelerator`."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Job

# for the main process, which alone prepares the texts; NCCL's default is 10 minutes
WAIT = timedelta(hours=12)


def is_main_process() -> bool:
    """Whether this is the main process of those that a launcher started, before there is an accelerator."""
    return "LOCAL_RANK" not in os.environ or int(os.environ.get("RANK", 0)) == 0


def describe(accelerator: Accelerator) -> str:
    """The device and the precision of a run, in words: `cuda, NVIDIA H100, bf16`."""
    device, precision = accelerator.device.type, accelerator.mixed_precision
    model = f"{torch.cuda.get_device_name(accelerator.device)}, " if device == "cuda" else ""
    return f"{device}, {model}{'float32' if precision == 'no' else precision}"


def make_accelerator(recipe: Job, folder: Path) -> Accelerator:
    """The accelerator of a run, which also follows the settings of `accelerate launch`.

    Raises:
        RecipeError: The device does not support the precision, or a tracker is not installed.
    """
    AcceleratorState._reset_state()  # an earlier run in this process may have set another precision
    cpu = recipe.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = recipe.precision
    if precision == "auto":
        # a CPU without bf16 units emulates bf16, which is slower than float32
        fast = (
            torch.cpu._is_avx512_bf16_supported()
            if cpu
            else torch.cuda.is_bf16_supported(including_emulation=False)
        )
        precision = "bf16" if fast else "no"
    if precision == "fp16" and cpu:
        raise RecipeError("precision: fp16 needs a GPU (set precision: bf16 or no)")
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for tracker in recipe.trackers:
        if tracker not in available:  # accelerate ignores such a tracker
            raise RecipeError(f"trackers: {tracker!r} is not installed (pip install {tracker})")
    try:
        return Accelerator(
            mixed_precision=precision,
            cpu=cpu,
            log_with=list(recipe.trackers) or None,
            project_dir=folder / "trackers",
            # the buffers, such as the teacher's word embeddings, are equal in all processes
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=WAIT),
            ],
        )
    except ValueError as error:
        raise RecipeError(f"precision or trackers: {error}") from None
