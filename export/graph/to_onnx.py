"""Exports a classifier to ONNX: dynamic batch and length, one output per head.

BERT encoders are built by `export.graph.bert`, packed networks by `export.graph.packed`; other encoders are
traced by optimum-onnx. This is the only module that imports optimum (optimum-onnx 0.1.0 needs
transformers < 4.58).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import onnx
from torch import Tensor, nn

from export.graph.bert import OPSET, PRODUCER, bert_graph, is_plain_bert
from export.graph.packed import packed_graph
from export.runtime.session import REQUIRED_INPUTS


class ExportableNetwork(Protocol):
    """A network that `to_onnx` can export: a module in eval mode, on the CPU."""

    family: ClassVar[str]
    config: Any  # a transformers config

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """The logits of all heads, `[batch, labels of all heads]`, for the named tensors REQUIRED_INPUTS."""
        ...

    def split(self, logits: Tensor) -> Mapping[str, Tensor]:
        """The logits of each head, `{head: [batch, labels]}`."""
        ...


class _HeadOutputs(nn.Module):
    """A network that returns its heads by output name, as optimum expects.

    optimum reads the input names off the signature of `forward`.
    """

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, names
        self.config = network.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        logits = self.network({"input_ids": input_ids, "attention_mask": attention_mask})
        return dict(zip(self.names, self.network.split(logits).values(), strict=True))


def to_onnx(network: ExportableNetwork, outputs: Sequence[str], path: Path, *, positions: int = 512) -> None:
    """Write a network to an ONNX file with float32 weights.

    The inputs are REQUIRED_INPUTS, int64 `[batch, length]`, and labels if the network is packed
    (`export.graph.packed.packed_graph`). The outputs are float32 `[batch, labels]`.

    Args:
        network: The network to export.
        outputs: Output name of each head, in order.
        path: File to write.
        positions: Maximum number of tokens of a text (packed: with a label); the graph may reject longer
            texts.

    Raises:
        ValueError: The numbers of outputs and heads differ.
    """
    if network.family == "packed":
        onnx.save(packed_graph(network, outputs, positions), path)
    elif is_plain_bert(network):
        onnx.save(bert_graph(network, outputs, positions), path)
    else:
        _trace(network, outputs, path)


def _trace(network: ExportableNetwork, outputs: Sequence[str], path: Path) -> None:
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.config import TextEncoderOnnxConfig
    from optimum.utils import NormalizedTextConfig

    # optimum matches outputs by prefix, so no name may be a prefix of another
    numbered = [f"head_{i:04d}_logits" for i in range(len(outputs))]

    class Config(TextEncoderOnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
        DEFAULT_ONNX_OPSET = OPSET

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {name: {0: "batch_size", 1: "sequence_length"} for name in REQUIRED_INPUTS}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {name: {0: "batch_size"} for name in numbered}

    module = _HeadOutputs(network, numbered).eval()
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer warnings about shapes that are constant here
        export(module, Config(network.config, task="feature-extraction"), path, opset=OPSET)
    model = onnx.load(path)
    names = dict(zip(numbered, outputs, strict=True))
    for value in model.graph.output:
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.producer_name, model.doc_string = PRODUCER, ""
    onnx.checker.check_model(model)
    onnx.save(model, path)
