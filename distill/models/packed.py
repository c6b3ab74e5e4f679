"""The family `packed`: an encoder that reads a text and candidate labels together and scores each label.

A label is input, so the weights hold no labels. The text's tokens attend to each other, a label's tokens to
the text's and to their own, and positions of every label begin after the text. The logit of a label is
therefore the same alone, beside other labels, and in any order (Ntropy 2022 calls this a packed
cross-encoder). Since no token of the text attends to a label, the text is read once for all labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from distill.heads import NOT_SCORED, Head, width
from distill.models.base import Array, Batch, EncodedTexts, TextClassifier
from distill.models.packing import (
    HYPOTHESIS_TOKENS,
    LABEL_TOKENS,
    LabelTokens,
    PackedTextEncoder,
    PackedTexts,
    SampledTexts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ENCODERS = ("bert", "distilbert")
MASKED = -1e9  # attention score of a token that is not attended to
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class PackedClassifier(TextClassifier):
    """Logits of every label for a batch of texts, each `[CLS] text [SEP] hypothesis`, and their labels.

    A batch holds, with `rows` either the texts of the batch or 1 where all of them have the same labels:

    - `input_ids`, `attention_mask`: the texts, `[texts, length]`;
    - `label_ids`: the tokens of the labels, one label after the other, `[rows, tokens]`;
    - `label_segments`: the number of the label that a token belongs to, -1 for padding, `[rows, tokens]`;
    - `label_places`: where the tokens of each label are, -1 for padding, `[rows, labels, longest label]`;
    - `label_columns`: the logit that a label gives, -1 for none, `[rows, labels]`.

    With several hypotheses, a text is several rows, those of the first hypothesis first.
    """

    family = "packed"

    def __init__(self, encoder: PreTrainedModel, heads: Sequence[Head], *, dropout: float = 0.1) -> None:
        super().__init__()
        check_encoder(encoder.config)
        self.encoder = encoder
        self.config = encoder.config
        self.heads = tuple(heads)
        self.dropout = nn.Dropout(dropout)
        hidden = int(self.config.hidden_size)
        self.scorers = nn.ModuleDict({f"score_{head.name}": nn.Linear(hidden, 1) for head in heads})
        for scorer in self._scorers():
            nn.init.normal_(scorer.weight, std=0.02)
            nn.init.zeros_(scorer.bias)

    def forward(self, batch: Batch) -> Tensor:
        """The logits `[texts, sum of labels]` in the order of heads; NOT_SCORED where a label is absent."""
        states = self.label_states(batch)
        columns = batch["label_columns"].expand(len(states), -1)
        weight = torch.cat([scorer.weight for scorer in self._scorers()])
        bias = torch.cat([scorer.bias for scorer in self._scorers()])
        of_heads = nn.functional.linear(self.dropout(states), weight, bias)
        logits = of_heads.gather(2, self._head_of(columns).unsqueeze(2)).squeeze(2)
        texts = len(states) // self.hypotheses
        total = width(self.heads)
        table = logits.new_full((texts, total + 1), NOT_SCORED)  # the last column is that of padding
        columns = columns.where(columns >= 0, total)
        for part, values in zip(
            columns.view(-1, texts, columns.shape[1]), logits.view(-1, texts, columns.shape[1]), strict=True
        ):
            table = table.scatter(1, part, values)
        return table[:, :total]

    def label_states(self, batch: Batch, *, shared: bool | None = None) -> Tensor:
        """The last hidden state of each label's [CLS], `[texts, labels, width]`.

        Args:
            batch: As in the class.
            shared: Whether labels are rows that share the text's keys and values, or text and labels are one
                row with a block mask; by default the faster. Both give the same states.
        """
        states = self._embedded(batch)
        attention, last = self._attention(batch, shared)
        length = batch["input_ids"].shape[1]
        first = length + batch["label_places"][..., 0].clamp(min=0).expand(len(states), -1)
        *layers, final = _layers(self.encoder)
        for layer in layers:
            states = layer(states, states, attention)
        queries = states.gather(1, first.unsqueeze(2).expand(-1, -1, states.shape[2]))
        return final(queries, states, last)

    def _embedded(self, batch: Batch) -> Tensor:
        """The embeddings of the tokens of text and labels, `[texts, length + label tokens, width]`."""
        ids, labels = batch["input_ids"], batch["label_ids"]
        rows, length = ids.shape
        starts = batch["label_places"][..., 0]
        segments = batch["label_segments"]
        number = torch.arange(labels.shape[1], device=ids.device)
        inside = number - starts.gather(1, segments.clamp(min=0))
        after = batch["attention_mask"].sum(1, keepdim=True) + inside.where(segments >= 0, 0)
        text = torch.arange(length, device=ids.device).expand(rows, -1)
        places = torch.cat([text, after], 1)
        tables = self.encoder.embeddings
        words = torch.cat([ids, labels.expand(rows, -1)], 1)
        states = tables.word_embeddings(words) + tables.position_embeddings(places)
        if hasattr(tables, "token_type_embeddings"):
            states = states + tables.token_type_embeddings.weight[0]
        return cast(Tensor, tables.dropout(tables.LayerNorm(states)))

    def _attention(self, batch: Batch, shared: bool | None) -> tuple[Attention, Attention]:
        """The attention of all layers but the last, and that of the last, whose queries are [CLS] tokens."""
        if shared is None:
            shared = shares_text(batch)
        heads = int(self.config.num_attention_heads)
        return _shared_attention(batch, heads) if shared else _packed_attention(batch, heads)

    def _head_of(self, columns: Tensor) -> Tensor:
        """The number of the head that a column belongs to."""
        ends = torch.tensor([width(self.heads[: i + 1]) for i in range(len(self.heads))])
        return torch.bucketize(columns.clamp(min=0), ends.to(columns.device), right=True)

    @property
    def hypotheses(self) -> int:
        """The number of different hypotheses of the heads: the rows that a text takes in a batch."""
        return len({head.hypothesis for head in self.heads})

    def text_encoder(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> PackedTextEncoder:
        """A tokenizer of texts, which it truncates, with all labels of the heads."""
        labels = LabelTokens(tokenizer, self.heads, self.label_length, self.hypothesis_length)
        return PackedTextEncoder(tokenizer, self.usable_length(max_length), labels)

    def training_texts(
        self, texts: EncodedTexts, hard: Mapping[str, Array], soft: Mapping[str, Array], negatives: int
    ) -> SampledTexts:
        """The texts with their own labels and a sample of others, which is drawn for each batch."""
        assert isinstance(texts, PackedTexts)
        return SampledTexts(texts, hard, soft, negatives)

    @property
    def label_length(self) -> int:
        """The most tokens of a label: 64, or a third of the positions."""
        return min(LABEL_TOKENS, self.positions(3 * LABEL_TOKENS) // 3)

    @property
    def hypothesis_length(self) -> int:
        """The most tokens of a hypothesis: 32, or a quarter of the positions; 0 where no head has one."""
        given = any(head.hypothesis for head in self.heads)
        return min(HYPOTHESIS_TOKENS, self.positions(4 * HYPOTHESIS_TOKENS) // 4) if given else 0

    def usable_length(self, max_length: int) -> int:
        """The tokens that the network reads of a text, with room for a hypothesis and a label."""
        room = self.label_length + self.hypothesis_length
        return self.positions(max_length + room) - room

    def with_heads(self, heads: Sequence[Head]) -> PackedClassifier:
        """The network with other labels, with the same encoder and weights.

        A head keeps the scorer of its name; a network of one head scores the labels of every head with it.

        Raises:
            ValueError: A head has no counterpart, or one of another kind.
        """
        own = {head.name: head for head in self.heads}
        only = self.heads[0] if len(self.heads) == 1 else None
        network = PackedClassifier(self.encoder, heads, dropout=self.dropout.p)
        for head in heads:
            other = own.get(head.name, only)
            if other is None or other.kind != head.kind:
                known = ", ".join(f"{one.name} ({one.kind})" for one in self.heads)
                raise ValueError(f"head {head.name!r} ({head.kind}), expected one of {known}")
            network.scorers[f"score_{head.name}"].load_state_dict(
                self.scorers[f"score_{other.name}"].state_dict()
            )
        return network.train(self.training)

    def settings(self) -> dict[str, Any]:
        """The dropout of the heads."""
        return {"dropout": self.dropout.p}

    def head_parameters(self, head: Head) -> Iterable[nn.Parameter]:
        """The weight and bias that score the labels of a head."""
        return self.scorers[f"score_{head.name}"].parameters()

    def _scorers(self) -> list[nn.Linear]:
        return [cast(nn.Linear, self.scorers[f"score_{head.name}"]) for head in self.heads]


class _Layer(NamedTuple):
    """The parts of a transformer layer that BERT and DistilBERT have in common."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    attended: nn.Module
    attention_norm: nn.Module
    up: nn.Module
    activation: Callable[[Tensor], Tensor]
    down: nn.Module
    norm: nn.Module
    dropout: nn.Module
    scale: float

    def __call__(self, queries: Tensor, states: Tensor, attention: Attention) -> Tensor:
        """The layer's output for the queries, which attend to `states`."""
        query = self.query(queries) * self.scale
        context = attention(query, self.key(states), self.value(states))
        middle = self.attention_norm(self.dropout(self.attended(context)) + queries)
        return cast(Tensor, self.norm(self.dropout(self.down(self.activation(self.up(middle)))) + middle))


