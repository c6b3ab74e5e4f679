"""A moving average of a network's weights, which is kept in their stead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of the weights that learn (Polyak and Juditsky 1992; EMA).

    Attributes:
        weights: The average by parameter name.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin an average at the network's weights, on their device."""
        self.network, self.decay = network, decay
        self.weights: dict[str, Tensor] = {
            name: weight.detach().clone()
            for name, weight in network.named_parameters()
            if weight.requires_grad
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0); early steps count more, so that the start fades."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = dict(self.network.named_parameters())
        torch._foreach_lerp_(
            list(self.weights.values()), [parameters[name] for name in self.weights], 1 - decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the averaged weights; its own are put back at the end."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        parameters = dict(self.network.named_parameters())
        for name, average in self.weights.items():
            mine = parameters[name].detach().clone()
            parameters[name].copy_(average)
            average.copy_(mine)
