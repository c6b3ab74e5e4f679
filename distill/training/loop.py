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
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from distill.data.tokens import Mixture, shuffled_batches
from distill.evaluation.calibration import validation_quality
from distill.evaluation.metrics import without_nan
from distill.models.base import Array, Batch, EncodedTexts, TextClassifier, on_device
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
from distill.training.epoch_line import counts, log_epoch, of_all_heads, split_counts, validation_loss
from distill.training.feature_matching import FeatureMatching, Learner
from distill.training.graphs import Arrays, Found, GraphedStep, graphs_fit
from distill.training.interrupts import Interrupted, deferred_signals
from distill.training.label_confidence import LabelConfidence
from distill.training.losses import total_loss
from distill.training.optimizer import learning_rate_share, make_optimizer

LOG_EVERY = 25  # steps; reading a loss makes a GPU wait
MAX_GRADIENT_NORM = 1.0
FIRST_SCALE = {"scale": 65536.0, "_growth_tracker": 0}  # torch's own

Event = Literal["step", "weights", "checkpoint"]
Hook = Callable[[Event, TrainingState], None]
# the forward and backward pass of texts, hard and soft labels
Compute = Callable[[Arrays, Arrays, Arrays], Found]


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
        mixture: The texts of several sources that an epoch reads; None where it reads every text once.
    """

    texts: EncodedTexts
    hard: Mapping[str, Array]
    soft: Mapping[str, Array] = field(default_factory=dict)
    mixture: Mixture | None = None

    def batches(self, size: int, seed: int, epoch: int) -> list[Array]:
        """The batches of an epoch, each an array of row numbers (`shuffled_batches`)."""
        return shuffled_batches(self.texts.lengths, size, seed, epoch, self.mixture)


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
        balanced: Whether each head moves the encoder in proportion to its weight, whatever the scale of its
            loss; never in fp16.
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
    balanced: bool = False

    @property
    def loss(self) -> dict[str, Any]:
        """The settings of `losses.total_loss`."""
        return self.distillation.model_dump(exclude={"fill"}) if self.distillation else {}

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.folder / "checkpoint.safetensors"

    @property
    def kept_weights(self) -> Path:
        """The file of the kept epoch's weights."""
        return self.folder / "best.safetensors"


