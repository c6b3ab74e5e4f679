"""An int8 copy of an ONNX classifier: weights of products in 7 bits, embeddings in 8.

Products of weights become integer products with activations quantised on the fly; embeddings, most of
a tiny model's bytes, are stored in 8 bits. Products of two activations (attention) stay in float32.
What shares a scale is brought to the same reach first: columns of tables, and of what goes into a product.

An x86 CPU without VNNI adds two products of 8 by 8 bits in 16, and what does not fit is lost
(onnxruntime issues 5849, 14642). Weights of 7 bits always fit, so one file is right on every CPU.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

FAR = 4  # medians; most norms have no column so far out, and bringing one down costs a node
NEAR = 2  # medians that a column brought down reaches


def quantize_int8(source: Path, target: Path) -> None:
    """Write the int8 copy of `source` as `target`, with the same inputs and outputs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()  # where onnxruntime tells of shapes that no user can act on
    before = root.level
    root.setLevel(logging.ERROR)
    tables = target.with_name(f".{target.name}.tables")
    model = onnx.load(source)
    _level_tables(model)
    _bring_down(model)
    try:
        quantize_dynamic(model, tables, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
        quantize_dynamic(
            tables,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        tables.unlink(missing_ok=True)
        root.setLevel(before)
    model = onnx.load(target)
    _quantize_slices(model)
    onnx.save(model, target)


def _level_tables(model: onnx.ModelProto) -> None:
    """Let all columns of tables whose rows are added reach 1, in place, and multiply the sum.

    A table has one scale: a single far column, such as the first position's, takes the others' precision.
    """
    graph = model.graph
    stored = {initializer.name: initializer for initializer in graph.initializer}
    readers = Counter(name for node in graph.node if node.op_type != "Shape" for name in node.input)
    reads = {
        node.output[0]: stored[node.input[0]]
        for node in graph.node
        if node.op_type in ("Gather", "Slice")
        and node.input[0] in stored
        and readers[node.input[0]] == readers[node.output[0]] == 1
    }
    for add in [node for node in graph.node if node.op_type == "Add"]:
        tables = [reads[name] for name in add.input if name in reads]
        if len(tables) < 2 or any(table.data_type != onnx.TensorProto.FLOAT for table in tables):
            continue
        values = [numpy_helper.to_array(table) for table in tables]
        reach = np.max([np.abs(rows).max(0) for rows in values], 0)
        reach[reach == 0] = 1
        for table, rows in zip(tables, values, strict=True):
            table.CopyFrom(numpy_helper.from_array(rows / reach, table.name))
        whole = add.output[0]
        add.output[0] = f"{whole}.level"
        _multiply(graph, add, reach, whole)


def _bring_down(model: onnx.ModelProto) -> None:
    """Scale down, in place, columns that reach far before a product, and their rows of its weights up.

    One scale serves all activations of a product. A layer norm's output reaches about 3 |weight| + |bias| in
    a column. The product is the same but for rounding. After SmoothQuant (arXiv 2211.10438), with what the
    norm says of itself instead of what texts show.
    """
    graph = model.graph
    stored = {initializer.name: initializer for initializer in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    for norm in [node for node in graph.node if node.op_type == "LayerNormalization"]:
        products = [
            node
            for node in graph.node
            if node.op_type == "MatMul" and node.input[0] == norm.output[0] and node.input[1] in stored
        ]
        if not products or not stored.keys() >= {*norm.input[1:]}:
            continue
        weight, *bias = (np.abs(numpy_helper.to_array(stored[name])) for name in norm.input[1:])
        reach = sum(bias, 3 * weight)
        middle = np.median(reach)  # 0 where most columns are switched off
        shared = any(readers[node.input[1]] > 1 for node in products)
        if shared or not middle or reach.max() <= FAR * middle:
            continue
        scale = np.maximum(reach / (NEAR * middle), 1)
        down = f"{norm.output[0]}.down"
        _multiply(graph, norm, 1 / scale, down)
        for node in products:
            node.input[0] = down
            rows = numpy_helper.to_array(stored[node.input[1]]) * scale[:, None]
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(rows, node.input[1]))


def _multiply(graph: onnx.GraphProto, after: onnx.NodeProto, scale: NDArray[Any], output: str) -> None:
    """Put down a node that multiplies what `after` computes, a column at a time."""
    name = f"{output}.scale"
    graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), name))
    node = helper.make_node("Mul", [after.output[0], name], [output], f"{output}.scaled")
    graph.node.insert([*graph.node].index(after) + 1, node)


def _quantize_slices(model: onnx.ModelProto) -> None:
    """Store in 8 bits, in place, tables of which a slice is read: positions, which are left in float."""
    graph = model.graph
    stored = {initializer.name: initializer for initializer in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    for node in [node for node in graph.node if node.op_type == "Slice"]:
        table = stored.get(node.input[0])
        if table is None or table.data_type != onnx.TensorProto.FLOAT or readers[table.name] > 1:
            continue
        values = numpy_helper.to_array(table)
        scale = np.float32(np.abs(values).max() / 127 or 1)
        table.CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), table.name))
        whole, scales = node.output[0], f"{table.name}.scale"
        node.output[0] = f"{whole}.int8"
        graph.initializer.append(numpy_helper.from_array(scale, scales))
        read = helper.make_node("DequantizeLinear", [node.output[0], scales], [whole], f"{whole}.read")
        graph.node.insert([*graph.node].index(node) + 1, read)
