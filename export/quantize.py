"""An int8 copy of an ONNX classifier: weights of products and embeddings in 8 bits.

Products of weights become integer products with activations quantised on the fly; embeddings, most of
a tiny model's bytes, are stored in 8 bits. Products of two activations (attention) stay in float32.
"""

from __future__ import annotations

import logging
from pathlib import Path


def quantize_int8(source: Path, target: Path) -> None:
    """Write the int8 copy of `source` as `target`, with the same inputs and outputs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()  # where onnxruntime tells of shapes that no user can act on
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(before)