def evaluate_network(
    network: TextClassifier,
    examples: Examples,
    accelerator: Accelerator,
    distillation: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """The network's `calibration.validation_quality` on examples, and `loss` given the settings of one."""
    logits = predict_logits(network, examples.texts, accelerator)
    if not np.isfinite(logits).all():
        raise TrainingError("validation: the logits are not finite (lower lr, or set precision: no)")
    metrics = validation_quality(network.heads, logits, examples.hard)
    if distillation is None:
        return metrics
    loss = validation_loss(network.heads, logits, examples.hard, examples.soft, distillation)
    return {**metrics, "loss": loss}


def fit(
    network: TextClassifier,
    job: TrainingJob,
    accelerator: Accelerator,
    *,
    matching: FeatureMatching | None = None,
    confidence: LabelConfidence | None = None,
    hook: Hook = lambda event, state: None,
) -> dict[str, Any]:
    """Train a network in place up to the epoch that `best_epoch` keeps; returns the metrics.

    `losses` in the metrics are the means of the loss and of its parts over the batches of each epoch;
    `validation_history` are the validation metrics of each epoch.

    Args:
        network: Left with the weights of the kept epoch.
        job: What to train on, and how.
        accelerator: Device, precision, trackers.
        matching: Feature matching of the network's encoder with a teacher's.
        confidence: Updated in place.
        hook: Called before each step, and before the kept weights and each checkpoint are written.

    Raises:
        TrainingError: The loss is not finite, or the training stopped with another number of processes.
        Interrupted: A signal asked the process to stop; the checkpoint of the last step is saved.
    """
    settings = job.settings
    if settings.epochs is None or settings.lr is None:
        raise ValueError("fit: epochs and lr must be set (distill.recipe.defaults finds them)")
    job.folder.mkdir(exist_ok=True)
    learner = Learner(network, matching).to(accelerator.device)
    network.freeze(settings.train)
    optimizer = make_optimizer(learner, settings, accelerator.device, job.head_lr)
    kept = confidence.tensors if confidence else {}
    state = _restored(job, learner, optimizer, kept, accelerator)
    earlier_seconds, began = state.seconds, perf_counter()
    metric = settings.metric or "mean"
    distils = job.distillation is not None and job.distillation.soft_weight > 0
    # divided as the loss is; fp16 scales losses, which the norms would not follow
    network.balance = 1 / settings.accumulate if job.balanced and accelerator.scaler is None else None
    texts = compared_texts(network.heads, job.validation.hard, metric) if distils else 0
    world = accelerator.num_processes
    steps_an_epoch = math.ceil(len(job.train.texts) / (settings.batch_size * settings.accumulate * world))
    steps = steps_an_epoch * settings.epochs
    model, optimizer = accelerator.prepare(learner, optimizer)
    if (scaler := accelerator.scaler) is not None:  # of fp16; a training before this one may have used it
        scaler.load_state_dict(scaler.state_dict() | (state.scaler or FIRST_SCALE))
    log = _Log(job, accelerator, state)
    compute = _step(model, job, network, accelerator)
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
                batches = job.train.batches(settings.batch_size, job.seed, epoch)
            torch.manual_seed((job.seed << 32) + step * world + accelerator.process_index)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_share(step, steps, settings.warmup)
            first = (index * world + accelerator.process_index) * settings.accumulate
            rows = [batches[i % len(batches)] for i in range(first, first + settings.accumulate)]
            log.losses += _backward(compute, model, job, rows, confidence, accelerator)
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
                log.read(state.step)
            bar.update()
            if epoch_ends:
                metrics = evaluate_network(network, job.validation, accelerator, job.loss)
                loss = metrics.pop("loss", math.nan)
                tracked = {**metrics, "validation_loss": loss}
                accelerator.log({f"{job.name}/{k}": v for k, v in tracked.items()}, step=state.step)
                state.end_losses()
                if main:
                    title = f"{job.name}: epoch {epoch + 1}/{settings.epochs}"
                    log_epoch(title, network.heads, state.losses[-1], metrics, loss)
                if end_epoch(state, metrics, metric, texts) and main:
                    hook("weights", state)
                    save_tensors(job.kept_weights, network.state_dict(), {})
            if saves:
                if main:
                    hook("checkpoint", state)
                    state.seconds = earlier_seconds + perf_counter() - began
                    state.scaler = scaler.state_dict() if scaler else {}
                    save_checkpoint(job.checkpoint, learner, optimizer.optimizer, state, kept)
                accelerator.wait_for_everyone()
            if stops:
                where = f"step {state.step} of {steps}, whose checkpoint is saved"
                todo = "run the same command again to continue"
                raise Interrupted(f"{job.name}: stopped after {where} ({todo})", 128 + stops)
    accelerator.free_memory()
    network.load_state_dict(load_tensors(job.kept_weights)[0])
    accelerator.wait_for_everyone()  # before the main process removes the file
    return {
        "earlier_seconds": earlier_seconds,
        "epochs": len(state.history),
        "steps": state.step,
        "best_epoch": state.kept_epoch,
        "metric": metric,
        "validation": without_nan(state.history[state.kept_epoch - 1]),
        "history": [without_nan(epoch)[metric] for epoch in state.history],
        "validation_history": _by_name([without_nan(epoch) for epoch in state.history]),
        "losses": _by_name([of_all_heads(network.heads, epoch) for epoch in state.losses]),
        "texts": len(job.train.texts),
    }


def _restored(
    job: TrainingJob,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    others: Mapping[str, Tensor],
    accelerator: Accelerator,
) -> TrainingState:
    """The state of a training that stopped here, restored; of a new one if there is none that can be.

    Raises:
        TrainingError: It stopped with another number of processes, which read other texts in a step.
    """
    processes = accelerator.num_processes
    if not job.checkpoint.exists():
        return TrainingState(processes=processes)
    try:
        state = load_checkpoint(job.checkpoint, learner, optimizer, job.kept_weights, others)
    except DamagedFileError as error:
        if accelerator.is_main_process:
            LOG.warning(f"{error}, so the {job.name} is trained from the beginning")
        return TrainingState(processes=processes)
    if state.processes != processes:
        raise TrainingError(
            f"{job.checkpoint}: is of a training on {state.processes} processes, and this one has "
            f"{processes} (start as many, or remove the file: the {job.name} then starts again)"
        )
    return state


def _by_name(epochs: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """The value of each epoch by name, None where an epoch has none."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch)
    return {name: [epoch.get(name) for epoch in epochs] for name in names}


def _step(model: nn.Module, job: TrainingJob, network: TextClassifier, accelerator: Accelerator) -> Compute:
    """The forward and backward pass of a batch, given as texts, hard labels and a teacher's logits.

    It returns the logits, and by name the `loss`, its parts, and how many labels are right.
    """
    device, settings = accelerator.device, job.settings

    def step(batch: Batch, hard: Batch, soft: Batch) -> Found:
        logits, others = model(batch)
        loss, parts = total_loss(logits, hard, soft, network.heads, **job.loss)
        for name, value in others.items():
            loss = loss + value
            parts[name] = value.detach()
        accelerator.backward(loss / settings.accumulate)
        right = counts(logits, hard, network.heads)
        return logits.detach(), {**parts, **right, "loss": loss.detach()}

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    longest = int(job.train.texts.lengths.max())
    if (
        device.type == "cuda"
        and accelerator.num_processes == settings.accumulate == 1
        and accelerator.scaler is None  # of fp16
        and network.family == "heads"  # the batches of others have many shapes
        and graphs_fit(trained, longest)
    ):
        return GraphedStep(step, trained, settings.batch_size, longest)
    return lambda *arrays: step(*(on_device(group, device) for group in arrays))


def _backward(
    step: Compute,
    model: nn.Module,
    job: TrainingJob,
    batches: Sequence[Array],
    confidence: LabelConfidence | None,
    accelerator: Accelerator,
) -> list[dict[str, Tensor]]:
    """Gradients of one step, summed over its batches; returns each batch's `loss` and its parts."""
    losses: list[dict[str, Tensor]] = []
    model.train()
    for number, rows in enumerate(batches):
        hard = {name: y[rows] for name, y in job.train.hard.items()}
        soft = {name: z[rows] for name, z in job.train.soft.items()}
        with accelerator.no_sync(model) if number < len(batches) - 1 else nullcontext():
            logits, values = step(job.train.texts.batch(rows), hard, soft)
        if confidence:
            found = on_device({"rows": rows, **hard}, accelerator.device)
            confidence.add(found.pop("rows"), logits, found)
        losses.append(values)
    return losses


class _Log:
    """The losses of batches, read seldom, as reading one makes a GPU wait.

    Attributes:
        losses: Those of each batch that are not read yet.
    """

    def __init__(self, job: TrainingJob, accelerator: Accelerator, state: TrainingState) -> None:
        self.job, self.accelerator, self.state = job, accelerator, state
        self.losses: list[dict[str, Tensor]] = []
        self._line: list[dict[str, float]] = []  # losses read since the last line of the log

    def read(self, steps: int) -> None:
        """Read the losses up to `steps` steps; refuses a loss that is not finite."""
        names = [*self.losses[0]]
        values = torch.stack([batch[name] for batch in self.losses for name in names])
        rows = [dict(zip(names, row, strict=True)) for row in values.reshape(-1, len(names)).tolist()]
        self.losses.clear()
        job, settings = self.job, self.job.settings
        for index, row in enumerate(rows):
            if not math.isfinite(row["loss"]):
                at = steps + 1 - math.ceil((len(rows) - index) / settings.accumulate)
                kept = job.checkpoint.exists()
                raise TrainingError(
                    f"{job.name}: the loss is {row['loss']} at step {at}"
                    + (f"; the last good checkpoint is {job.checkpoint}" if kept else "")
                    + f" (lower {job.name}.lr, now {settings.lr:g}, or set precision: no)"
                )
            self.state.add_losses(row)
        self._line += rows

    def write(self, steps: int, rate: float, bar: tqdm[Any]) -> None:
        """Track the means of the losses since the last line."""
        self.read(steps)
        means = {name: sum(row[name] for row in self._line) / len(self._line) for name in self._line[0]}
        self._line.clear()
        losses, accuracies = split_counts(means)
        tracked = {**losses, **{f"{head}/accuracy": x for head, x in accuracies.items()}, "lr": rate}
        self.accelerator.log({f"{self.job.name}/{k}": v for k, v in tracked.items()}, step=steps)
        bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
