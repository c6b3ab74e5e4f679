"""A classifier as ONNX: dynamic batch and length, one output a head.

BERT is laid out by `bert_graph`, every other encoder traced through optimum-onnx. The only module that
touches optimum; optimum-onnx 0.1.0 needs transformers < 4.58.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from export.graph.bert import OPSET, bert_graph, is_plain_bert
from export.runtime.session import INPUTS


class _Outputs(nn.Module):
    """A network whose `forward` returns its heads by output name, as the exporter wants it."""

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, names
        self.config = network.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        parts = self.network.split(self.network({"input_ids": input_ids, "attention_mask": attention_mask}))
        return dict(zip(self.names, parts.values(), strict=True))


def to_onnx(
    network: Any, outputs: Sequence[str], path: Path, *, positions: int = 512, opset: int = OPSET
) -> None:
    """Write a network as one ONNX file of float32 weights.

    Args:
        network: A module with `.config` (of transformers), `forward(input_ids, attention_mask)` and
            `split(logits) -> {head: logits}`; in eval mode, on the CPU.
        outputs: A name for each head, in order.
        path: The file to write.
        positions: Tokens that a text has at most; the graph may refuse more.
        opset: Of ONNX.
    """
    if opset >= OPSET and is_plain_bert(network):
        onnx.save(bert_graph(network, outputs, positions, opset), path)
    else:
        _traced(network, outputs, path, opset)


def _traced(network: Any, outputs: Sequence[str], path: Path, opset: int) -> None:
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.config import TextEncoderOnnxConfig
    from optimum.utils import NormalizedTextConfig

    # The exporter takes outputs by prefix, so none may begin another: numbers of one width do not.
    numbered = [f"head_{i:04d}_logits" for i in range(len(outputs))]

    class Config(TextEncoderOnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
        DEFAULT_ONNX_OPSET = opset

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return OrderedDict((n, {0: "batch_size", 1: "sequence_length"}) for n in INPUTS[:2])

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return OrderedDict((n, {0: "batch_size"}) for n in numbered)

    module = _Outputs(network, numbered).eval()
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of shapes that are constant here
        export(module, Config(network.config, task="feature-extraction"), path, opset=opset)
    _rename(path, dict(zip(numbered, outputs, strict=True)))


def _rename(path: Path, names: dict[str, str]) -> None:
    model = onnx.load(path)
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    model.producer_name, model.doc_string = "tinyheads", ""
    onnx.checker.check_model(model)
    onnx.save(model, path)
