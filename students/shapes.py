"""The shapes of a student, and a fresh encoder of one.

The named sizes are those of Turc et al. 2019 (arXiv:1908.08962, table 1), whose miniatures are the
published starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertModel


@dataclass(frozen=True)
class Shape:
    """Layers, width, and attention heads of an encoder; the feed-forward part is 4 x as wide."""

    layers: int
    hidden: int
    attention_heads: int

    @property
    def miniature(self) -> str:
        """The hub id of the BERT miniature of this shape."""
        return f"google/bert_uncased_L-{self.layers}_H-{self.hidden}_A-{self.attention_heads}"


SIZES = {
    "tiny": Shape(2, 128, 2),
    "mini": Shape(4, 256, 4),
    "small": Shape(4, 512, 8),
    "medium": Shape(8, 512, 8),
}


def build_encoder(
    shape: Shape,
    *,
    vocabulary: int,
    positions: int,
    pad: int,
    dropout: float = 0.0,
) -> BertModel:
    """An encoder with random weights (a transformers model with `.config`).

    Args:
        shape: Layers, width, attention heads.
        vocabulary: Number of word pieces.
        positions: Number of positions, at least the longest text in tokens.
        pad: Token id of padding.
        dropout: Of hidden states.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=pad,
        attn_implementation="eager",
    )
    return BertModel(config, add_pooling_layer=False)
