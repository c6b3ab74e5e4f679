"""Builds ONNX graphs node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


class GraphBuilder:
    """The nodes and constants of a graph under construction.

    Methods return tensor names, so calls nest like expressions.

    Args:
        prefix: Prefix of the names that the builder chooses.

    Attributes:
        nodes: Nodes in topological order.
        constants: Constants by tensor name.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def constant(self, value: ArrayLike, name: str = "") -> str:
        """Add a constant; strings are passed as an array of `object`."""
        name = name or f"{self.prefix}constant/{len(self.constants)}"
        self.constants[name] = np.array(value, order="C")
        return name

    def integers(self, *values: int) -> str:
        """Add a constant int64 vector; equal vectors are stored once."""
        name = "_".join(map(str, values))
        return self.constant(np.array(values, np.int64), f"{self.prefix}integers/{name}")

    def node(self, op_type: str, *inputs: str, name: str = "", **options: Any) -> str:
        """Add a node with one output, which shares the node's name.

        Args:
            op_type: ONNX operator.
            inputs: Names of the input tensors.
            name: Name of the node and of its output.
            options: Attributes of the operator, and `domain` of an operator outside ONNX.
        """
        name = name or f"{self.prefix}{len(self.nodes)}"
        return self.node_with_outputs(op_type, *inputs, outputs=[name], name=name, **options)[0]

    def node_with_outputs(
        self, op_type: str, *inputs: str, outputs: Sequence[str] | int, name: str = "", **options: Any
    ) -> Sequence[str]:
        """Add a node with several outputs, given by name or by number; returns their names."""
        name = name or f"{self.prefix}{len(self.nodes)}"
        names = [f"{name}/{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        self.nodes.append(helper.make_node(op_type, inputs, names, name, **options))
        return names

    def initializers(self) -> list[TensorProto]:
        """The constants as ONNX tensors."""
        return [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
