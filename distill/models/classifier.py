"""The classifier: an encoder, a pooling, and one linear product for the logits of all heads.

Teacher and student are both this class; they differ in the encoder they are given. A folder written by
`save` holds config.json, tokenizer files, model.safetensors and heads.json, and nothing pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.heads import Head, columns, width


def on_device(array: Any, device: torch.device) -> Tensor:
    """A numpy array as a tensor there.

    A GPU gets it from pinned memory: from any other the copy would wait until the GPU has done all it was
    given, which then stands still while the next batch is made.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Network(nn.Module):
    """Logits of every head for a batch of token ids.

    Each head keeps its own weight and bias, so that one can be frozen or read by name; `forward`
    lays them side by side and multiplies once, which makes a further head nearly free.
    """

    def __init__(
        self,
        encoder: Any,
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
        # not by bare name: a ModuleDict refuses names of its own methods, such as `type`
        self.linear = nn.ModuleDict({f"logits_{h.name}": nn.Linear(hidden, len(h.labels)) for h in heads})
        for linear in self._linears():
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits of all heads side by side, `[batch, sum of labels]`, in the order of heads.

        Args:
            input_ids: Token ids, `[batch, length]`.
            attention_mask: 1 at a token, 0 at padding, `[batch, length]`.
        """
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return self.classify(hidden, attention_mask)

    def classify(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits that the encoder's last hidden states `[batch, length, width]` give; see `forward`."""
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        linears = self._linears()
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        return nn.functional.linear(self.dropout(pooled), weight, bias)

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """The logits of each head, `{head: [batch, labels]}`, as views of a row of all."""
        return {head.name: logits[..., part] for head, part in columns(self.heads)}

    def reads(self, asked: int) -> int:
        """The number of tokens the encoder reads of a text: as asked, or as it has positions for."""
        embeddings = getattr(self.encoder, "embeddings", None)
        positions = getattr(embeddings, "position_embeddings", None)
        limit = int(getattr(self.config, "max_position_embeddings", asked))
        if positions is not None and getattr(positions, "padding_idx", None) is not None:
            limit -= positions.padding_idx + 1  # roberta counts from behind the padding
        return min(asked, limit)

    def freeze(self, train: Sequence[str]) -> None:
        """Let only the named parts learn: `encoder`, `heads`, or heads by name."""
        self.encoder.requires_grad_("encoder" in train)
        for head, linear in zip(self.heads, self._linears(), strict=True):
            linear.requires_grad_("heads" in train or head.name in train)

    def _linears(self) -> list[nn.Linear]:
        return [cast(nn.Linear, self.linear[f"logits_{head.name}"]) for head in self.heads]

    @property
    def parameters_count(self) -> int:
        """The number of weights, embeddings included."""
        return sum(p.numel() for p in self.parameters())


def save_network(network: Network, tokenizer: Any, folder: Path) -> None:
    """Write network and tokenizer into an existing folder."""
    network.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    heads = {
        "pooling": network.pooling,
        "dropout": network.dropout.p,
        "width": width(network.heads),
        "heads": [head.to_json() for head in network.heads],
    }
    (folder / "heads.json").write_text(json.dumps(heads, indent=1), encoding="utf-8")


def saved_heads(folder: Path) -> tuple[Head, ...]:
    """The heads of the network in a folder, in order."""
    about = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    return tuple(Head.from_json(head) for head in about["heads"])


def load_network(folder: Path) -> tuple[Network, Any]:
    """The network and tokenizer that `save_network` wrote."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    about = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(folder)
    encoder = AutoModel.from_config(config, attn_implementation="eager")
    encoder.pooler = None
    network = Network(encoder, saved_heads(folder), pooling=about["pooling"], dropout=about["dropout"])
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval(), AutoTokenizer.from_pretrained(folder)
