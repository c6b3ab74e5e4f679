"""Quantises an ONNX classifier to int8: 7-bit weights in matrix products, 8-bit embeddings.

Products with weights become integer products of quantised activations. Embeddings, most of the size of a tiny
model, are stored in 8 bits. Products of two activations (attention) stay in float32. Tensors that share a
scale are rescaled first, so that an outlying column does not cost the others precision.

The scales of activations are constants, measured on texts, or those of each row. So the logits of a text do
not depend on the texts of its batch, as they would with onnxruntime's dynamic quantisation.

An x86 CPU without VNNI adds two 8 by 8 bit products in 16 bits, and the sum can overflow (onnxruntime
issues 5849 and 14642). With 7-bit weights it cannot, so the same file is correct on every CPU.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

from export.runtime.session import MASK

Batch = Mapping[str, NDArray[Any]]  # the inputs of a file by name
Scale = tuple[float, int]  # of an activation, and its zero point
PRODUCTS = "MatMul", "Gemm"
ONE = "mask.largest"  # a 1 that is no constant
ENDS = {"low": "ReduceMin", "high": "ReduceMax"}
OUTLIER = 4  # medians above which a column is scaled down; rarely exceeded, and scaling costs a node
SCALED = 2  # medians that a column reaches after scaling


def quantize_int8(
    source: Path,
    target: Path,
    batches: Iterable[Batch] | None = None,
    known: Mapping[str, Scale] | None = None,
) -> dict[str, Scale]:
    """Write the int8 version of `source` to `target`, with the same inputs and outputs; returns the scales.

    Args:
        source: An ONNX file with float32 weights.
        target: The file to write.
        batches: Inputs of the file for some texts, unpadded; the range of each activation over them is the
            range of its codes. None gives every row of the activations a scale of its own, which halves the
            error and costs 13 to 24 % of the time.
        known: Scales of activations, which are taken in place of measured ones.

    Returns:
        The constant scale and zero point of each activation that is quantised, by the tensor's name.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()  # onnxruntime logs advice that does not apply here to the root logger
    level = root.level
    root.setLevel(logging.ERROR)
    tables = target.with_name(f".{target.name}.tables")
    model = OnnxModel(onnx.load(source))
    _equalize_tables(model)
    _smooth_activations(model)
    model.topological_sort()
    scales = None if batches is None else {**_measured(model, batches), **(known or {})}
    try:
        quantize_dynamic(model.model, tables, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
        quantize_dynamic(
            tables,
            target,
            op_types_to_quantize=[*PRODUCTS],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        tables.unlink(missing_ok=True)
        root.setLevel(level)
    model = OnnxModel(onnx.load(target))
    _quantize_sliced_tables(model)
    if scales is None:
        _scale_rows(model)
    else:
        scales = _fix_scales(model, scales)
    model.topological_sort()
    onnx.save(model.model, target)
    return scales or {}


def _equalize_tables(model: OnnxModel) -> None:
    """Scale the columns of summed embedding tables to a maximum of 1, and multiply the sum by the scale.

    Each table is quantised with one scale. Without this step, a single outlying column, such as one of the
    first position, would determine it.
    """
    readers = Counter(name for node in model.nodes() if node.op_type != "Shape" for name in node.input)
    tables = {
        node.output[0]: table
        for node in model.get_nodes_by_op_type("Gather") + model.get_nodes_by_op_type("Slice")
        if (table := model.get_initializer(node.input[0])) is not None
        and readers[node.input[0]] == readers[node.output[0]] == 1
    }
    for add in model.get_nodes_by_op_type("Add"):
        added = [tables[name] for name in add.input if name in tables]
        if len(added) < 2 or any(table.data_type != TensorProto.FLOAT for table in added):
            continue
        values = [numpy_helper.to_array(table) for table in added]
        maximum = np.max([np.abs(rows).max(0) for rows in values], 0)
        maximum[maximum == 0] = 1
        for table, rows in zip(added, values, strict=True):
            table.CopyFrom(numpy_helper.from_array(rows / maximum, table.name))
        total = add.output[0]
        add.output[0] = f"{total}.level"
        _multiply(model, add.output[0], maximum, total)


def _smooth_activations(model: OnnxModel) -> None:
    """Scale outlying columns of the input of a product down, and the matching rows of its weights up.

    One scale quantises all activations of a product. The columns of a layer norm reach about
    3 |weight| + |bias|. The product changes by rounding errors only. After SmoothQuant (arXiv:2211.10438),
    with the weights of the layer norm in place of statistics over texts.
    """
    readers = model.input_name_to_nodes()
    for norm in model.get_nodes_by_op_type("LayerNormalization"):
        products = [
            node
            for node in readers.get(norm.output[0], [])
            if node.op_type == "MatMul" and node.input[0] == norm.output[0]
            if model.get_initializer(node.input[1]) is not None
        ]
        parameters = [model.get_initializer(name) for name in norm.input[1:]]
        if not products or None in parameters:
            continue
        weight, *bias = (np.abs(numpy_helper.to_array(parameter)) for parameter in parameters)
        reach = sum(bias, 3 * weight)
        median = np.median(reach)  # 0 if most columns are switched off
        shared = any(len(readers[node.input[1]]) > 1 for node in products)
        if shared or not median or reach.max() <= OUTLIER * median:
            continue
        scale = np.maximum(reach / (SCALED * median), 1)
        smoothed = f"{norm.output[0]}.down"
        _multiply(model, norm.output[0], 1 / scale, smoothed)
        for node in products:
            node.input[0] = smoothed
            weights = model.get_initializer(node.input[1])
            weights.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(weights) * scale[:, None], weights.name)
            )


