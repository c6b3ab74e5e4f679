"""A BERT classifier as an ONNX graph laid out by hand: no node for shapes, one product for all heads.

A traced BertModel spends a third of its nodes on shapes, token types and masks, and on a tiny network a node
costs about what its arithmetic does. Every other encoder is traced (`to_onnx`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.runtime.session import ALL_LOGITS, INPUTS

OPSET = 17  # the first that has LayerNormalization
IDS, MASK = INPUTS[:2]
FAR = 1e9  # subtracted from the attention to padding
FEW = 4  # attention heads that are computed one by one


def is_plain_bert(network: Any) -> bool:
    """Whether `bert_graph` computes what the network's encoder does."""
    config = network.config
    return bool(
        config.model_type == "bert"
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not config.is_decoder
    )


def bert_graph(network: Any, outputs: Sequence[str], positions: int, opset: int) -> onnx.ModelProto:
    """The graph of a network whose encoder is a BertModel without pooler.

    Inputs are input_ids and attention_mask, int64 `[batch, length]`; outputs float32 `[batch, labels]` a
    head and, where there are several, `all_logits`, the heads side by side.

    Args:
        network: With `.config`, `.encoder`, `.pooling` (cls or mean), `.heads`, and weights named as
            `distill.models.classifier.Network` names them.
        outputs: A name for each head, in order.
        positions: Tokens that a text has at most; position embeddings beyond are left out.
        opset: Of ONNX, at least 17.
    """
    state = {name: value.detach().float().cpu().numpy() for name, value in network.state_dict().items()}
    graph = _Graph(state, network.config)
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
        split = graph.constant("widths", widths, np.int64)
        graph.nodes.append(helper.make_node("Split", [ALL_LOGITS, split], list(outputs), "heads", axis=1))
        shapes[ALL_LOGITS] = sum(widths)
    integers = ["batch_size", "sequence_length"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "classifier",
            [helper.make_tensor_value_info(name, TensorProto.INT64, integers) for name in (IDS, MASK)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", width])
                for name, width in shapes.items()
            ],
            [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
        producer_name="tinyheads",
    )
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Nodes and constants as they are put down; a method returns the name of what it computes."""

    def __init__(self, state: dict[str, NDArray[Any]], config: Any) -> None:
        self.state, self.config = state, config
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def constant(self, name: str, value: Any, kind: Any = np.float32) -> str:
        self.constants[name] = np.array(value, kind, order="C")
        return name

    def node(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def product(self, inputs: str, weight: NDArray[Any], bias: NDArray[Any], name: str, out: str = "") -> str:
        weights = self.constant(f"{name}.weight", weight.T)
        product = self.node("MatMul", inputs, weights, name=f"{name}.product")
        return self.node("Add", product, self.constant(f"{name}.bias", bias), name=out or name)

    def linear(self, inputs: str, name: str) -> str:
        return self.product(inputs, self.state[f"{name}.weight"], self.state[f"{name}.bias"], name)

    def norm(self, inputs: str, name: str) -> str:
        weight, bias = (self.constant(f"{name}.{x}", self.state[f"{name}.{x}"]) for x in ("weight", "bias"))
        epsilon = float(self.config.layer_norm_eps)
        return self.node("LayerNormalization", inputs, weight, bias, name=name, axis=-1, epsilon=epsilon)

    def encoder(self, positions: int) -> str:
        """The last hidden states, `[batch, length, width]`."""
        tables = "encoder.embeddings"
        words = self.constant("words", self.state[f"{tables}.word_embeddings.weight"])
        places = self.state[f"{tables}.position_embeddings.weight"][:positions]
        # a text alone is all of type 0
        places = places + self.state[f"{tables}.token_type_embeddings.weight"][0]
        zero = self.constant("zero", [0], np.int64)
        length = self.node("Shape", IDS, name="length", start=1, end=2)
        place = self.node("Slice", self.constant("positions", places), zero, length, zero, name="place")
        states = self.node("Add", self.node("Gather", words, IDS, name="word"), place, name="embedded")
        states = self.norm(states, f"{tables}.LayerNorm")
        self.inside = self.node("Cast", MASK, name="inside", to=TensorProto.FLOAT)
        few = self.config.num_attention_heads <= FEW
        axes = self.constant("middle", [1] if few else [1, 2], np.int64)
        outside = self.node("Sub", self.inside, self.constant("float_one", [1]), name="outside")
        outside = self.node("Mul", outside, self.constant("far", [FAR]), name="outside.far")
        bias = self.node("Unsqueeze", outside, axes, name="attention.bias")
        for number in range(self.config.num_hidden_layers):
            states = self.layer(states, bias, f"encoder.encoder.layer.{number}")
        return states

    def layer(self, states: str, bias: str, name: str) -> str:
        """A transformer layer: attention, then the feed-forward part, each added to what it read."""
        context = self.attention(states, bias, f"{name}.attention.self")
        read = f"{name}.attention.output"
        states = self.node("Add", self.linear(context, f"{read}.dense"), states, name=f"{read}.sum")
        states = self.norm(states, f"{read}.LayerNorm")
        wide = self.gelu(self.linear(states, f"{name}.intermediate.dense"), f"{name}.intermediate")
        sum_ = self.node("Add", self.linear(wide, f"{name}.output.dense"), states, name=f"{name}.output.sum")
        return self.norm(sum_, f"{name}.output.LayerNorm")

    def attention(self, states: str, bias: str, name: str) -> str:
        """What each token reads of the others, the heads side by side: one product for all that is compared.

        Few heads are computed one by one, which spares them all turning of axes; many are not, since a node
        costs more than turning.
        """
        count, width = self.config.num_attention_heads, self.config.hidden_size
        scales = {"query": (width // count) ** -0.5, "key": 1.0, "value": 1.0}
        weight, row = (
            np.concatenate([self.state[f"{name}.{part}.{x}"] * np.float32(s) for part, s in scales.items()])
            for x in ("weight", "bias")
        )
        every = self.product(states, weight, row, f"{name}.product")
        if count <= FEW:
            parts = self.split(every, 3 * count, width // count, name)
            heads = [
                self.head(parts[head::count], bias, [0, 2, 1], f"{name}.{head}") for head in range(count)
            ]
            return heads[0] if count == 1 else self.node("Concat", *heads, name=f"{name}.together", axis=2)
        apart = self.constant("apart", [0, 0, count, width // count], np.int64)
        turned = []
        for part in self.split(every, 3, width, name):
            part = self.node("Reshape", part, apart, name=f"{part}.apart")
            turned.append(self.node("Transpose", part, name=f"{part}.turned", perm=[0, 2, 1, 3]))
        context = self.head(turned, bias, [0, 1, 3, 2], name)
        context = self.node("Transpose", context, name=f"{name}.turned", perm=[0, 2, 1, 3])
        together = self.constant("together", [0, 0, width], np.int64)
        return self.node("Reshape", context, together, name=f"{name}.together")

    def split(self, states: str, count: int, width: int, name: str) -> list[str]:
        """So many parts of the last axis, each so wide."""
        parts = [f"{name}.part.{number}" for number in range(count)]
        widths = self.constant("widths_of_parts", [width] * count, np.int64)
        self.nodes.append(helper.make_node("Split", [states, widths], parts, f"{name}.split", axis=2))
        return parts

    def head(self, parts: Sequence[str], bias: str, turn: Sequence[int], name: str) -> str:
        """Attention proper, by queries, keys and values, of the last two axes."""
        query, key, value = parts
        key = self.node("Transpose", key, name=f"{name}.key", perm=turn)
        scores = self.node("MatMul", query, key, name=f"{name}.scores")
        scores = self.node("Add", scores, bias, name=f"{name}.scores.inside")
        shares = self.node("Softmax", scores, name=f"{name}.shares", axis=-1)
        return self.node("MatMul", shares, value, name=f"{name}.context")

    def gelu(self, inputs: str, name: str) -> str:
        """Give x * (1 + erf(x / sqrt 2)) / 2, in the order that onnxruntime knows as one Gelu."""
        root = self.constant("root", 2**0.5)
        one, half = self.constant("scalar_one", 1), self.constant("half", 0.5)
        erf = self.node("Erf", self.node("Div", inputs, root, name=f"{name}.div"), name=f"{name}.erf")
        risen = self.node("Mul", inputs, self.node("Add", erf, one, name=f"{name}.add"), name=f"{name}.mul")
        return self.node("Mul", risen, half, name=f"{name}.gelu")

    def first(self, states: str) -> str:
        """The first token's state, `[batch, width]`."""
        return self.node("Gather", states, self.constant("first", 0, np.int64), name="pooled", axis=1)

    def mean(self, states: str) -> str:
        """The mean of the tokens' states, `[batch, width]`, as one product with their shares."""
        last = self.constant("last", [1], np.int64)
        count = self.node("ReduceSum", self.inside, last, name="count", keepdims=1)
        count = self.node("Clip", count, self.constant("at_least", 1), name="count.some")
        shares = self.node("Div", self.inside, count, name="shares")
        shares = self.node("Unsqueeze", shares, last, name="shares.row")
        mean = self.node("MatMul", shares, states, name="mean")
        return self.node("Squeeze", mean, last, name="pooled")
