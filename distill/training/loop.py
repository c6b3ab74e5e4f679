"""The only training loop, for teacher and student alike.

A step's randomness follows from (seed, step, process) alone: a run that was killed and goes on from its
last checkpoint computes what an unbroken run would have computed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from distill.data.tokens import Array, Tokens, shuffled_batches
from distill.evaluation.calibration import validation_quality
from distill.evaluation.metrics import without_nan
from distill.models.classifier import Network, on_device
from distill.models.predict import predict_logits
from distill.recipe.schema import Distillation, Training
from distill.training.averaging import WeightAverage
from distill.training.best_epoch import START, keeps, patience_ends
from distill.training.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from distill.training.learner import Learner, Matching
from distill.training.losses import total_loss

LOG_EVERY = 25  # steps; reading a loss makes a GPU wait


class TrainingError(Exception):
    """A training that cannot go on; says at which step and what to do."""


@dataclass(frozen=True)
class Examples:
    """Texts with what is known of them.

    Attributes:
        tokens: Of each text.
        hard: Labels a head, as `losses.hard_loss` takes them, a row a text.
        soft: The teacher's logits, `[texts, sum of labels]`; None without a teacher.
        clean: Numbers of the rows that are no copies; None where there are no copies.
    """

    tokens: Tokens
    hard: Mapping[str, Array]
    soft: Array | None = None
    clean: Array | None = None


def evaluate_network(network: Network, examples: Examples, accelerator: Accelerator) -> dict[str, float]:
    """The network's `calibration.validation_quality` on examples."""
    logits = predict_logits(network, examples.tokens, accelerator)
    if not np.isfinite(logits).all():
        raise TrainingError("validation: the logits are not finite (lower lr, or set precision: no)")
    return validation_quality(network.heads, logits, examples.hard)


