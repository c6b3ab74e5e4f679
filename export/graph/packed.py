"""Builds the ONNX graph of a packed network: texts and labels in, the score of every label out.

The tokens of a text and of all labels are the rows of one product in each linear layer, without the padding
of the labels, and one product gives their attention scores to the text. Only the attention of a label's
tokens to each other is computed label by label, padded to the longest label.

States are two-dimensional in linear layers, since onnxruntime adds a bias inside the product of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from export.graph.bert import MASKED, PARTS, BertBuilder
from export.runtime.packed import LABEL_IDS, LABEL_MASK
from export.runtime.session import IDS, MASK


def packed_graph(network: Any, outputs: Sequence[str], positions: int) -> onnx.ModelProto:
    """The graph of a packed network whose encoder is a BertModel or a DistilBertModel.

    The inputs are input_ids and attention_mask, int64 `[batch, length]`, the texts with their hypothesis, and
    label_ids and label_mask, int64 `[labels, label_length]`, the same labels for every text. Both are padded
    on the right; a label has at least one token. The outputs are float32 `[batch, labels]`, one per head: the
    scores that it gives to all labels.

    Args:
        network: A `distill.models.packed.PackedClassifier`: its `.config`, `.heads` and `.bert_weights()`.
        outputs: Output name of each head, in order.
        positions: Maximum number of tokens of a text and one label; later position embeddings are dropped.
    """
    graph = _PackedBuilder(network.bert_weights(), network.config)
    scores = [graph.scores(*graph.read(positions), [head.name for head in network.heads])]
    if len(outputs) > 1:
        parts, sizes = [f"scores.{output}" for output in outputs], graph.integers(*[1] * len(outputs))
        scores = [*graph.node_with_outputs("Split", *scores, sizes, outputs=parts, name="heads", axis=2)]
    for score, _, output in zip(scores, network.heads, outputs, strict=True):
        graph.node("Squeeze", score, graph.integers(2), name=output)
    texts, labels = ["batch_size", "sequence_length"], ["labels", "label_length"]
    return graph.model(
        {IDS: texts, MASK: texts, LABEL_IDS: labels, LABEL_MASK: labels},
        {output: ["batch_size", "labels"] for output in outputs},
    )


class _PackedBuilder(BertBuilder):
    """Adds the layers of a packed network. Its tokens are those of the text, then those of the labels.

    Attributes:
        length, longest: The tokens of the longest text and of the longest label, as vectors of one number.
        by_head: The shape of tokens apart by attention head, `[batch, tokens, any, width of a head]`.
        there: The number of each token of each label among the tokens, `[labels, longest]`.
        back: The number of each token of the labels among the padded labels, `[label tokens]`.
        every: The same for all tokens, 0 for those of the text, `[tokens]`.
        bias: What is added to attention scores, those to the text and those to the own label side by side,
            `[batch, 1, tokens, length + longest]`.
    """

    def __init__(self, weights: Mapping[str, Any], config: Any) -> None:
        super().__init__(weights, config)
        self._vectors: dict[str, str] = {}

    def read(self, positions: int) -> tuple[str, str]:
        """The mean last hidden state of each text `[batch, width]`, that of each label's first token.

        The latter is `[batch, labels, width]`.
        """
        ids, places = self._tokens()
        words, table = self.tables(positions)
        states = self.node(
            "Add",
            self.node("Gather", words, ids, name="word"),
            self.node("Gather", table, places, name="place"),
            name="embedded",
        )
        shape = self.node("Shape", ids, name="tokens")
        self.by_head = self._vector("tokens.by_head", shape, -1, self.size)
        self.bias = self._attention_bias()
        states = self._flat(self.norm(states, "encoder.embeddings.LayerNorm"), "embeddings")
        *layers, last = self.layers
        for layer in layers:
            states = self.layer(states, self._context(self.projection(states, layer), layer), layer)
        keys = self.projection(states, last, PARTS[1:])
        states = self.node("Reshape", states, self._vector("tokens.deep", shape, self.width), name="deep")
        first = self.node("Gather", self.there, self.constant(np.int64(0), "first"), name="firsts", axis=1)
        self.bias = self._leaving(self.bias, first, 2)
        states = self._leaving(states, first, 1)
        shape = self.node("Shape", states, name="leaving")
        states = self._flat(states, "leaving")
        query = self.projection(states, last, PARTS[:1])
        query = self.node(
            "Reshape",
            query,
            self._vector(
                "leaving.by_head",
                self.node("Slice", shape, self.integers(0), self.integers(2), name="leaving.tokens"),
                -1,
                self.size,
            ),
            name="query.by_head",
        )
        states = self.layer(states, self._last_context(query, keys, last), last)
        states = self.node("Reshape", states, shape, name="left")
        count = self.node("Shape", LABEL_IDS, name="labels.count", end=1)
        text, labels = self.node_with_outputs(
            "Split",
            states,
            self._vector("left.sizes", self.length, count),
            outputs=["left.text", "left.labels"],
            name="left.split",
            axis=1,
        )
        return self.mean(text), labels

    def scores(self, text: str, labels: str, heads: Sequence[str]) -> str:
        """The scores `[batch, labels, heads]` of the mean of texts and the states of labels.

        A head adds a linear map of the label to its multiple of the cosine of both.
        """
        scorers = [f"scorers.score_{head}" for head in heads]
        scores = self.product(labels, *self.stacked([f"{name}.linear" for name in scorers]), "linear")
        units = []
        for states in (text, labels):
            norm = self.node("ReduceL2", states, name=f"{states}.norm", axes=[-1], keepdims=1)
            norm = self.node("Clip", norm, self.number(1e-8, "tiny"), name=f"{states}.norm.some")
            units.append(self.node("Div", states, norm, name=f"{states}.unit"))
        text = self.node("Unsqueeze", units[0], self.integers(2), name="text.column")
        cosine = self.node("MatMul", units[1], text, name="cosine")
        scales = self.constant(np.exp([self.state[f"{name}.log_scale"] for name in scorers]), "scales")
        return self.node("Add", self.node("Mul", cosine, scales, name="cosine.scaled"), scores, name="scores")

    def _leaving(self, states: str, first: str, axis: int) -> str:
        """The tokens of the text and the first of each label: what the last layer computes."""
        labels = self.node("Gather", states, first, name=f"{states}.firsts", axis=axis)
        text = self.node(
            "Slice", states, self.integers(0), self.length, self.integers(axis), name=f"{states}.text"
        )
        return self.node("Concat", text, labels, name=f"{states}.leaving", axis=axis)

    def _tokens(self) -> tuple[str, str]:
        """The ids and positions of all tokens, `[batch, tokens]`; those of a label follow the text's."""
        one, all_of = self.integers(1), self.integers(-1)
        labels = self.node("Shape", LABEL_IDS, name="labels")
        self.length = self.node("Shape", IDS, name="length", start=1, end=2)
        self.longest = self.node("Shape", LABEL_IDS, name="longest", start=1, end=2)
        inside = self.node("Reshape", LABEL_MASK, all_of, name="labels.inside")
        back = self.node("NonZero", inside, name="labels.found")
        self.back = self.node("Reshape", back, all_of, name="labels.back")
        front = self._vector("before.vector", self.length, 0)
        self.every = self.node("Pad", self.back, front, name="labels.every")
        number = self.node("CumSum", inside, self.constant(np.int64(0), "axis"), name="labels.number")
        before = self.node("Sub", self.length, one, name="labels.before")
        number = self.node("Add", number, before, name="labels.number.after")
        self.there = self.node("Reshape", number, labels, name="labels.there")
        pair = self.node("NonZero", LABEL_MASK, name="labels.pair")
        label, self.reach = self.node_with_outputs(
            "Split", pair, outputs=["labels.label", "labels.reach"], name="labels.pairs", axis=0
        )
        self.label = self.node("Reshape", label, all_of, name="labels.of")
        after = self.node("ReduceSum", MASK, one, name="text.length", keepdims=1)
        after = self.node("Add", after, self.reach, name="labels.places")
        ids = self.node("Reshape", LABEL_IDS, all_of, name="labels.ids.padded")
        ids = self.node("Gather", ids, self.back, name="labels.ids")
        ids = self.node("Expand", ids, self.node("Shape", after, name="labels.shape"), name="labels.words")
        place = self.node("CumSum", MASK, self.constant(np.int64(1), "along"), name="text.number")
        place = self.node("Sub", place, one, name="text.places")
        return (
            self.node("Concat", IDS, ids, name="ids", axis=1),
            self.node("Concat", place, after, name="places", axis=1),
        )

    def _attention_bias(self) -> str:
        """The attention bias of all tokens."""
        self.mask = self.node("Cast", MASK, name="text.inside", to=TensorProto.FLOAT)
        text = self.padding(self.mask, [1, 2], "text.bias")
        after = self._vector("after.row", *[0] * 7, self.longest)
        own = self.node("Cast", LABEL_MASK, name="own.inside", to=TensorProto.FLOAT)
        own = self.node("Gather", self.padding(own, [], "own.bias"), self.label, name="own.rows")
        far, above = self.number(-MASKED, "masked"), self._vector("before.rows", self.length, 0, 0, 0)
        own = self.node("Pad", own, above, far, name="own.all")  # a text token attends to no label
        own = self.node("Pad", own, self._vector("before.columns", 0, self.length, 0, 0), name="own.wide")
        return self.node("Add", self.node("Pad", text, after, name="text.wide"), own, name="bias")

    def _context(self, projected: str, name: str) -> str:
        """The context of all tokens, `[batch x tokens, width]`."""
        query, key, value = self._heads(projected, 3, name)
        turned = self._turned(self._of_labels(query), 0, 1, 3, 2, 4)
        own = self._turned(self._of_labels(key), 0, 1, 3, 4, 2)
        own = self.node("MatMul", turned, own, name=f"{name}.own")  # [batch, labels, heads, longest, longest]
        shape = self._vector("own.shape", 0, 0, -1, self.longest)
        own = self.node("Reshape", self._turned(own, 0, 2, 1, 3, 4), shape, name=f"{name}.own.rows")
        own = self.node("Gather", own, self.every, name=f"{name}.own.every", axis=2)
        context, shares = self._of_text(query, key, value, own, name)
        shares = self.node("Gather", shares, self.there, name=f"{name}.own.shares", axis=2)
        turned = self._turned(self._of_labels(value), 0, 1, 3, 2, 4)
        own = self.node("MatMul", self._turned(shares, 0, 2, 1, 3, 4), turned, name=f"{name}.own.values")
        own = self.node(
            "Reshape", self._turned(own, 0, 1, 3, 2, 4), self.integers(0, -1, self.width), name=f"{name}.rows"
        )
        own = self.node("Gather", own, self.back, name=f"{name}.own.tokens", axis=1)
        front = self._vector("before.tokens", 0, self.length, 0, 0, 0, 0)
        own = self.node("Pad", own, front, name=f"{name}.own.context")
        return self.node("Add", context, self._flat(own, f"{name}.own"), name=f"{name}.context")

    def _last_context(self, query: str, keys: str, name: str) -> str:
        """The context of the text's tokens and of the first of each label, `[any, width]`.

        A label has one query, so keys and values need not be transposed for a product of matrices.
        """
        key, value = self._heads(keys, 2, name)
        end, one = self.integers(np.iinfo(np.int64).max), self.integers(1)
        own = self.node("Slice", query, self.length, end, one, name=f"{name}.query.labels")
        own = self.node("Unsqueeze", own, self.integers(2), name=f"{name}.query.row")
        own = self.node("Mul", own, self._of_labels(key), name=f"{name}.own.products")
        own = self.node("ReduceSum", own, self.integers(4), name=f"{name}.own", keepdims=0)
        front = self._vector("before.queries", 0, 0, self.length, 0, 0, 0, 0, 0)
        own = self.node("Pad", self._turned(own, 0, 3, 1, 2), front, name=f"{name}.own.wide")
        context, shares = self._of_text(query, key, value, own, name)
        shares = self.node("Slice", shares, self.length, end, self.integers(2), name=f"{name}.shares.labels")
        shares = self.node(
            "Unsqueeze", self._turned(shares, 0, 2, 3, 1), self.integers(4), name=f"{name}.own.shares"
        )
        own = self.node("Mul", shares, self._of_labels(value), name=f"{name}.own.parts")
        own = self.node("ReduceSum", own, self.integers(2), name=f"{name}.own.context", keepdims=0)
        own = self.node("Reshape", own, self.integers(0, 0, self.width), name=f"{name}.own.joined")
        front = self._vector("before.tokens", 0, self.length, 0, 0, 0, 0)
        own = self.node("Pad", own, front, name=f"{name}.own.after")
        return self.node("Add", context, self._flat(own, f"{name}.own"), name=f"{name}.context")

    def _of_text(self, query: str, key: str, value: str, own: str, name: str) -> tuple[str, str]:
        """What queries take from the text, `[queries, width]`, and their shares of their own label.

        `own` and the shares are `[batch, heads, queries, longest]`.
        """
        begin, one = self.integers(0), self.integers(1)
        key, value = (
            self.node("Slice", part, begin, self.length, one, name=f"{part}.text") for part in (key, value)
        )
        scores = self.node(
            "MatMul", self._turned(query, 0, 2, 1, 3), self._turned(key, 0, 2, 3, 1), name=f"{name}.scores"
        )
        scores = self.node("Concat", scores, own, name=f"{name}.scores.wide", axis=3)
        scores = self.node("Add", scores, self.bias, name=f"{name}.scores.inside")
        shares = self.node("Softmax", scores, name=f"{name}.shares", axis=-1)
        outputs, sizes = [f"{name}.shares.text", f"{name}.shares.own"], (self.length, self.longest)
        of_text, of_own = self.node_with_outputs(
            "Split",
            shares,
            self._vector("sides", *sizes),
            outputs=outputs,
            name=f"{name}.shares.split",
            axis=3,
        )
        context = self.node("MatMul", of_text, self._turned(value, 0, 2, 1, 3), name=f"{name}.text")
        return self._flat(self._turned(context, 0, 2, 1, 3), f"{name}.text"), of_own

    def _heads(self, projected: str, count: int, name: str) -> Sequence[str]:
        """`count` parts of a projection, each `[batch, tokens, heads, width of a head]`."""
        parts = self.node("Reshape", projected, self.by_head, name=f"{name}.by_head")
        outputs, sizes = [f"{name}.part.{i}" for i in range(count)], self.integers(*[self.count] * count)
        return self.node_with_outputs("Split", parts, sizes, outputs=outputs, name=f"{name}.split", axis=2)

    def _of_labels(self, part: str) -> str:
        """The rows of the labels' tokens, `[batch, labels, longest, heads, width of a head]`."""
        return self.node("Gather", part, self.there, name=f"{part}.labels", axis=1)

    def _turned(self, states: str, *axes: int) -> str:
        return self.node("Transpose", states, name=f"{states}.turned", perm=axes)

    def _flat(self, states: str, name: str) -> str:
        """States as rows, `[any, width]`."""
        return self.node("Reshape", states, self.integers(-1, self.width), name=f"{name}.flat")

    def _vector(self, name: str, *parts: str | int) -> str:
        """An int64 vector of constants and of vectors of the graph, computed once."""
        if name not in self._vectors:
            names = [part if isinstance(part, str) else self.integers(part) for part in parts]
            self._vectors[name] = self.node("Concat", *names, name=name, axis=0)
        return self._vectors[name]
