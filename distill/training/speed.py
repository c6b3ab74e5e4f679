"""The seconds that a training, an inference and a checkpoint take, from a few of their steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter as clock
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from distill.models.base import EncodedTexts, TextClassifier
from distill.models.predict import inference_batches
from distill.training.checkpoint import TrainingState, save_tensors
from distill.training.feature_matching import FeatureMatching
from distill.training.loop import Event, Examples, TrainingError, TrainingJob, fit

SECONDS = 3.0  # of the measured steps of a training
STEPS = 200  # measured at most
STEP_OPERATIONS = 4e11  # of a measured step on a CPU, five seconds on a core; longer ones use fewer texts
INFERENCE_SECONDS = 0.7


class _Enough(Exception):
    """Enough steps are measured."""


def step_seconds(
    network: TextClassifier,
    job: TrainingJob,
    accelerator: Accelerator,
    matching: FeatureMatching | None = None,
) -> float:
    """The seconds of a training for each token of its batches, padding included, on one process.

    The training's own loop does a few of its steps. Before it, one step reads the longest texts, which take
    the most memory.

    Args:
        network: Left with other weights.
        job: What is trained; its folder is used.
        accelerator: Device and precision.
        matching: Feature matching.
    """
    lengths = job.train.texts.lengths
    size = job.settings.batch_size
    if accelerator.device.type == "cpu":
        inner = sum(p.numel() for name, p in network.named_parameters() if "embeddings" not in name)
        size = max(1, min(size, int(STEP_OPERATIONS / (6 * inner * lengths.mean()))))
    settings = job.settings.model_copy(update={"batch_size": size, "accumulate": 1})
    job = replace(job, settings=settings, checkpoint_every=10**9)
    longest = np.argsort(-lengths, kind="stable")[: 2 * size]
    _measured(network, replace(job, train=_examples(job.train, longest)), accelerator, matching, seconds=0)
    times, ends = _measured(network, job, accelerator, matching, seconds=SECONDS)
    spent = np.diff(times)
    usable = [i for i in range(len(spent)) if i + 1 not in ends] or [*range(len(spent))]
    usable = usable[1:] or usable  # the first step warms up
    an_epoch = len(_tokens(job, 0))
    tokens = np.array([_tokens(job, i // an_epoch)[i % an_epoch] for i in usable])
    if accelerator.device.type == "cuda":  # the first batch of a width is captured as a graph
        again = [number for number, size in enumerate(tokens) if size in tokens[:number]]
        spent, tokens = (spent[usable][again], tokens[again]) if again else (spent[usable], tokens)
        return float(spent.sum() / tokens.sum())
    return float(spent[usable].sum() / tokens.sum())


def epoch_tokens(job: TrainingJob) -> int:
    """The tokens of the batches of an epoch, padding included."""
    return sum(_tokens(job, 0))


def _tokens(job: TrainingJob, epoch: int) -> list[int]:
    """The tokens of each batch of an epoch, padding included."""
    lengths = job.train.texts.lengths
    batches = job.train.batches(job.settings.batch_size, job.seed, epoch)
    return [len(rows) * int(lengths[rows].max()) for rows in batches]


def _measured(
    network: TextClassifier,
    job: TrainingJob,
    accelerator: Accelerator,
    matching: FeatureMatching | None,
    seconds: float,
) -> tuple[list[float], set[int]]:
    """The times at which steps begin, and the numbers of the steps that begin after the end of an epoch."""
    times: list[float] = []
    ends: set[int] = set()

    def hook(event: Event, state: TrainingState) -> None:
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        if event != "step":
            ends.add(state.step)
            return
        times.append(clock())
        if len(times) > STEPS or (len(times) > 1 and times[-1] - times[0] >= seconds):
            raise _Enough

    # random labels, or too high a rate, may diverge, which changes no time
    with suppress(_Enough):
        with suppress(TrainingError):
            fit(network, job, accelerator, matching=matching, hook=hook)
        times.append(clock())
    accelerator.free_memory()
    for path in (job.checkpoint, job.kept_weights):
        path.unlink(missing_ok=True)
    return times, ends


def inference_seconds(
    infer: Callable[[NDArray[np.int64]], Any], lengths: NDArray[np.int64], device: torch.device
) -> float:
    """The seconds of an inference for each token of its batches, padding included, once it has warmed up.

    Args:
        infer: Computes the logits of texts, given by their numbers.
        lengths: The tokens of the texts.
        device: Of the inference.
    """
    rows = np.random.default_rng(0).permutation(len(lengths))
    size = 8
    while True:
        some = rows[:size]
        began = clock()
        infer(some)
        spent = clock() - began
        if spent >= INFERENCE_SECONDS or len(some) == len(rows):
            infer(some)
            spent = clock() - began - spent
            read = lengths[some]
            return spent / sum(
                len(batch) * int(read[batch].max()) for batch in inference_batches(read, device)
            )
        size = math.ceil(size * min(8.0, max(2.0, 1.2 * INFERENCE_SECONDS / max(spent, 1e-3))))


@dataclass(frozen=True)
class Rows:
    """Some of the texts, as `EncodedTexts`."""

    texts: EncodedTexts
    rows: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:  # noqa: D102
        return self.texts.lengths[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:  # noqa: D102
        return self.texts.batch(self.rows[rows])


def _examples(examples: Examples, rows: NDArray[np.int64]) -> Examples:
    hard = {name: labels[rows] for name, labels in examples.hard.items()}
    soft = {name: logits[rows] for name, logits in examples.soft.items()}
    mixture = examples.mixture and examples.mixture.of(rows)
    return Examples(Rows(examples.texts, rows), hard, soft, mixture)


def saving_seconds(network: TextClassifier, folder: Path) -> float:
    """The seconds of a checkpoint: the weights, two moments of each, and the best weights beside it."""
    began = clock()
    path = folder / "saving.safetensors"
    save_tensors(path, network.state_dict(), {})
    path.unlink()
    return 4 * (clock() - began)
