"""The only training loop, for teacher and student alike.

The randomness of a step depends on (seed, step, process) alone. A killed run that continues from its last
checkpoint therefore computes exactly what an uninterrupted run computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from distill.data.tokens import shuffled_batches
from distill.evaluation.calibration import validation_quality
from distill.evaluation.metrics import without_nan
from distill.models.base import Array, EncodedTexts, TextClassifier, on_device
from distill.models.predict import predict_logits
from distill.recipe.schema import Distillation, Training
from distill.run import LOG, progress
from distill.training.best_epoch import compared_texts, end_epoch
from distill.training.checkpoint import (
    DamagedFileError,
    TrainingState,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from distill.training.feature_matching import FeatureMatching, Learner
from distill.training.interrupts import Interrupted, deferred_signals
from distill.training.losses import total_loss
from distill.training.optimizer import learning_rate_share, make_optimizer

LOG_EVERY = 25  # steps; reading a loss makes a GPU wait
MAX_GRADIENT_NORM = 1.0

Event = Literal["step", "weights", "checkpoint"]
Hook = Callable[[Event, TrainingState], None]


class TrainingError(Exception):
    """A training that cannot continue; names the step and what to do."""

    exit_code = 2


@dataclass(frozen=True)
class Examples:
    """Texts and their labels.

    Attributes:
        texts: As the network reads them.
        hard: The labels of each head, as `losses.hard_loss` takes them, a row a text.
        soft: The teacher's logits of each head that it knows, `{head: [texts, labels]}`; None without a
            teacher.
    """

    texts: EncodedTexts
    hard: Mapping[str, Array]
    soft: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingJob:
    """What one call of `fit` trains on, and how.

    Attributes:
        name: The prefix of tracked metrics, and the title of the progress bar.
        train: What the network learns from.
        validation: What epochs are compared on: exactly where hard labels alone are learnt, which overfit;
            otherwise as closely as that many texts can tell.
        settings: Learning rates, epochs, what is frozen; `epochs` and `lr` are set.
        seed: Of the order of texts and of dropout.
        folder: Of checkpoints; made if missing. A training that stopped there continues.
        distillation: Loss, temperature and weight where `train.soft` is given.
        checkpoint_every: Steps between checkpoints.
        head_lr: The peak learning rate of the heads; by default `lr`.
    """

    name: str
    train: Examples
    validation: Examples
    settings: Training
    seed: int
    folder: Path
    distillation: Distillation | None = None
    checkpoint_every: int = 500
    head_lr: float | None = None

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.folder / "checkpoint.safetensors"

    @property
    def kept_weights(self) -> Path:
        """The file of the kept epoch's weights."""
        return self.folder / "best.safetensors"


def evaluate_network(
    network: TextClassifier, examples: Examples, accelerator: Accelerator
) -> dict[str, float]:
    """The network's `calibration.validation_quality` on examples."""
    logits = predict_logits(network, examples.texts, accelerator)
    if not np.isfinite(logits).all():
        raise TrainingError("validation: the logits are not finite (lower lr, or set precision: no)")
    return validation_quality(network.heads, logits, examples.hard)