def _multiply(model: OnnxModel, tensor: str, scale: NDArray[np.floating], product: str) -> None:
    """Add a node that multiplies each column of a tensor by a constant."""
    model.add_initializer(numpy_helper.from_array(scale.astype(np.float32), f"{product}.scale"))
    model.add_node(helper.make_node("Mul", [tensor, f"{product}.scale"], [product], f"{product}.scaled"))


def _quantize_sliced_tables(model: OnnxModel) -> None:
    """Store float tables that are sliced (position embeddings) in 8 bits; `quantize_dynamic` skips them."""
    readers = model.input_name_to_nodes()
    for node in model.get_nodes_by_op_type("Slice"):
        table = model.get_initializer(node.input[0])
        if table is None or table.data_type != TensorProto.FLOAT or len(readers[table.name]) > 1:
            continue
        values = numpy_helper.to_array(table)
        scale = np.float32(np.abs(values).max() / 127 or 1)
        table.CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), table.name))
        rows, scale_name = node.output[0], f"{table.name}.scale"
        node.output[0] = f"{rows}.int8"
        model.add_initializer(numpy_helper.from_array(scale, scale_name))
        model.add_node(
            helper.make_node("DequantizeLinear", [node.output[0], scale_name], [rows], f"{rows}.read")
        )


def _measured(model: OnnxModel, batches: Iterable[Batch]) -> dict[str, Scale]:
    """The scale of each activation that a product with weights reads: from its least to its largest value."""
    from onnxruntime import InferenceSession, SessionOptions

    read = {
        node.input[0]
        for kind in PRODUCTS
        for node in model.get_nodes_by_op_type(kind)
        if model.get_initializer(node.input[0]) is None and model.get_initializer(node.input[1]) is not None
    }
    watched = onnx.ModelProto()
    watched.CopyFrom(model.model)
    del watched.graph.output[:]
    ends = [(name, f"{name}.{end}", kind) for name in sorted(read) for end, kind in ENDS.items()]
    for name, end, kind in ends:
        watched.graph.node.append(helper.make_node(kind, [name], [end], end, keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, []))
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = np.array([session.run(None, dict(batch)) for batch in batches]).reshape(-1, len(ends))
    lows, highs = found[:, ::2].min(0, initial=0), found[:, 1::2].max(0, initial=0)
    steps = [float(np.float32(step or 1)) for step in (highs - lows) / 255]
    zeros = [round(-low / step) for low, step in zip(lows.tolist(), steps, strict=True)]
    return dict(zip(sorted(read), zip(steps, zeros, strict=True), strict=True))


