"""A stopped training in one safetensors file: weights, AdamW's moments, and the `TrainingState`.

The randomness of a step depends on (seed, step) alone, so no generator state is saved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.storage import written_whole

EMPTY: Mapping[str, Tensor] = MappingProxyType({})


@dataclass
class TrainingState:
    """How far a training has come.

    Attributes:
        step: The number of steps done.
        history: The validation metrics of each finished epoch.
        best: What epochs are compared by, of the best epoch; larger is better. Empty before the first.
        kept_epoch: The epoch, from 1, whose weights are kept.
        losses: The mean of each part of the loss over the batches of each finished epoch; empty for epochs
            that an earlier version finished.
        sums: The sums of those of the epoch that is not finished.
        batches: What the sums are over.
        seconds: That the training has taken up to the last checkpoint.
        processes: On which it runs; their number decides what a step reads.
        scaler: The state of fp16's gradient scaler; empty without one.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    kept_epoch: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    seconds: float = 0.0
    processes: int = 1
    scaler: dict[str, float] = field(default_factory=dict)

    def add_losses(self, losses: Mapping[str, float]) -> None:
        """Add the losses of a batch to the epoch's. One after another: other sums would round otherwise."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.batches += 1

    def end_losses(self) -> None:
        """Finish the losses of an epoch."""
        self.losses += [{}] * (len(self.history) - len(self.losses))
        self.losses.append({name: value / self.batches for name, value in self.sums.items()})
        self.sums, self.batches = {}, 0


class DamagedFileError(Exception):
    """A file of tensors that is not as it was written."""

    exit_code = 2


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON value with their digest, as one file that appears complete or not at all."""
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    with written_whole(path) as temporary:
        # one key, as safetensors writes several in any order
        save_file(cpu, temporary, metadata={"about": f"{_digest(cpu, text)} {text}"})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON value that `save_tensors` wrote.

    Raises:
        DamagedFileError: The file is missing, cut short or changed.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest, _, text = (file.metadata() or {}).get("about", "").partition(" ")
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(f"{path}: cannot be read: {error}") from None
    if digest != _digest(tensors, text):
        raise DamagedFileError(f"{path}: is damaged")
    return tensors, json.loads(text)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    others: Mapping[str, Tensor] = EMPTY,
) -> None:
    """Write weights and the optimiser's state by parameter name, the training state, and other tensors."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()} | {**others}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    save_tensors(path, tensors, asdict(state))


def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    kept_weights: Path | None = None,
    others: Mapping[str, Tensor] = EMPTY,
) -> TrainingState:
    """Restore weights and optimiser in place; returns the training state.

    Args:
        path: Of the checkpoint.
        module: Changed in place.
        optimizer: Changed in place.
        kept_weights: The file of the kept epoch's weights, which must be whole if there is such an epoch.
        others: Changed in place; one that an earlier version did not save stays as it is.

    Raises:
        DamagedFileError: As in `load_tensors`, or the checkpoint is of other texts; nothing is restored.
    """
    tensors, about = load_tensors(path)
    if any(others[name].shape != tensors[name].shape for name in others.keys() & tensors.keys()):
        raise DamagedFileError(f"{path}: is of other texts")
    state = TrainingState(**about)
    if kept_weights and state.kept_epoch:
        load_tensors(kept_weights)
    weights = {k[len("model.") :]: v for k, v in tensors.items() if k.startswith("model.")}
    module.load_state_dict(weights)
    for name in others.keys() & tensors.keys():
        others[name].copy_(tensors[name])
    for name, parameter in module.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"optimizer.{key}.{name}")
            if value is not None:
                # a fused AdamW keeps its step count on the parameter's device
                optimizer.state[parameter][key] = value.to(parameter.device)
    return state
