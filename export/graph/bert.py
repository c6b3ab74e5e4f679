"""Builds the ONNX graph of a BERT classifier node by node: static shapes, one product for all heads.

A third of the nodes of a traced BertModel compute shapes, token types and masks, and in a tiny network a node
costs about as much as its arithmetic. Other encoders are traced (`export.graph.to_onnx`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.graph.builder import GraphBuilder
from export.runtime.session import ALL_LOGITS, IDS, MASK, REQUIRED_INPUTS

OPSET = 17  # the first with LayerNormalization
PRODUCER = "tinyheads"
MASKED = 1e9  # subtracted from the attention scores of padding
FEW = 4  # up to this number, attention heads are computed one by one


def is_plain_bert(network: Any) -> bool:
    """Whether `bert_graph` supports the encoder of a network."""
    config = network.config
    return bool(
        config.model_type == "bert"
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not config.is_decoder
    )


def bert_graph(network: Any, outputs: Sequence[str], positions: int) -> onnx.ModelProto:
    """The graph of a network whose encoder is a BertModel without a pooler.

    The inputs are input_ids and attention_mask, int64 `[batch, length]`. The outputs are float32
    `[batch, labels]`, one per head and, with several heads, `all_logits`: the heads concatenated.

    Args:
        network: A network with `.config`, `.encoder`, `.pooling` (cls or mean), `.heads`, and the weight
            names of `distill.models.classifier.Network`.
        outputs: Output name of each head, in order.
        positions: Maximum number of tokens of a text; later position embeddings are dropped.
    """
    state = {name: value.detach().float().cpu().numpy() for name, value in network.state_dict().items()}
    graph = _BertBuilder(state, network.config)
    states = graph.encoder(positions)
    pooled = graph.first(states) if network.pooling == "cls" else graph.mean(states)
    names = [f"linear.logits_{head.name}" for head in network.heads]
    weight = np.concatenate([state[f"{name}.weight"] for name in names])
    bias = np.concatenate([state[f"{name}.bias"] for name in names])
    widths = [len(head.labels) for head in network.heads]
    shapes = dict(zip(outputs, widths, strict=True))
    if len(outputs) == 1:
        graph.product(pooled, weight, bias, "heads", outputs[0])
    else:
        graph.product(pooled, weight, bias, "heads", ALL_LOGITS)
        sizes = graph.constant(np.array(widths, np.int64), "widths")
        graph.node_with_outputs("Split", ALL_LOGITS, sizes, outputs=outputs, name="heads", axis=1)
        shapes[ALL_LOGITS] = sum(widths)
    info, tokens = helper.make_tensor_value_info, ["batch_size", "sequence_length"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "classifier",
            [info(name, TensorProto.INT64, tokens) for name in REQUIRED_INPUTS],
            [info(name, TensorProto.FLOAT, ["batch_size", width]) for name, width in shapes.items()],
            graph.initializers(),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name=PRODUCER,
    )
    onnx.checker.check_model(model)
    return model


class _BertBuilder(GraphBuilder):
    """Adds the layers of a BERT encoder; methods return the name of the tensor that they add."""

    def __init__(self, state: dict[str, NDArray[Any]], config: Any) -> None:
        super().__init__()
        self.state, self.config = state, config

    def number(self, value: float, name: str) -> str:
        """A float32 scalar."""
        return self.constant(np.float32(value), name)

    def product(self, inputs: str, weight: NDArray[Any], bias: NDArray[Any], name: str, out: str = "") -> str:
        """A linear layer with `weight` `[outputs, inputs]`, as in torch."""
        product = self.node(
            "MatMul", inputs, self.constant(weight.T, f"{name}.weight"), name=f"{name}.product"
        )
        return self.node("Add", product, self.constant(bias, f"{name}.bias"), name=out or name)

    def linear(self, inputs: str, name: str) -> str:
        """The linear layer whose weights have this name in the state dict."""
        return self.product(inputs, self.state[f"{name}.weight"], self.state[f"{name}.bias"], name)

    def norm(self, inputs: str, name: str) -> str:
        """The layer norm whose weights have this name in the state dict."""
        weight, bias = (self.constant(self.state[f"{name}.{x}"], f"{name}.{x}") for x in ("weight", "bias"))
        epsilon = float(self.config.layer_norm_eps)
        return self.node("LayerNormalization", inputs, weight, bias, name=name, axis=-1, epsilon=epsilon)

    def encoder(self, positions: int) -> str:
        """The last hidden states, `[batch, length, width]`."""
        tables = "encoder.embeddings"
        words = self.constant(self.state[f"{tables}.word_embeddings.weight"], "words")
        table = self.state[f"{tables}.position_embeddings.weight"][:positions]
        table = table + self.state[f"{tables}.token_type_embeddings.weight"][0]  # all tokens have type 0
        zero, length = self.integers(0), self.node("Shape", IDS, name="length", start=1, end=2)
        place = self.node("Slice", self.constant(table, "positions"), zero, length, zero, name="place")
        states = self.node("Add", self.node("Gather", words, IDS, name="word"), place, name="embedded")
        states = self.norm(states, f"{tables}.LayerNorm")
        self.mask = self.node("Cast", MASK, name="inside", to=TensorProto.FLOAT)
        few = self.config.num_attention_heads <= FEW
        padding = self.node(
            "Sub", self.mask, self.constant(np.ones(1, np.float32), "float_one"), name="outside"
        )
        padding = self.node(
            "Mul", padding, self.constant(np.full(1, MASKED, np.float32), "far"), name="outside.far"
        )
        bias = self.node(
            "Unsqueeze", padding, self.integers(*([1] if few else [1, 2])), name="attention.bias"
        )
        for number in range(self.config.num_hidden_layers):
            states = self.layer(states, bias, f"encoder.encoder.layer.{number}")
        return states

    def layer(self, states: str, bias: str, name: str) -> str:
        """A transformer layer: attention and feed-forward part, each with its residual and layer norm."""
        context = self.attention(states, bias, f"{name}.attention.self")
        output = f"{name}.attention.output"
        states = self.node("Add", self.linear(context, f"{output}.dense"), states, name=f"{output}.sum")
        states = self.norm(states, f"{output}.LayerNorm")
        wide = self.gelu(self.linear(states, f"{name}.intermediate.dense"), f"{name}.intermediate")
        states = self.node(
            "Add", self.linear(wide, f"{name}.output.dense"), states, name=f"{name}.output.sum"
        )
        return self.norm(states, f"{name}.output.LayerNorm")

    def attention(self, states: str, bias: str, name: str) -> str:
        """Self-attention with one product for all queries, keys and values, the heads concatenated.

        A few heads are computed one by one, which needs no reshaping. Many are computed together, since each
        node costs more than a transposition.
        """
        count, width = self.config.num_attention_heads, self.config.hidden_size
        scales = {"query": (width // count) ** -0.5, "key": 1.0, "value": 1.0}
        weight, row = (
            np.concatenate([self.state[f"{name}.{part}.{x}"] * np.float32(s) for part, s in scales.items()])
            for x in ("weight", "bias")
        )
        projected = self.product(states, weight, row, f"{name}.product")
        if count <= FEW:
            parts = self.split(projected, 3 * count, width // count, name)
            heads = [self.head(parts[i::count], bias, [0, 2, 1], f"{name}.{i}") for i in range(count)]
            return heads[0] if count == 1 else self.node("Concat", *heads, name=f"{name}.together", axis=2)
        shape, turned = self.integers(0, 0, count, width // count), []
        for part in self.split(projected, 3, width, name):
            part = self.node("Reshape", part, shape, name=f"{part}.apart")
            turned.append(self.node("Transpose", part, name=f"{part}.turned", perm=[0, 2, 1, 3]))
        context = self.head(turned, bias, [0, 1, 3, 2], name)
        context = self.node("Transpose", context, name=f"{name}.turned", perm=[0, 2, 1, 3])
        return self.node("Reshape", context, self.integers(0, 0, width), name=f"{name}.together")

    def split(self, states: str, count: int, width: int, name: str) -> Sequence[str]:
        """The last axis split into `count` parts of `width`."""
        sizes = self.integers(*[width] * count)
        parts = [f"{name}.part.{number}" for number in range(count)]
        return self.node_with_outputs("Split", states, sizes, outputs=parts, name=f"{name}.split", axis=2)

    def head(self, parts: Sequence[str], bias: str, transposed: Sequence[int], name: str) -> str:
        """Attention over the last two axes of query, key and value; `transposed` permutes the key."""
        query, key, value = parts
        key = self.node("Transpose", key, name=f"{name}.key", perm=transposed)
        scores = self.node("MatMul", query, key, name=f"{name}.scores")
        scores = self.node("Add", scores, bias, name=f"{name}.scores.inside")
        weights = self.node("Softmax", scores, name=f"{name}.shares", axis=-1)
        return self.node("MatMul", weights, value, name=f"{name}.context")

    def gelu(self, inputs: str, name: str) -> str:
        """The GELU x * (1 + erf(x / sqrt 2)) / 2, in the order that onnxruntime fuses."""
        root, one, half = self.number(2**0.5, "root"), self.number(1, "scalar_one"), self.number(0.5, "half")
        erf = self.node("Erf", self.node("Div", inputs, root, name=f"{name}.div"), name=f"{name}.erf")
        product = self.node("Mul", inputs, self.node("Add", erf, one, name=f"{name}.add"), name=f"{name}.mul")
        return self.node("Mul", product, half, name=f"{name}.gelu")

    def first(self, states: str) -> str:
        """The hidden state of the first token, `[batch, width]`."""
        return self.node("Gather", states, self.constant(np.int64(0), "first"), name="pooled", axis=1)

    def mean(self, states: str) -> str:
        """The mean hidden state of the tokens, `[batch, width]`, as one product with their weights."""
        last = self.integers(1)
        count = self.node("ReduceSum", self.mask, last, name="count", keepdims=1)
        count = self.node("Clip", count, self.number(1, "at_least"), name="count.some")
        weights = self.node("Div", self.mask, count, name="shares")
        weights = self.node("Unsqueeze", weights, last, name="shares.row")
        return self.node("Squeeze", self.node("MatMul", weights, states, name="mean"), last, name="pooled")
