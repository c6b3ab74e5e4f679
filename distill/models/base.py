"""What every family of networks has in common: texts in as a batch of named tensors, logits out.

A family is one subclass of `TextClassifier` in a module of its own. It decides what its `Batch` holds and
what `forward` computes. The training loop, the inference loop and the soft labels know nothing else about it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.heads import Head, columns

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
    from typing_extensions import Self

Array = NDArray[Any]
Batch = dict[str, Tensor]


class EncodedTexts(Protocol):
    """Texts as one family of networks reads them."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each text: batches hold texts of similar length."""

    def __len__(self) -> int:
        """The number of texts."""

    def batch(self, rows: Array) -> dict[str, Array]:
        """The named arrays of these rows, each `[rows, ...]`."""


class TextEncoder(Protocol):
    """What turns texts into a family's `EncodedTexts`."""

    max_length: int

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        """The encoded texts, in memory."""

    def to_disk(self, chunks: Iterable[Sequence[str]], path: Path) -> EncodedTexts:
        """The encoded texts, memory-mapped from `path`."""


class TextClassifier(nn.Module, ABC):
    """A network that gives every head's logits for a batch of texts.

    Attributes:
        family: The name of the family, by which `saved_networks` finds the class again.
        heads: The heads, in the order of their logits.
        config: The configuration of the encoder.
        balance: In training, the norm of the gradient that a head of weight 1 sends to the encoder, whatever
            the scale of its loss; None leaves it to the loss. Families other than `heads` ignore it.
    """

    family: ClassVar[str]
    families: ClassVar[dict[str, type[TextClassifier]]] = {}
    encoder: PreTrainedModel
    config: PretrainedConfig
    heads: tuple[Head, ...]
    balance: float | None = None

    def __init_subclass__(cls) -> None:
        TextClassifier.families[cls.family] = cls

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The logits of all heads side by side, `[batch, sum of labels]`, in the order of `heads`."""

    @abstractmethod
    def text_encoder(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> TextEncoder:
        """What turns texts into the family's batches, truncated to what `usable_length` allows."""

    def training_texts(
        self, texts: EncodedTexts, hard: Mapping[str, Array], soft: Mapping[str, Array], negatives: int
    ) -> EncodedTexts:
        """The texts as the network reads them in training; by default as they are.

        Args:
            texts: As `text_encoder` encodes them.
            hard: The labels of each head, as `losses.hard_loss` takes them.
            soft: The teacher's logits of each head that it knows, `[texts, labels]`.
            negatives: Labels besides its own that a network with labels as input reads for a text.
        """
        return texts

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The JSON values that rebuild the network: `cls(encoder, heads, **settings)`."""

    @abstractmethod
    def head_parameters(self, head: Head) -> Iterable[nn.Parameter]:
        """The parameters that belong to one head alone."""

    def usable_length(self, max_length: int) -> int:
        """The tokens that the network reads of a text: `max_length`, or its number of positions if lower."""
        return self.positions(max_length)

    @property
    def extra_positions(self) -> int:
        """The positions that the network needs beyond those of a text."""
        return 0

    def positions(self, most: int) -> int:
        """The number of positions of the encoder, at most `most`."""
        embeddings = getattr(self.encoder, "embeddings", None)
        positions = getattr(embeddings, "position_embeddings", None)
        limit = int(getattr(self.config, "max_position_embeddings", most))
        if limit < 0:  # xlnet's positions are relative and unlimited
            return most
        if positions is not None and getattr(positions, "padding_idx", None) is not None:
            limit -= positions.padding_idx + 1  # roberta counts positions from after the padding
        return min(most, limit)

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """The logits of each head, `{head: [batch, labels]}`, as views of `[batch, sum of labels]`."""
        return {head.name: logits[..., part] for head, part in columns(self.heads)}

    def freeze(self, train: Sequence[str]) -> None:
        """Train only the named parts: `encoder`, `heads`, or heads by name."""
        self.encoder.requires_grad_("encoder" in train)
        for head in self.heads:
            for parameter in self.head_parameters(head):
                parameter.requires_grad_("heads" in train or head.name in train)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but a frozen encoder stays in eval mode: it computes what it computes in service."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    @property
    def parameters_count(self) -> int:
        """The number of weights, embeddings included."""
        return sum(p.numel() for p in self.parameters())


def on_device(arrays: dict[str, Array], device: torch.device) -> Batch:
    """Numpy arrays as tensors on a device, by the same names.

    A copy to a GPU starts from pinned memory: from any other it waits until the GPU is idle, which then
    stands still while the next batch is prepared.
    """
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
