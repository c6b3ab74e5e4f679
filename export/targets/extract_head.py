"""Extracts one head from a classifier graph.

The heads of a bundle usually share one matrix product whose output is split. If the graph between the
product and the split is known (plain, or quantised), the weights are reduced to the columns of the head.
Otherwise the product and the split are kept.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

# positions of the inputs that share their last axis with the product
PRODUCTS = {
    "MatMul": (1,),
    "Gemm": (1, 2),
    "MatMulInteger": (1, 3),
    "DynamicQuantizeMatMul": (1, 2, 3, 4),
    "MatMulIntegerToFloat": (1, 3, 5, 6),
}
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Cast", "Identity")
PREFIX = "head/"


class _UnsupportedGraphError(Exception):
    """The columns of a head cannot be followed from the split back to the product."""


def extract_head(model: ModelProto, output: str, name: str, scale: float) -> tuple[ModelProto, bool]:
    """A copy of the graph with a single output, and without the nodes and weights of other heads.

    Args:
        model: A classifier graph; it is not changed.
        output: The output to keep, float32 `[batch, labels]`.
        name: Name of this output in the copy.
        scale: Factor of the output's values, applied by the last node.

    Returns:
        The copy, and whether its last product was reduced to the columns of the head.
    """
    whole = _copy(model)
    whole.prune_graph([output], allow_remove_graph_inputs=False)
    whole.clean_shape_infer()
    description = whole.model.graph.output.pop()
    whole.add_prefix_to_names(PREFIX)  # so that no other tensor is called `name`
    extracted, source = whole, PREFIX + output
    narrowed = _copy(whole.model)
    with suppress(_UnsupportedGraphError):
        source = _narrow(narrowed, source)
        extracted = narrowed
    extracted.add_initializer(numpy_helper.from_array(np.array(scale, np.float32), "calibration"))
    extracted.add_node(helper.make_node("Mul", [source, "calibration"], [name], "calibrated"))
    description.name = name
    extracted.model.graph.output.append(description)
    extracted.prune_graph(allow_remove_graph_inputs=False)
    return extracted.model, extracted is narrowed


def _copy(model: ModelProto) -> OnnxModel:
    copy = ModelProto()
    copy.CopyFrom(model)
    return OnnxModel(copy)


def _narrow(model: OnnxModel, output: str) -> str:
    """Reduce the product of a head to its columns, in place; returns the tensor that equals `output`."""
    node = model.output_name_to_node().get(output)
    if node is None or node.op_type not in ("Slice", "Split"):
        return output  # the head has a product of its own
    start, end = _slice(model, node) if node.op_type == "Slice" else _split(model, node, output)
    _Columns(model, start, end).keep(node.input[0])
    return str(node.input[0])


def _slice(model: OnnxModel, node: NodeProto) -> tuple[int, int]:
    """The columns [start, end) that a Slice selects."""
    values = [model.get_constant_value(name) for name in node.input[1:] if name]
    if len(values) < 3 or any(value is None or value.size != 1 for value in values):
        raise _UnsupportedGraphError
    start, end, axis, *step = (value.item() for value in values)
    if axis not in (1, -1) or step not in ([], [1]) or not 0 <= start <= end:
        raise _UnsupportedGraphError
    return start, end


def _split(model: OnnxModel, node: NodeProto, output: str) -> tuple[int, int]:
    """The columns [start, end) of one output of a Split."""
    sizes = model.get_constant_value(node.input[1]) if len(node.input) > 1 else None
    if sizes is None or model.get_node_attribute(node, "axis") not in (1, -1):
        raise _UnsupportedGraphError
    ends, position = np.cumsum(sizes), [*node.output].index(output)
    return int(ends[position] - sizes[position]), int(ends[position])


class _Columns:
    """Reduces tensors, in place, to the columns [start, end) of their last axis."""

    def __init__(self, model: OnnxModel, start: int, end: int) -> None:
        self.model, self.start, self.end = model, start, end
        self.producers, self.consumers = model.output_name_to_node(), model.input_name_to_nodes()

    def keep(self, name: str) -> None:
        """Reduce a computed tensor by reducing the constants that it is computed from."""
        node = self.producers.get(name)
        if node is None:
            raise _UnsupportedGraphError
        if node.op_type == "DynamicQuantizeLinear" or self._is_number(node):
            return  # the scale of the activations, which all columns share
        inputs = [(position, source) for position, source in enumerate(node.input) if source]
        elementwise = node.op_type in ELEMENTWISE
        if not elementwise:
            inputs = [pair for pair in inputs if pair[0] in PRODUCTS.get(node.op_type, ())]
        if not inputs or len(self.consumers[name]) > 1:
            raise _UnsupportedGraphError
        for position, source in inputs:
            value = self.model.get_constant_value(source)
            if value is not None:
                transposed = position == 1 and self.model.get_node_attribute(node, "transB")
                node.input[position] = self._constant(source, value, -2 if transposed else -1)
            elif elementwise:
                self.keep(source)
            else:
                raise _UnsupportedGraphError

    def _is_number(self, node: NodeProto) -> bool:
        """Whether a node reduces a tensor to one number."""
        axes = len(node.input) > 1 or self.model.get_node_attribute(node, "axes")
        return (
            node.op_type == "ReduceMax" and not axes and self.model.get_node_attribute(node, "keepdims") == 0
        )

    def _constant(self, name: str, value: NDArray[np.generic], axis: int) -> str:
        if value.ndim == 0 or value.shape[axis] == 1:
            return name  # broadcast over the columns
        if value.shape[axis] < self.end:
            raise _UnsupportedGraphError
        new = f"{name}_{self.start}_{self.end}"
        if self.model.get_initializer(new) is None:
            part = value.take(range(self.start, self.end), axis)
            self.model.add_initializer(numpy_helper.from_array(part, new))
        return new