def fit(
    network: TextClassifier,
    job: TrainingJob,
    accelerator: Accelerator,
    *,
    matching: FeatureMatching | None = None,
    hook: Hook = lambda event, state: None,
) -> dict[str, Any]:
    """Train a network in place up to the epoch that `best_epoch` keeps; returns the metrics.

    Args:
        network: Left with the weights of the kept epoch.
        job: What to train on, and how.
        accelerator: Device, precision, trackers.
        matching: Feature matching of the network's encoder with a teacher's.
        hook: Called before each step, and before the kept weights and each checkpoint are written.

    Raises:
        TrainingError: The loss is not finite.
        Interrupted: A signal asked the process to stop; the checkpoint of the last step is saved.
    """
    settings = job.settings
    if settings.epochs is None or settings.lr is None:
        raise ValueError("fit: epochs and lr must be set (distill.recipe.defaults finds them)")
    job.folder.mkdir(exist_ok=True)
    learner = Learner(network, matching).to(accelerator.device)
    network.freeze(settings.train)
    optimizer = make_optimizer(learner, settings, accelerator.device, job.head_lr)
    state = _restored(job, learner, optimizer, accelerator)
    metric = settings.metric or "mean"
    distils = job.distillation is not None and job.distillation.soft_weight > 0
    texts = compared_texts(network.heads, job.validation.hard, metric) if distils else 0
    world = accelerator.num_processes
    steps_an_epoch = math.ceil(len(job.train.texts) / (settings.batch_size * settings.accumulate * world))
    steps = steps_an_epoch * settings.epochs
    model, optimizer = accelerator.prepare(learner, optimizer)
    log = _Log(job, accelerator)
    main = accelerator.is_main_process
    batches: list[Array] = []
    with (
        progress(steps, job.name, "step", done=state.step, hidden=not main) as bar,
        # several processes would stop at different steps
        deferred_signals(active=world == 1) as stop_signal,
    ):
        while state.step < steps:
            hook("step", state)
            step = state.step
            epoch, index = divmod(step, steps_an_epoch)
            if index == 0 or not batches:
                batches = shuffled_batches(job.train.texts.lengths, settings.batch_size, job.seed, epoch)
            torch.manual_seed((job.seed << 32) + step * world + accelerator.process_index)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_share(step, steps, settings.warmup)
            first = (index * world + accelerator.process_index) * settings.accumulate
            rows = [batches[i % len(batches)] for i in range(first, first + settings.accumulate)]
            log.add(*_backward(model, job, network, rows, accelerator))
            accelerator.clip_grad_norm_(learner.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            epoch_ends = index == steps_an_epoch - 1
            stops = stop_signal()
            saves = epoch_ends or stops or state.step % job.checkpoint_every == 0
            if epoch_ends or step % LOG_EVERY == LOG_EVERY - 1:
                log.write(state.step, optimizer.param_groups[0]["lr"], bar)
            elif saves:
                log.finite_mean(state.step)
            bar.update()
            if epoch_ends:
                metrics = evaluate_network(network, job.validation, accelerator)
                accelerator.log({f"{job.name}/{k}": v for k, v in metrics.items()}, step=state.step)
                if end_epoch(state, metrics, metric, texts) and main:
                    hook("weights", state)
                    save_tensors(job.kept_weights, network.state_dict(), {})
            if saves:
                if main:
                    hook("checkpoint", state)
                    save_checkpoint(job.checkpoint, learner, optimizer.optimizer, state)
                accelerator.wait_for_everyone()
            if stops:
                where = f"step {state.step} of {steps}, whose checkpoint is saved"
                todo = "run the same command again to continue"
                raise Interrupted(f"{job.name}: stopped after {where} ({todo})", 128 + stops)
    accelerator.free_memory()
    network.load_state_dict(load_tensors(job.kept_weights)[0])
    accelerator.wait_for_everyone()  # before the main process removes the file
    return {
        "epochs": len(state.history),
        "steps": state.step,
        "best_epoch": state.kept_epoch,
        "metric": metric,
        "validation": without_nan(state.history[state.kept_epoch - 1]),
        "history": [without_nan(epoch)[metric] for epoch in state.history],
        "texts": len(job.train.texts),
    }


def _restored(
    job: TrainingJob, learner: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> TrainingState:
    """The state of a training that stopped here, restored; of a new one if there is none that can be."""
    if not job.checkpoint.exists():
        return TrainingState()
    try:
        return load_checkpoint(job.checkpoint, learner, optimizer, job.kept_weights)
    except DamagedFileError as error:
        if accelerator.is_main_process:
            LOG.warning(f"{error}, so the {job.name} is trained from the beginning")
        return TrainingState()


def _backward(
    model: nn.Module,
    job: TrainingJob,
    network: TextClassifier,
    batches: Sequence[Array],
    accelerator: Accelerator,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients of one step, summed over its batches; returns each batch's loss and the last one's parts."""
    losses: list[Tensor] = []
    parts: dict[str, Tensor] = {}
    model.train()
    for number, rows in enumerate(batches):
        with accelerator.no_sync(model) if number < len(batches) - 1 else nullcontext():
            batch = on_device(job.train.texts.batch(rows), accelerator.device)
            hard = on_device({name: y[rows] for name, y in job.train.hard.items()}, accelerator.device)
            soft = on_device({name: z[rows] for name, z in job.train.soft.items()}, accelerator.device)
            logits, others = model(batch)
            loss, parts = total_loss(logits, hard, soft, network.heads, **dict(job.distillation or {}))
            for name, value in others.items():
                loss = loss + value
                parts[name] = value.detach()
            accelerator.backward(loss / len(batches))
        losses.append(loss.detach())
    return losses, parts


class _Log:
    """The losses since the last line, read seldom, as reading one makes a GPU wait."""

    def __init__(self, job: TrainingJob, accelerator: Accelerator) -> None:
        self.job, self.accelerator = job, accelerator
        self.losses: list[Tensor] = []
        self.parts: dict[str, Tensor] = {}

    def add(self, losses: Sequence[Tensor], parts: dict[str, Tensor]) -> None:
        self.losses += losses
        self.parts = parts

    def finite_mean(self, steps: int) -> float:
        """The mean loss since the last line, after `steps` steps; refuses a loss that is not finite."""
        values: list[float] = torch.stack(self.losses).tolist()
        job, settings = self.job, self.job.settings
        for index, value in enumerate(values):
            if not math.isfinite(value):
                at = steps + 1 - math.ceil((len(values) - index) / settings.accumulate)
                kept = job.checkpoint.exists()
                raise TrainingError(
                    f"{job.name}: the loss is {value} at step {at}"
                    + (f"; the last good checkpoint is {job.checkpoint}" if kept else "")
                    + f" (lower {job.name}.lr, now {settings.lr:g}, or set precision: no)"
                )
        return sum(values) / len(values)

    def write(self, steps: int, rate: float, bar: tqdm[Any]) -> None:
        """Track the mean loss since the last line, and the last step's parts."""
        mean = self.finite_mean(steps)
        values = {"loss": mean, "lr": rate} | {part: float(value) for part, value in self.parts.items()}
        self.accelerator.log({f"{self.job.name}/{k}": v for k, v in values.items()}, step=steps)
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        self.losses.clear()