def fit(
    network: Network,
    train: Examples,
    validation: Examples,
    settings: Training,
    *,
    accelerator: Accelerator,
    folder: Path,
    seed: int,
    name: str,
    distillation: Distillation | None = None,
    until: float = 1.0,
    matching: Matching | None = None,
) -> dict[str, Any]:
    """Train a network in place to the epoch that `epochs.keeps` by validation; returns the figures.

    Goes on from `folder/checkpoint.safetensors` where there is one, to the same end.

    Args:
        network: Left with the weights of that epoch.
        train: What to learn from.
        validation: What epochs are compared on: exactly where hard labels alone are learnt, which
            overfit; else as well as so many texts can tell.
        settings: Rates, epochs, what is frozen; `epochs` and `lr` given.
        accelerator: Device, precision, trackers.
        folder: Of checkpoints; made if missing.
        seed: Of order and dropout.
        name: Before each tracked figure, and on the progress bar.
        distillation: Temperature and weight where `train.soft` is given.
        until: Share of the epochs, rounded to whole ones, that read copies; those after it have as many
            steps, of `train.clean` alone.
        matching: Of what lies inside the network's encoder and a teacher's.

    Raises:
        TrainingError: The loss is not finite.
    """
    if settings.epochs is None or settings.lr is None:
        raise ValueError("fit: epochs and lr must be given (distill.recipe.defaults finds them)")
    mix = {} if distillation is None else distillation.model_dump()
    checkpoint, best_path = folder / "checkpoint.safetensors", folder / "best.safetensors"
    world = accelerator.num_processes
    folder.mkdir(exist_ok=True)
    learner = Learner(network, matching).to(accelerator.device)
    network.freeze(settings.train)
    optimizer = _optimizer(learner, settings, accelerator.device)
    state = {"step": 0} | copy.deepcopy(START)
    average = WeightAverage(network, settings.ema) if settings.ema else None
    averaged = average.weights if average else {}
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, learner, optimizer, averaged)
    metric = settings.metric or "mean"
    soft = distillation is not None and distillation.soft_weight > 0
    judged_on = len(validation.tokens) if soft else 0
    rows_a_step = settings.batch_size * settings.accumulate * world
    steps_an_epoch = math.ceil(len(train.tokens) / rows_a_step)
    steps = steps_an_epoch * settings.epochs
    model, optimizer = accelerator.prepare(learner, optimizer)
    log = _Log(accelerator, name, settings, checkpoint)
    main = accelerator.is_main_process
    batches: list[Array] = []
    with tqdm(
        total=steps, initial=state["step"], desc=name, unit="step", disable=not main, mininterval=1.0
    ) as bar:
        while state["step"] < steps and not patience_ends(state, settings.patience):
            step = state["step"]
            epoch, index = divmod(step, steps_an_epoch)
            if index == 0 or not batches:
                only = None if epoch < round(until * settings.epochs) else train.clean
                batches = shuffled_batches(train.tokens.lengths, settings.batch_size, seed, epoch, only)
            torch.manual_seed((seed << 32) + step * world + accelerator.process_index)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _rate(step, steps, settings)
            first = (index * world + accelerator.process_index) * settings.accumulate
            rows = [batches[i % len(batches)] for i in range(first, first + settings.accumulate)]
            log.add(*_gradients(model, learner, train, rows, accelerator, mix))
            accelerator.clip_grad_norm_(learner.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(step)
            state["step"] = step + 1
            epoch_ends = index == steps_an_epoch - 1
            saves = epoch_ends or state["step"] % settings.checkpoint_every == 0
            if epoch_ends or step % LOG_EVERY == LOG_EVERY - 1:
                log.write(state["step"], optimizer.param_groups[0]["lr"], bar)
            elif saves:
                log.finite_mean(state["step"])
            bar.update()
            if epoch_ends:
                with average.applied() if average else nullcontext():
                    figures = evaluate_network(network, validation, accelerator)
                    accelerator.log({f"{name}/{k}": v for k, v in figures.items()}, step=state["step"])
                    if keeps(state, figures, metric, judged_on) and main:
                        save_tensors(best_path, network.state_dict(), {})
            if saves:
                if main:
                    save_checkpoint(checkpoint, learner, optimizer.optimizer, state, averaged)
                accelerator.wait_for_everyone()
    accelerator.free_memory()
    network.load_state_dict(load_tensors(best_path)[0])
    accelerator.wait_for_everyone()  # before the main process clears it away
    return {
        "epochs": len(state["epochs"]),
        "steps": state["step"],
        "best_epoch": state["best_epoch"],
        "metric": metric,
        "validation": without_nan(state["epochs"][state["best_epoch"] - 1]),
        "history": [without_nan(epoch)[metric] for epoch in state["epochs"]],
        "texts": len(train.tokens),
    }


def _gradients(
    model: Any,
    learner: Learner,
    train: Examples,
    batches: Sequence[Array],
    accelerator: Accelerator,
    mix: Mapping[str, Any],
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of one step, summed over its batches; returns each batch's loss and the last one's parts."""
    losses: list[torch.Tensor] = []
    parts: dict[str, torch.Tensor] = {}
    learner.train()
    for number, rows in enumerate(batches):
        with accelerator.no_sync(model) if number < len(batches) - 1 else nullcontext():
            loss, parts = _loss(model, train, rows, learner, accelerator.device, mix)
            accelerator.backward(loss / len(batches))
        losses.append(loss.detach())
    return losses, parts


def _loss(
    model: Any,
    train: Examples,
    rows: Array,
    learner: Learner,
    device: torch.device,
    mix: Mapping[str, Any],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids, mask = (on_device(array, device) for array in train.tokens.batch(rows))
    hard = {name: on_device(labels[rows], device) for name, labels in train.hard.items()}
    soft = None if train.soft is None else on_device(train.soft[rows], device)
    logits, matched = model(ids, mask)
    loss, parts = total_loss(logits, hard, soft, learner.network.heads, **mix)
    for part, value in matched.items():
        loss = loss + learner.weights[part] * value
        parts[f"match/{part}"] = value.detach()
    return loss, parts


class _Log:
    """The losses since the last line: read seldom, as reading one makes a GPU wait."""

    def __init__(self, accelerator: Accelerator, name: str, settings: Training, checkpoint: Path) -> None:
        self.accelerator, self.name, self.settings = accelerator, name, settings
        self.checkpoint = checkpoint
        self.losses: list[torch.Tensor] = []
        self.parts: dict[str, torch.Tensor] = {}

    def add(self, losses: Sequence[torch.Tensor], parts: dict[str, torch.Tensor]) -> None:
        self.losses += losses
        self.parts = parts

    def finite_mean(self, steps: int) -> float:
        """The mean loss since the last line, `steps` being done; refuses one that is not finite."""
        values: list[float] = torch.stack(self.losses).tolist()
        for index, value in enumerate(values):
            if not math.isfinite(value):
                at = steps + 1 - math.ceil((len(values) - index) / self.settings.accumulate)
                kept = self.checkpoint.exists()
                raise TrainingError(
                    f"{self.name}: the loss is {value} at step {at}"
                    + (f"; the last good checkpoint is {self.checkpoint}" if kept else "")
                    + f" (lower {self.name}.lr, now {self.settings.lr:g}, or set precision: no)"
                )
        return sum(values) / len(values)

    def write(self, steps: int, rate: float, bar: Any) -> None:
        """Track the mean loss since the last line, and the last step's parts."""
        mean = self.finite_mean(steps)
        figures = {"loss": mean, "lr": rate} | {part: float(value) for part, value in self.parts.items()}
        self.accelerator.log({f"{self.name}/{k}": v for k, v in figures.items()}, step=steps)
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        self.losses.clear()


def _optimizer(learner: Learner, settings: Training, device: torch.device) -> torch.optim.Optimizer:
    """AdamW without decay on biases, norms and embeddings; fused, which on a CPU is 10 x faster."""
    of_heads = dict.fromkeys(learner.network.linear.parameters(), settings.head_lr or settings.lr)
    groups: dict[tuple[float | None, float], list[torch.Tensor]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            peak = of_heads.get(parameter, settings.lr)
            decay = 0.0 if parameter.ndim < 2 or "embeddings" in name else settings.weight_decay
            groups.setdefault((peak, decay), []).append(parameter)
    # the rate is set at each step
    return torch.optim.AdamW(
        [{"params": p, "peak": peak, "weight_decay": decay} for (peak, decay), p in groups.items()],
        fused=device.type in ("cpu", "cuda"),
    )


def _rate(step: int, steps: int, settings: Training) -> float:
    """The share of the peak rate at a step: linear warm-up, then linear or cosine to 0."""
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    return left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
