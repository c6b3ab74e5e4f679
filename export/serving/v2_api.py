"""The open inference protocol v2: texts as an input tensor, predictions as output tensors.

The input is `text`, BYTES. Each head has three outputs: HEAD (BYTES), HEAD.score and HEAD.probabilities
(FP32). A single_label head returns one label and one score per text; where it abstains, the label is "" and
the score is the one below its threshold. A multi_label head returns the labels at or above their thresholds,
best first, padded with "" and score 0 to the number of labels. Probabilities are in the order of the labels
in the metadata and are returned only when requested by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from export.bundle.manifest import SINGLE_LABEL, Head
from export.runtime.probabilities import Floats, probabilities
from export.serving.request import as_json, check_name, check_texts, unprocessable
from export.serving.settings import Settings

INPUT = "text"


@dataclass(frozen=True)
class OutputTensor:
    """One output: a head and its `label`, `score` or `probabilities`."""

    head: Head
    part: str

    @property
    def name(self) -> str:
        """Name of the tensor in requests and responses."""
        return self.head.name if self.part == "label" else f"{self.head.name}.{self.part}"

    def description(self, texts: int) -> dict[str, Any]:
        """Name, datatype and shape, [texts] or [texts, labels]."""
        flat = self.head.kind == SINGLE_LABEL and self.part != "probabilities"
        shape = [texts] if flat else [texts, len(self.head.labels)]
        return {"name": self.name, "datatype": "BYTES" if self.part == "label" else "FP32", "shape": shape}

    def tensor(self, logits: Floats, predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The tensor of a response, from the logits of the head [texts, labels] and the predictions."""
        if self.part == "probabilities":
            data = probabilities(logits, self.head).ravel().tolist()
        elif self.head.kind == SINGLE_LABEL:
            data = [self._cell(prediction[self.head.name]) for prediction in predictions]
        else:
            data, padding = [], ["" if self.part == "label" else 0.0] * len(self.head.labels)
            for prediction in predictions:
                values = [self._cell(label) for label in prediction[self.head.name]]
                data += values + padding[len(values) :]
        return {**self.description(len(predictions)), "data": data}

    def _cell(self, label: dict[str, Any]) -> Any:
        """The label or the score of an answer; a BYTES tensor has labels as strings, "" for none."""
        if self.part != "label":
            return label[self.part]
        return "" if label["label"] is None else str(label["label"])


@dataclass(frozen=True)
class InferRequest:
    """The body of an infer request. Names of outputs are not checked yet."""

    texts: list[str]
    outputs: list[str] | None
    id: str | None


def output_tensors(heads: Sequence[Head]) -> dict[str, OutputTensor]:
    """All outputs of a bundle by name, in the order of the heads."""
    outputs = (OutputTensor(head, part) for head in heads for part in ("label", "score", "probabilities"))
    return {output.name: output for output in outputs}


def model_metadata(name: str, version: str, outputs: Sequence[OutputTensor]) -> dict[str, Any]:
    """The response of `/v2/models/NAME`. Output parameters hold the kind and the labels of the head."""
    described = [
        {**output.description(-1), "parameters": {"kind": output.head.kind, "labels": output.head.labels}}
        for output in outputs
    ]
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": described,
    }


def parse_infer(data: dict[str, Any], settings: Settings) -> InferRequest:
    """The checked body of an infer request.

    Raises:
        RequestError: 422 for an invalid value.
    """
    request_id, inputs, outputs = data.get("id"), data.get("inputs"), data.get("outputs")
    if request_id is not None and not isinstance(request_id, str):
        raise unprocessable(f"id: must be a string, got {as_json(request_id)}")
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise unprocessable(f"inputs: must be a list of one tensor, {INPUT!r}")
    texts = check_texts(_elements(inputs[0]), settings, "inputs: data")
    if outputs is None or outputs == []:
        return InferRequest(texts, None, request_id)
    if not isinstance(outputs, list) or not all(
        isinstance(output, dict) and isinstance(output.get("name"), str) for output in outputs
    ):
        raise unprocessable('outputs: must be a list of objects with a "name"')
    return InferRequest(texts, list(dict.fromkeys(output["name"] for output in outputs)), request_id)


def _elements(tensor: dict[str, Any]) -> list[Any]:
    """The flat elements of the input tensor."""
    name, shape, data = tensor.get("name"), tensor.get("shape"), tensor.get("data")
    check_name("inputs", "input", name if isinstance(name, str) else as_json(name), [INPUT])
    if tensor.get("datatype") != "BYTES":
        raise unprocessable('inputs: datatype: must be "BYTES"')
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise unprocessable("inputs: shape: must be [n] or [n, 1]")
    if not shape or shape[1:] not in ([], [1]):
        raise unprocessable("inputs: shape: must be [n] or [n, 1]")
    if not isinstance(data, list):
        raise unprocessable(f"inputs: data: must be a list of strings, got {as_json(data)}")
    if len(shape) == 2 and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    if len(data) != prod(shape):
        raise unprocessable(f"inputs: data: has {len(data)} elements, the shape has {prod(shape)}")
    return data
