"""An int8 copy of an ONNX classifier: weights of products in 7 bits, embeddings in 8.

Products of weights become integer products with activations quantised on the fly; embeddings, most of
a tiny model's bytes, are stored in 8 bits. Products of two activations (attention) stay in float32.

An x86 CPU without VNNI adds two products of 8 by 8 bits in 16, and what does not fit is lost
(onnxruntime issues 5849, 14642). Weights of 7 bits always fit, so one file is right on every CPU.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def quantize_int8(source: Path, target: Path) -> None:
    """Write the int8 copy of `source` as `target`, with the same inputs and outputs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()  # where onnxruntime tells of shapes that no user can act on
    before = root.level
    root.setLevel(logging.ERROR)
    tables = target.with_name(f".{target.name}.tables")
    try:
        quantize_dynamic(source, tables, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
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
