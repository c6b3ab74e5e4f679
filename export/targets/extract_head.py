"""A graph cut to one head: what the head needs, its own columns of the last product, its calibration.

Heads are often one product, split at the end. Where what lies between the product and the split is known
(plain, or quantised by onnxruntime), the weights are cut to the head's columns; otherwise the product is
left whole and only the split is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

# Inputs that bear the columns of a product on their last axis: (op, domain of Microsoft?) -> positions
COLUMNS = {
    "MatMul": (1,),
    "Gemm": (1, 2),
    "MatMulInteger": (1, 3),
    "DynamicQuantizeMatMul": (1, 2, 3, 4),
    "MatMulIntegerToFloat": (1, 3, 5, 6),
}
ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
SAME = ("Cast", "Identity")


class _WholeProductError(Exception):
    """Something between the product and the split that is not known."""


def cut(model: ModelProto, output: str, name: str, scale: float) -> tuple[ModelProto, bool]:
    """A copy of the graph with one output, times a constant, and nothing that it does not need.

    Args:
        model: With an output `output`, float32 `[batch, labels]`.
        output: The output to keep.
        name: Its name in the copy.
        scale: What its values are multiplied with, as the last node; 1 adds none.

    Returns:
        The copy, and whether its last product was cut to the head's columns.
    """
    found = ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    (info,) = (value for value in graph.output if value.name == output)
    narrowed = True
    try:
        source = _Narrowing(graph).head(output)
    except _WholeProductError:
        source, narrowed = output, False
    last = helper.make_node("Identity", [source], [name], name="head")
    if scale != 1:
        factor = numpy_helper.from_array(np.array(scale, np.float32), "calibration")
        graph.initializer.append(factor)
        last = helper.make_node("Mul", [source, "calibration"], [name], name="calibrated")
    if name == output:  # the old name is taken by what the new last node reads
        _rename(graph, output, f"{output}_raw")
        last.input[0] = f"{output}_raw" if source == output else source
    graph.node.append(last)
    kept = helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, None)
    kept.type.CopyFrom(info.type)
    del graph.output[:]
    graph.output.append(kept)
    del graph.value_info[:]
    _keep_needed(graph)
    return found, narrowed


class _Narrowing:
    """Follows a head from its split to the product, adding narrowed copies of the nodes between."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.added: list[NodeProto] = []

    def head(self, output: str) -> str:
        """The name of a tensor that equals `output`, of a product that has only its columns."""
        node = self.makers.get(output)
        if node is None or node.op_type not in ("Slice", "Split"):
            return output  # the head has a product of its own
        first, last = self._slice(node) if node.op_type == "Slice" else self._split(node, output)
        name = self._columns(node.input[0], first, last)
        self.graph.node.extend(self.added)
        return name

    def _slice(self, node: NodeProto) -> tuple[int, int]:
        values = [self._value(name) for name in node.input[1:] if name]
        if len(values) < 3 or any(value is None or value.size != 1 for value in values):
            raise _WholeProductError
        first, last, axis, *step = (int(value.item()) for value in values if value is not None)
        if axis not in (1, -1) or step not in ([], [1]) or first < 0 or last < first:
            raise _WholeProductError
        return first, last

    def _split(self, node: NodeProto, output: str) -> tuple[int, int]:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        sizes = self._value(node.input[1]) if len(node.input) > 1 else None
        if axis not in (1, -1) or sizes is None:
            raise _WholeProductError
        position = list(node.output).index(output)
        ends = np.cumsum(sizes)
        return int(ends[position] - sizes[position]), int(ends[position])

    def _columns(self, name: str, first: int, last: int) -> str:
        """The name of a tensor that equals columns first..last of the tensor `name`."""
        new = f"{name}_{first}_{last}"
        if name in self.constants:
            return self._constant(name, new, first, last, 1)
        node = self.makers.get(name)
        if node is None:
            raise _WholeProductError
        if node.op_type == "DynamicQuantizeLinear":
            return name  # the scale of the activations: one number
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name, copy.output[:] = new, [new]
        if node.op_type in ELEMENTWISE or node.op_type in SAME:
            copy.input[:] = [self._columns(x, first, last) for x in node.input]
        elif node.op_type in COLUMNS:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            for position in COLUMNS[node.op_type]:
                if position < len(node.input) and node.input[position]:
                    old = node.input[position]
                    axis = 2 if transposed and position == 1 else 1
                    if old not in self.constants:
                        raise _WholeProductError
                    copy.input[position] = self._constant(old, f"{old}_{first}_{last}", first, last, axis)
        else:
            raise _WholeProductError
        if not any(new in other.output for other in self.added):
            self.added.append(copy)
        return new

    def _constant(self, name: str, new: str, first: int, last: int, axis: int) -> str:
        """Columns of a constant, counted from its last axis; a single number as it is."""
        value = numpy_helper.to_array(self.constants[name])
        if value.ndim == 0 or value.shape[-axis] == 1:
            return name
        if value.ndim < axis or value.shape[-axis] < last:
            raise _WholeProductError
        part = value[first:last] if axis == value.ndim else value[..., first:last]
        if not any(tensor.name == new for tensor in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), new))
        return new

    def _value(self, name: str) -> Any:
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.makers.get(name)
        if node is not None and node.op_type == "Constant":
            return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)
        return None


def _keep_needed(graph: GraphProto) -> None:
    """Removes every node and constant that no output needs, in place."""
    needed = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    waiting = list(graph.node)
    makers = {name: node for node in waiting for name in node.output}
    open_names, seen = list(needed), set()
    while open_names:
        node = makers.get(open_names.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        fresh = set(_reads(node)) - needed
        needed |= fresh
        open_names += fresh
    kept = _ordered([node for node in waiting if id(node) in seen])
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    tensors = [type(tensor).FromString(tensor.SerializeToString()) for tensor in constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(tensors)


def _ordered(nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes so that each stands behind those that it reads."""
    makers = {name: node for node in nodes for name in node.output}
    done: list[NodeProto] = []
    seen: set[int] = set()
    for start in nodes:
        stack = [(start, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                done.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack += [(makers[name], False) for name in _reads(node) if name in makers]
    return done


def _reads(node: NodeProto) -> Iterable[str]:
    """The names a node reads, also within its subgraphs."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _reads(each)


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