def _layers(encoder: Any) -> list[_Layer]:
    scale = (encoder.config.hidden_size // encoder.config.num_attention_heads) ** -0.5
    if encoder.config.model_type == "distilbert":
        return [
            _Layer(
                layer.attention.q_lin,
                layer.attention.k_lin,
                layer.attention.v_lin,
                layer.attention.out_lin,
                layer.sa_layer_norm,
                layer.ffn.lin1,
                layer.ffn.activation,
                layer.ffn.lin2,
                layer.output_layer_norm,
                layer.ffn.dropout,
                scale,
            )
            for layer in encoder.transformer.layer
        ]
    return [
        _Layer(
            layer.attention.self.query,
            layer.attention.self.key,
            layer.attention.self.value,
            layer.attention.output.dense,
            layer.attention.output.LayerNorm,
            layer.intermediate.dense,
            layer.intermediate.intermediate_act_fn,
            layer.output.dense,
            layer.output.LayerNorm,
            layer.output.dropout,
            scale,
        )
        for layer in encoder.encoder.layer
    ]


def check_encoder(config: Any) -> None:
    """Raise ValueError unless a packed network can read with an encoder of this configuration."""
    if config.model_type not in ENCODERS:
        raise ValueError(
            f"network: packed needs an encoder of type {' or '.join(ENCODERS)}, got {config.model_type} "
            "(name another encoder, or use network: heads)"
        )


def shares_text(batch: Batch) -> bool:
    """Whether sharing the text's keys and values is faster for a batch than one row with a block mask.

    One row costs the square of its length in attention; shared rows cost gathering the labels' tokens.
    """
    _, labels, longest = batch["label_places"].shape
    text, tokens = batch["input_ids"].shape[1], batch["label_ids"].shape[1]
    row = (text + tokens) ** 2
    shared = text**2 + labels * longest * (text + longest)
    return row > 2 * shared


def _packed_attention(batch: Batch, heads: int) -> tuple[Attention, Attention]:
    """Text and labels as one row: `allow[i, j] = (s_i >= 0) & ((s_j = 0) | (s_i = s_j)) | (i = j)`.

    The segment s of a token is 0 in the text, the number of its label from 1, and -1 in padding.
    """
    mask, labels = batch["attention_mask"], batch["label_segments"]
    text = mask - 1
    labels = (labels + 1).where(labels >= 0, -1).expand(len(mask), -1)
    segments = torch.cat([text, labels], 1)
    to, of = segments[:, None, :], segments[:, :, None]
    allow = (of >= 0) & ((to == 0) | (of == to))
    allow = allow | torch.eye(allow.shape[1], dtype=torch.bool, device=allow.device)
    bias = torch.zeros(allow.shape, device=allow.device).masked_fill(~allow, MASKED)
    first = mask.shape[1] + batch["label_places"][..., 0].clamp(min=0).expand(len(mask), -1)
    of_labels = bias.gather(1, first[:, :, None].expand(-1, -1, bias.shape[2]))

    def attention(bias: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (_split_heads(part, heads) for part in (query, key, value))
        return _join_heads((q @ k.transpose(-1, -2) + bias[:, None].to(q.dtype)).softmax(-1).to(v.dtype) @ v)

    return partial(attention, bias), partial(attention, of_labels)


def _shared_attention(batch: Batch, heads: int) -> tuple[Attention, Attention]:
    """Labels as rows `[texts, labels, longest label]` that share the keys and values of their text."""
    places, mask = batch["label_places"], batch["attention_mask"]
    _, labels, longest = places.shape
    length = mask.shape[1]
    own = torch.zeros(places.shape, device=mask.device).masked_fill(places < 0, MASKED)[:, None, :, None]
    text = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, MASKED)[:, None, None]
    there = places.clamp(min=0).flatten(1)
    # where the rows hold each token, to put the rows back in the order of tokens
    segments, starts = batch["label_segments"], places[..., 0]
    number = torch.arange(segments.shape[1], device=mask.device)
    segment = segments.clamp(min=0)
    back = (segment * longest + number - starts.gather(1, segment)).clamp(0, labels * longest - 1)

    def of_labels(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The context of `[texts, labels x n]` queries, n of each label."""
        q, k, v = (_split_heads(part, heads) for part in (query, key[:, :length], value[:, :length]))
        k_own, v_own = (
            _rows(_split_heads(_take(part[:, length:], there), heads), labels) for part in (key, value)
        )
        scores = _rows(q @ k.transpose(-1, -2) + text.to(q.dtype), labels)
        mine = _rows(q, labels) @ k_own.transpose(-1, -2) + own.to(q.dtype)
        shares = torch.cat([scores, mine], -1).softmax(-1).to(v.dtype)
        context = shares[..., :length].flatten(2, 3) @ v
        context = context + (shares[..., length:] @ v_own).flatten(2, 3)
        return _join_heads(context)

    def every(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (_split_heads(part[:, :length], heads) for part in (query, key, value))
        context = _join_heads((q @ k.transpose(-1, -2) + text.to(q.dtype)).softmax(-1).to(v.dtype) @ v)
        label = of_labels(_take(query[:, length:], there), key, value)
        return torch.cat([context, _take(label, back)], 1)

    return every, of_labels


def _take(states: Tensor, places: Tensor) -> Tensor:
    """The states `[texts, n, width]` at places `[rows, m]` of their second axis, for one row or each text."""
    if len(places) == 1:
        return states.index_select(1, places[0])
    return states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """`[texts, tokens, width]` as `[texts, heads, tokens, width / heads]`."""
    texts, tokens, width = states.shape
    return states.view(texts, tokens, heads, width // heads).transpose(1, 2)


def _rows(states: Tensor, labels: int) -> Tensor:
    """`[texts, heads, labels x n, ...]` as `[texts, heads, labels, n, ...]`."""
    texts, heads, tokens, width = states.shape
    return states.reshape(texts, heads, labels, tokens // labels, width)


def _join_heads(states: Tensor) -> Tensor:
    return states.transpose(1, 2).flatten(2)
