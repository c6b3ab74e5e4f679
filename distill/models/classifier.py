"""The family `heads`: an encoder, pooling, and one linear layer a head."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from distill.data.tokens import TextTokenizer
from distill.heads import Head
from distill.models.base import Batch, TextClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


# The encoders that only add the mask to their attention scores, so that it may be given ready-made.
READY_MASKS = {"bert", "distilbert", "electra", "mpnet", "albert", "roberta", "xlm-roberta", "camembert"}


def prepared(encoder: PreTrainedModel, batch: Batch) -> Batch:
    """A batch with the mask that its encoder adds to attention scores, if the encoder takes it ready-made.

    Where transformers 5 makes it, a GPU waits in every forward.
    """
    config = encoder.config
    own = sys.modules[type(encoder).__module__]
    if config.model_type not in READY_MASKS or getattr(config, "is_decoder", False):
        return batch
    if not hasattr(own, "create_bidirectional_mask"):  # before transformers 5
        return batch
    mask = batch["attention_mask"][:, None, None, :]
    added = torch.zeros_like(mask, dtype=encoder.dtype)
    return {**batch, "attention_mask": added.masked_fill_(mask == 0, torch.finfo(encoder.dtype).min)}


class MultiHeadClassifier(TextClassifier):
    """Logits of every head for a batch of `input_ids` and `attention_mask`, both `[batch, length]`.

    Each head has its own weight and bias, so that one can be frozen or read by name, and is a product of its
    own: the last bits of its logits do not depend on the heads beside it.
    """

    family = "heads"

    def __init__(
        self,
        encoder: PreTrainedModel,
        heads: Sequence[Head],
        *,
        pooling: Literal["cls", "mean"] = "mean",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.heads = tuple(heads)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        hidden = int(self.config.hidden_size)
        # not by bare name: a ModuleDict refuses the names of its own methods, such as `type`
        self.linear = nn.ModuleDict({f"logits_{h.name}": nn.Linear(hidden, len(h.labels)) for h in heads})
        for linear in self._linears():
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, batch: Batch) -> Tensor:
        """The logits of all heads side by side, `[batch, sum of labels]`, in the order of heads."""
        return self.classify(self.encoder(**prepared(self.encoder, batch))[0], batch["attention_mask"])

    def classify(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits for the encoder's last hidden states `[batch, length, width]`; see `forward`."""
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        pooled = self.dropout(pooled)
        states: Sequence[Tensor] = [pooled] * len(self.heads)
        if self.training and self.balance is not None:
            states = balanced(pooled, [self.balance * head.weight for head in self.heads])
        return torch.cat([linear(x) for linear, x in zip(self._linears(), states, strict=True)], -1)

    def text_encoder(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> TextTokenizer:
        """A tokenizer that truncates texts to as many tokens as the encoder reads, `max_length` at most."""
        return TextTokenizer(tokenizer, self.usable_length(max_length))

    def settings(self) -> dict[str, Any]:
        """Pooling and the dropout of the heads."""
        return {"pooling": self.pooling, "dropout": self.dropout.p}

    def head_parameters(self, head: Head) -> Iterable[nn.Parameter]:
        """The weight and bias of a head."""
        return self.linear[f"logits_{head.name}"].parameters()

    def _linears(self) -> list[nn.Linear]:
        return [cast(nn.Linear, self.linear[f"logits_{head.name}"]) for head in self.heads]


def balanced(pooled: Tensor, norms: Sequence[float]) -> Sequence[Tensor]:
    """The pooled state once for each head; backward, the gradient of each has its norm.

    Losses differ in scale: the gradient of 28 binary labels may be ten times that of 150 classes, which the
    encoder then hardly learns. GradNorm (Chen et al. 2018, arXiv:1711.02257) learns weights of losses whose
    gradients have equal norms; here the norms are equal in every step. The gradients of the heads' own
    parameters stay. That of a head that no text of the batch teaches is 0.
    """
    states: tuple[Tensor, ...] = _Balanced.apply(pooled, norms)  # type: ignore[no-untyped-call]
    return states


class _Balanced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pooled: Tensor, norms: Sequence[float]) -> tuple[Tensor, ...]:
        ctx.norms = norms
        return tuple(pooled.view_as(pooled) for _ in norms)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = torch.zeros_like(gradients[0], dtype=torch.float32)
        for gradient, norm in zip(gradients, ctx.norms, strict=True):
            exact = gradient.float()
            total += norm * (exact / exact.norm().clamp(min=1e-12))
        return total.to(gradients[0].dtype), None
