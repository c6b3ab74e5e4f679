"""A training step on a GPU as CUDA graphs: captured once for each shape of batch, then replayed.

A tiny network's step is some 300 kernels of a few microseconds each. Launched one by one from Python, they
take ten times as long as they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distill.models.base import Array, Batch, on_device
from distill.run import LOG

MEMORY = 0.25  # share of the GPU's memory that the gradients of all graphs may take
Arrays = dict[str, Array]
Found = tuple[Tensor, dict[str, Tensor]]  # logits, and scalars by name
Step = Callable[[Batch, Batch, Batch], Found]


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Batch, ...]
    gradients: list[Tensor | None]
    logits: Tensor
    names: list[str]
    values: Tensor


class GraphedStep:
    """The forward and backward pass of a step, which leaves its gradients in the parameters.

    Whether a batch is captured depends on its shape alone, so a training that continues computes what an
    uninterrupted one computes.
    """

    def __init__(self, step: Step, parameters: Sequence[nn.Parameter], rows: int, longest: int) -> None:
        """Take what is to be captured.

        Args:
            step: Computes logits and named scalars from a batch, and calls `backward`. It may not wait for
                the GPU.
            parameters: Those that are trained, on a GPU that CUDA finds.
            rows: Texts of a full batch. Smaller ones, such as the last of an epoch, are not captured.
            longest: Tokens of the longest text: no batch is padded beyond it.
        """
        self.step, self.parameters, self.rows, self.longest = step, parameters, rows, longest
        self.device = parameters[0].device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._captured: dict[int, _Captured] = {}
        self._possible = True

    def __call__(self, texts: Arrays, hard: Arrays, soft: Arrays) -> Found:
        """What `step` returns for a batch. The logits are overwritten by the next call."""
        rows, tokens = next(iter(texts.values())).shape
        width = padded_width(tokens, self.longest)
        arrays = (padded(texts, width), hard, soft)
        if self._possible and rows == self.rows and width not in self._captured:
            try:
                self._captured[width] = self._capture(arrays)
            except RuntimeError as error:  # the encoder does what cannot be captured
                self._possible = False
                self._captured.clear()
                self._forget()
                torch.cuda.empty_cache()
                reason = str(error).partition("\n")[0]
                LOG.warning(f"the step is not captured as a CUDA graph, which is slower: {reason}")
        if not self._possible or rows != self.rows:
            return self.step(*(on_device(group, self.device) for group in arrays))
        found = self._captured[width]
        for tensors, group in zip(found.inputs, arrays, strict=True):
            for name, tensor in tensors.items():
                tensor.copy_(torch.from_numpy(group[name]).pin_memory(), non_blocking=True)
        found.graph.replay()
        for parameter, gradient in zip(self.parameters, found.gradients, strict=True):
            parameter.grad = gradient
        # a copy: the losses of many steps are read together
        return found.logits, dict(zip(found.names, found.values.clone().unbind(), strict=True))

    def _capture(self, arrays: Sequence[Arrays]) -> _Captured:
        """Run the step twice for what is set up on first use, then capture it; nothing is learnt from it."""
        inputs = tuple(on_device(group, self.device) for group in arrays)
        with torch.random.fork_rng([self.device]):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._forget()
                self.step(*inputs)
                self._forget()
                with _refusing_waits():
                    self.step(*inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            self._forget()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                logits, parts = self.step(*inputs)
                values = torch.stack([*parts.values()])
        gradients = [parameter.grad for parameter in self.parameters]
        return _Captured(graph, inputs, gradients, logits, [*parts], values)

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


@contextmanager
def _refusing_waits() -> Iterator[None]:
    """What waits for the GPU raises: in a capture it would leave torch's generator unusable."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def padded_width(tokens: int, longest: int) -> int:
    """The tokens to which a batch is padded: 8, 16, 24, 32, 48, 64, 96, ..., at most the longest text."""
    width = 8
    while width < tokens:
        width += max(8, 1 << (width.bit_length() - 2))
    return max(tokens, min(width, longest))


def padded(texts: Arrays, width: int) -> Arrays:
    """The arrays `[rows, tokens]` of a batch, padded on the right with zeros, which its mask leaves out."""
    return {name: np.pad(array, ((0, 0), (0, width - array.shape[1]))) for name, array in texts.items()}


def graphs_fit(parameters: Sequence[nn.Parameter], longest: int) -> bool:
    """Whether the GPU has the memory: each graph has gradients of its own."""
    widths = {padded_width(tokens, longest) for tokens in range(1, longest + 1)}
    bytes_each = sum(p.numel() * p.element_size() for p in parameters)
    memory = torch.cuda.get_device_properties(parameters[0].device).total_memory
    return len(widths) * bytes_each <= MEMORY * memory