def _fix_scales(model: OnnxModel, scales: Mapping[str, Scale]) -> dict[str, Scale]:
    """Quantise each activation with its constant scale; returns the scales that are used.

    onnxruntime fuses a product with its scale and bias only if the scale of the activations is computed. So
    the constant becomes part of the scale of the weights, and the largest value of the mask, which is always
    1, is the scale of the activations. Without the fusion, one text takes a tenth longer.
    """
    used: dict[str, Scale] = {}
    readers = model.input_name_to_nodes()
    model.add_node(helper.make_node("Cast", [MASK], [f"{ONE}.mask"], f"{ONE}.cast", to=TensorProto.FLOAT))
    model.add_node(helper.make_node("ReduceMax", [f"{ONE}.mask"], [ONE], f"{ONE}.max", keepdims=0))
    for quantized in model.get_nodes_by_op_type("DynamicQuantizeLinear"):
        rows, (codes, row_scale, _) = quantized.input[0], quantized.output
        scale, zero_point = used[rows] = scales[rows]
        zero = f"{rows}.codes.zero_point"
        constants = {f"{rows}.codes.scale": np.float32(scale), zero: np.uint8(zero_point)}
        for name, value in constants.items():
            model.add_initializer(numpy_helper.from_array(np.array(value), name))
        model.remove_node(quantized)
        model.add_node(helper.make_node("QuantizeLinear", [rows, *constants], [codes], f"{rows}.codes"))
        for product in readers[codes]:
            product.input[2] = zero
        for multiplied in readers[row_scale]:  # the scale of the activations times that of the weights
            (name,) = (name for name in multiplied.input if name != row_scale)
            multiplied.input[:] = [ONE, f"{multiplied.output[0]}.both"]
            both = numpy_helper.to_array(model.get_initializer(name)) * np.float32(scale)
            model.add_initializer(numpy_helper.from_array(both, multiplied.input[1]))
    model.prune_graph()
    return used


def _scale_rows(model: OnnxModel) -> None:
    """Quantise each row of activations with a scale of its own.

    A row is divided by its largest magnitude, quantised with a constant scale, multiplied, and the product is
    multiplied by the magnitude. So a row's result does not depend on the rows beside it.
    """
    readers = model.input_name_to_nodes()
    scale, zero, least = (
        numpy_helper.from_array(np.array(value, kind), f"per_token.{name}")
        for name, value, kind in (
            ("scale", 1 / 127, np.float32),
            ("zero_point", 128, np.uint8),
            ("least", 1e-12, np.float32),
        )
    )
    for constant in (scale, zero, least):
        model.add_initializer(constant)
    for quantized in model.get_nodes_by_op_type("DynamicQuantizeLinear"):
        rows, (codes, row_scale, _) = quantized.input[0], quantized.output
        magnitude, magnitudes, largest, unit = (
            f"{rows}.per_token.{name}" for name in ("abs", "max", "magnitude", "unit")
        )
        model.add_node(helper.make_node("Abs", [rows], [magnitude]))
        model.add_node(helper.make_node("ReduceMax", [magnitude], [magnitudes], axes=[-1], keepdims=1))
        model.add_node(helper.make_node("Max", [magnitudes, least.name], [largest]))
        model.add_node(helper.make_node("Div", [rows, largest], [unit]))
        model.add_node(helper.make_node("QuantizeLinear", [unit, scale.name, zero.name], [codes]))
        model.remove_node(quantized)
        for product in readers[codes]:
            (cast,) = readers[product.output[0]]
            (scaled,) = readers[cast.output[0]]
            (of_weights,) = (model.output_name_to_node()[x] for x in scaled.input if x != cast.output[0])
            (weight_scale,) = (name for name in of_weights.input if name != row_scale)
            result = scaled.output[0]
            product.input[2], of_weights.input[:] = zero.name, [weight_scale, scale.name]
            scaled.output[0] = f"{result}.per_token"
            model.add_node(helper.make_node("Mul", [f"{result}.per_token", largest], [result]))
