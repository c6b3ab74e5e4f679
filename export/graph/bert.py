"""Builds the ONNX graph of a BERT classifier node by node: static shapes, one product for all heads.

A third of the nodes of a traced BertModel compute shapes, token types and masks, and in a tiny network a node
costs about as much as its arithmetic. Other encoders are traced (`export.graph.to_onnx`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
DISTILBERT_EPSILON = 1e-12  # of its layer norms, which is no setting of its configuration
PARTS = "query", "key", "value"
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
    graph = BertBuilder(network.state_dict(), network.config)
    states = graph.encoder(positions)
    pooled = graph.first(states) if network.pooling == "cls" else graph.mean(states)
    weight, bias = graph.stacked([f"linear.logits_{head.name}" for head in network.heads])
    widths = [len(head.labels) for head in network.heads]
    shapes = dict(zip(outputs, widths, strict=True))
    if len(outputs) == 1:
        graph.product(pooled, weight, bias, "heads", outputs[0])
    else:
        graph.product(pooled, weight, bias, "heads", ALL_LOGITS)
        sizes = graph.constant(np.array(widths, np.int64), "widths")
        graph.node_with_outputs("Split", ALL_LOGITS, sizes, outputs=outputs, name="heads", axis=1)
        shapes[ALL_LOGITS] = sum(widths)
    return graph.model(
        {name: ["batch_size", "sequence_length"] for name in REQUIRED_INPUTS},
        {name: ["batch_size", width] for name, width in shapes.items()},
    )


class BertBuilder(GraphBuilder):
    """Adds the layers of a BERT or DistilBERT encoder; methods return the name of the tensor that they add.

    Attributes:
        state: The weights of the network by BERT's names.
        config: The configuration of the encoder.
        count: Number of attention heads.
        width: Width of the hidden states.
        size: Width of an attention head.
    """

    def __init__(self, weights: Mapping[str, Any], config: Any) -> None:
        super().__init__()
        self.state = {name: value.detach().float().cpu().numpy() for name, value in weights.items()}
        self.config = config
        self.count, self.width = int(self.config.num_attention_heads), int(self.config.hidden_size)
        self.size = self.width // self.count

    def model(
        self, inputs: Mapping[str, Sequence[str]], outputs: Mapping[str, Sequence[str | int]]
    ) -> onnx.ModelProto:
        """The checked model, given the shape of each input (int64) and output (float32)."""
        kinds = (inputs, TensorProto.INT64), (outputs, TensorProto.FLOAT)
        ends = [
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
            for shapes, kind in kinds
        ]
        model = helper.make_model(
            helper.make_graph(self.nodes, "classifier", *ends, self.initializers()),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=8,
            producer_name=PRODUCER,
        )
        onnx.checker.check_model(model)
        return model

    def stacked(
        self, names: Sequence[str], scales: Sequence[float] = ()
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Weight and bias of linear layers concatenated as one, each multiplied by its scale."""
        factors = [np.float32(scale) for scale in scales or [1] * len(names)]
        weight, bias = (
            np.concatenate(
                [self.state[f"{name}.{x}"] * scale for name, scale in zip(names, factors, strict=True)]
            )
            for x in ("weight", "bias")
        )
        return weight, bias

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

    def projection(self, states: str, name: str, parts: Sequence[str] = PARTS) -> str:
        """Query, key and value of a layer, or some of them, as one product; queries are scaled."""
        weight, bias = self.stacked(
            [f"{name}.attention.self.{part}" for part in parts],
            [self.size**-0.5 if part == "query" else 1 for part in parts],
        )
        return self.product(states, weight, bias, ".".join([name, *parts]))

    def norm(self, inputs: str, name: str) -> str:
        """The layer norm whose weights have this name in the state dict."""
        weight, bias = (self.constant(self.state[f"{name}.{x}"], f"{name}.{x}") for x in ("weight", "bias"))
        epsilon = float(getattr(self.config, "layer_norm_eps", DISTILBERT_EPSILON))
        return self.node("LayerNormalization", inputs, weight, bias, name=name, axis=-1, epsilon=epsilon)

    def tables(self, positions: int) -> tuple[str, str]:
        """The word embeddings, and the embeddings of positions, which include those of token type 0."""
        tables = "encoder.embeddings"
        table = self.state[f"{tables}.position_embeddings.weight"][:positions]
        types = self.state.get(f"{tables}.token_type_embeddings.weight")
        if types is not None:
            table = table + types[0]
        words = self.constant(self.state[f"{tables}.word_embeddings.weight"], "words")
        return words, self.constant(table, "positions")

    def encoder(self, positions: int) -> str:
        """The last hidden states, `[batch, length, width]`."""
        words, table = self.tables(positions)
        zero, length = self.integers(0), self.node("Shape", IDS, name="length", start=1, end=2)
        place = self.node("Slice", table, zero, length, zero, name="place")
        states = self.node("Add", self.node("Gather", words, IDS, name="word"), place, name="embedded")
        states = self.norm(states, "encoder.embeddings.LayerNorm")
        self.mask = self.node("Cast", MASK, name="inside", to=TensorProto.FLOAT)
        bias = self.padding(self.mask, [1] if self.few else [1, 2], "attention.bias")
        for layer in self.layers:
            context = self.attention(self.projection(states, layer), bias, f"{layer}.attention.self")
            states = self.layer(states, context, layer)
        return states

    @property
    def layers(self) -> list[str]:
        """The name of each layer, in order."""
        return [f"encoder.encoder.layer.{number}" for number in range(self.config.num_hidden_layers)]

    @property
    def few(self) -> bool:
        """Whether attention heads are computed one by one."""
        return self.count <= FEW

    def padding(self, mask: str, axes: Sequence[int], name: str) -> str:
        """What is added to attention scores, 0 where a float mask is 1, with axes of size 1 inserted."""
        one, far = (self.constant(np.full(1, x, np.float32), f"float_{x:g}") for x in (1, MASKED))
        outside = self.node("Sub", mask, one, name=f"{name}.outside")
        bias = self.node("Mul", outside, far, name=f"{name}.far")
        return self.node("Unsqueeze", bias, self.integers(*axes), name=name) if axes else bias

    def layer(self, states: str, context: str, name: str) -> str:
        """The layer of this name after its attention: both parts with their residual and layer norm."""
        output = f"{name}.attention.output"
        states = self.node("Add", self.linear(context, f"{output}.dense"), states, name=f"{output}.sum")
        states = self.norm(states, f"{output}.LayerNorm")
        wide = self.gelu(self.linear(states, f"{name}.intermediate.dense"), f"{name}.intermediate")
        states = self.node(
            "Add", self.linear(wide, f"{name}.output.dense"), states, name=f"{name}.output.sum"
        )
        return self.norm(states, f"{name}.output.LayerNorm")

    def attention(self, projected: str, bias: str, name: str) -> str:
        """Self-attention of queries, keys and values concatenated; its heads are concatenated, too.

        A few heads are computed one by one, which needs no reshaping. Many are computed together, since each
        node costs more than a transposition.
        """
        count = self.count
        if self.few:
            parts = self.split(projected, 3 * count, self.size, name)
            heads = [self.head(parts[i::count], bias, [0, 2, 1], f"{name}.{i}") for i in range(count)]
            return heads[0] if count == 1 else self.node("Concat", *heads, name=f"{name}.together", axis=2)
        shape, turned = self.integers(0, 0, count, self.size), []
        for part in self.split(projected, 3, self.width, name):
            part = self.node("Reshape", part, shape, name=f"{part}.apart")
            turned.append(self.node("Transpose", part, name=f"{part}.turned", perm=[0, 2, 1, 3]))
        context = self.head(turned, bias, [0, 1, 3, 2], name)
        context = self.node("Transpose", context, name=f"{name}.turned", perm=[0, 2, 1, 3])
        return self.node("Reshape", context, self.integers(0, 0, self.width), name=f"{name}.together")

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
