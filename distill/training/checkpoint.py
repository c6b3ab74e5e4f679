"""A training that was stopped, in one safetensors file: weights, AdamW's moments, and where it was.

What is random in a step follows from (seed, step) alone, so no generator's state need be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.run import written_whole


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON value as one file that appears whole or not at all."""
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        save_file(cpu, temporary, metadata={"about": json.dumps(about)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON value that `save_tensors` wrote."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["about"])


def save_checkpoint(
    path: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
    averaged: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write weights, the optimiser's state and the averaged weights by parameter name, and `about`."""
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    tensors |= {f"average.{name}": value for name, value in averaged.items()}
    save_tensors(path, tensors, about)


def load_checkpoint(
    path: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote, in place; returns its `about`."""
    tensors, about = load_tensors(path)
    weights = {k[len("model.") :]: v for k, v in tensors.items() if k.startswith("model.")}
    network.load_state_dict(weights)
    for name, average in averaged.items():
        average.copy_(tensors[f"average.{name}"])
    for name, parameter in network.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"optimizer.{key}.{name}")
            if value is not None:
                # a fused AdamW keeps its step count beside the parameter
                optimizer.state[parameter][key] = value.to(parameter.device)
    return about
