"""How sure a network was of the labels that it learnt from, while it learnt them.

At the end of a training, a network has memorised wrong labels. It learns them last, so the mean over the
epochs of the probability of a label tells wrong labels from right ones (Swayamdipta et al. 2020,
arXiv:2009.10795).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.heads import Head, columns
from distill.training.losses import label_probabilities


class LabelConfidence:
    """The mean probability of the labels of each training text, over the times that the text was read.

    Attributes:
        tensors: The sums of the probabilities, `[texts, heads]`, and the number of times, `[texts]`, by name.
    """

    def __init__(self, heads: Sequence[Head], texts: int, device: torch.device) -> None:
        """Begin with no text read.

        Args:
            heads: In the order of the logits.
            texts: The number of training texts.
            device: Of the training.
        """
        self.heads = tuple(heads)
        self.tensors = {
            "confidence.sums": torch.zeros(texts, len(heads), device=device),
            "confidence.counts": torch.zeros(texts, device=device),
        }

    def add(self, rows: Tensor, logits: Tensor, hard: Mapping[str, Tensor]) -> None:
        """Add the texts of a batch.

        Args:
            rows: Their numbers, `[batch]`.
            logits: Of all heads side by side, `[batch, sum of labels]`.
            hard: The labels of each head, as `losses.hard_loss` takes them.
        """
        logits, parts = logits.detach().float(), columns(self.heads)
        found = [label_probabilities(logits[:, part], hard[head.name], head.kind) for head, part in parts]
        sums, counts = self.tensors.values()
        sums.index_add_(0, rows, torch.stack(found, -1))
        counts.index_add_(0, rows, torch.ones_like(found[0]))

    def means(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The mean of each head, `[texts]`, over all processes; NaN for a text that none has read."""
        sums, counts = (accelerator.reduce(tensor, "sum") for tensor in self.tensors.values())
        return {head.name: (sums[:, i] / counts).cpu() for i, head in enumerate(self.heads)}
