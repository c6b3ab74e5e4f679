"""The family `packed`: an encoder that reads a text and candidate labels together and scores each label.

A label is input, so the weights hold no labels. The text's tokens attend to each other, a label's tokens to
the text's and to their own, and positions of every label begin after the text. The logit of a label is
therefore the same alone, beside other labels, and in any order (Ntropy 2022 calls this a packed
cross-encoder). Since no token of the text attends to a label, the text is read once for all labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from distill.heads import NOT_SCORED, Head, width
from distill.models.attention import Attention, packed_attention, shared_attention, shares_text
from distill.models.base import Array, Batch, EncodedTexts, TextClassifier, on_device
from distill.models.packing import (
    HYPOTHESIS_TOKENS,
    LABEL_TOKENS,
    LabelTokens,
    PackedTextEncoder,
    PackedTexts,
    SampledTexts,
    rows_of_labels,
)
from students.init_from_teacher import LAYER_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

COMPARED_TEXTS = 16  # of each label
ENCODERS = ("bert", "distilbert")
SCALE = 10.0  # of the cosine in a logit, before training


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
        self.scorers = nn.ModuleDict({f"score_{head.name}": Scorer(hidden) for head in heads})

    def forward(self, batch: Batch) -> Tensor:
        """The logits `[texts, sum of labels]` in the order of heads; NOT_SCORED where a label is absent."""
        text, labels = (self.dropout(states) for states in self.read(batch))
        columns = batch["label_columns"].expand(len(labels), -1)
        of_heads = torch.stack([scorer(text, labels) for scorer in self._scorers()], 2)
        logits = of_heads.gather(2, self._head_of(columns).unsqueeze(2)).squeeze(2)
        texts = len(labels) // self.hypotheses
        total = width(self.heads)
        table = logits.new_full((texts, total + 1), NOT_SCORED)  # the last column is that of padding
        columns = columns.where(columns >= 0, total)
        for part, values in zip(
            columns.view(-1, texts, columns.shape[1]), logits.view(-1, texts, columns.shape[1]), strict=True
        ):
            table = table.scatter(1, part, values)
        return table[:, :total]

    def read(self, batch: Batch, *, shared: bool | None = None) -> tuple[Tensor, Tensor]:
        """The text's mean last hidden state `[texts, width]`, each label's [CLS] `[texts, labels, width]`.

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
        starts = states.gather(1, first.unsqueeze(2).expand(-1, -1, states.shape[2]))
        states = final(torch.cat([states[:, :length], starts], 1), states, last)
        mask = batch["attention_mask"].unsqueeze(2).to(states.dtype)
        return (states[:, :length] * mask).sum(1) / mask.sum(1), states[:, length:]

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
        """The attention of all layers but the last, and of the last, which labels leave as their [CLS]."""
        if shared is None:
            shared = shares_text(batch)
        heads = int(self.config.num_attention_heads)
        return shared_attention(batch, heads) if shared else packed_attention(batch, heads)

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
        examples = {head.name: rows_of_labels(head, hard[head.name]) for head in self.heads}
        return SampledTexts(texts, hard, soft, negatives, examples, self._similarity(texts, examples))

    @torch.no_grad()
    def _similarity(self, texts: PackedTexts, examples: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
        """How similar the encoder finds the texts of two labels, by head, `[labels, labels]`, from -1 to 1.

        It is the cosine of the mean embeddings of up to 16 texts of each label, and 0 for a label without
        texts.
        """
        training = self.encoder.training
        self.encoder.eval()
        found = {}
        for head in self.heads:
            means = np.zeros((len(head.labels), int(self.config.hidden_size)), np.float32)
            for number, rows in enumerate(examples[head.name]):
                if len(rows):
                    batch = on_device(texts.texts.batch(rows[:COMPARED_TEXTS]), self.encoder.device)
                    states, mask = self.encoder(**batch)[0], batch["attention_mask"].unsqueeze(2)
                    embedded = (states * mask).sum(1) / mask.sum(1)
                    means[number] = nn.functional.normalize(embedded, dim=1).mean(0).float().cpu().numpy()
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
            found[head.name] = means @ means.T
        self.encoder.train(training)
        return found

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
        return self.positions(max_length + self.extra_positions) - self.extra_positions

    @property
    def extra_positions(self) -> int:
        """The positions of a hypothesis and a label."""
        return self.label_length + self.hypothesis_length

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

    def bert_weights(self) -> dict[str, Tensor]:
        """The weights by name, as in the state dict; those of a DistilBERT have BERT's names."""
        prefix, weights = "encoder.transformer.layer.", {}
        for name, value in self.state_dict().items():
            if name.startswith(prefix):
                number, _, rest = name.removeprefix(prefix).partition(".")
                module, _, kind = rest.rpartition(".")
                name = f"encoder.encoder.layer.{number}.{LAYER_NAMES[module]}.{kind}"
            weights[name] = value
        return weights

    def settings(self) -> dict[str, Any]:
        """The dropout of the heads."""
        return {"dropout": self.dropout.p}

    def head_parameters(self, head: Head) -> Iterable[nn.Parameter]:
        """The weight and bias that score the labels of a head."""
        return self.scorers[f"score_{head.name}"].parameters()

    def _scorers(self) -> list[nn.Module]:
        return [self.scorers[f"score_{head.name}"] for head in self.heads]


class Scorer(nn.Module):
    """The logit of a label: a scaled cosine of its [CLS] and the text's mean state, plus a linear map.

    The cosine lets an encoder of sentences begin with what it knows of labels that training never shows.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def forward(self, text: Tensor, labels: Tensor) -> Tensor:
        """The logits `[texts, labels]` of states `[texts, width]` and `[texts, labels, width]`."""
        text, labels = text.float(), labels.float()
        cosine = nn.functional.cosine_similarity(labels, text.unsqueeze(1), dim=2)
        logits: Tensor = cosine * self.log_scale.exp() + self.linear(labels).squeeze(2)
        return logits


class _Layer(NamedTuple):
    """The parts of a transformer layer that BERT and DistilBERT have in common."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    attended: nn.Module
    attention_norm: nn.Module
    up: nn.Module
    down: nn.Module
    norm: nn.Module
    dropout: nn.Module
    scale: float

    def __call__(self, queries: Tensor, states: Tensor, attention: Attention) -> Tensor:
        """The layer's output for the queries, which attend to `states`."""
        query = self.query(queries) * self.scale
        context = attention(query, self.key(states), self.value(states))
        middle = self.attention_norm(self.dropout(self.attended(context)) + queries)
        wide = nn.functional.gelu(self.up(middle))  # `check_encoder` refuses any other activation
        return cast(Tensor, self.norm(self.dropout(self.down(wide)) + middle))


# the linear layers and norms of a BERT layer, in the order of `_Layer`
PARTS = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "attention.output.LayerNorm"),
    *("intermediate.dense", "output.dense", "output.LayerNorm"),
)


def _layers(encoder: Any) -> list[_Layer]:
    """The layers of a BERT or DistilBERT encoder, in order."""
    distilbert = encoder.config.model_type == "distilbert"
    layers = (encoder.transformer if distilbert else encoder.encoder).layer
    of_bert = {bert: name for name, bert in LAYER_NAMES.items()} if distilbert else {}
    scale = (encoder.config.hidden_size // encoder.config.num_attention_heads) ** -0.5
    return [
        _Layer._make(
            [
                *(layer.get_submodule(of_bert.get(part, part)) for part in PARTS),
                (layer.ffn if distilbert else layer.output).dropout,
                scale,
            ]
        )
        for layer in layers
    ]


def check_encoder(config: Any) -> None:
    """Raise ValueError unless a packed network can read with an encoder of this configuration."""
    if config.model_type not in ENCODERS:
        raise ValueError(
            f"network: packed needs an encoder of type {' or '.join(ENCODERS)}, got {config.model_type} "
            "(name another encoder, or use network: heads)"
        )
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if activation != "gelu" or positions != "absolute":
        raise ValueError(
            f"network: packed needs an encoder with gelu and absolute positions, got {activation} and "
            f"{positions} (name another encoder, or use network: heads)"
        )
