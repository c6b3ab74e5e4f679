"""The open inference protocol v2: a bundle as tensors.

In goes `text`, BYTES; out come, for each head, HEAD, BYTES, and HEAD.score and HEAD.probabilities, FP32.
A single_label head gives one label and its score a text. A multi_label head gives as many as it has
labels: those at or over their thresholds, best first, then "" with score 0. Probabilities are of all
labels, in the order that the metadata tells, and are given where asked for by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

from export.bundle.manifest import SINGLE_LABEL, Head
from export.runtime.postprocess import Answers
from export.runtime.probabilities import Floats, probabilities
from export.serving.errors import wrong
from export.serving.predict_api import check_texts, json_object, kind, unknown
from export.serving.settings import Settings

INPUT = "text"


@dataclass(frozen=True)
class Output:
    """A tensor of the answer: of which head, and which part of what that says."""

    head: Head
    part: str

    @property
    def name(self) -> str:
        """What a request calls it."""
        return self.head.name if self.part == "label" else f"{self.head.name}.{self.part}"

    @property
    def datatype(self) -> str:
        """Of the protocol."""
        return "BYTES" if self.part == "label" else "FP32"

    def shape(self, texts: int) -> list[int]:
        """[texts] or [texts, labels]."""
        flat = self.head.kind == SINGLE_LABEL and self.part != "probabilities"
        return [texts] if flat else [texts, len(self.head.labels)]

    def values(self, logits: Floats) -> list[list[Any]]:
        """The elements of each row."""
        if self.part == "probabilities":
            found: list[list[Any]] = probabilities(logits, self.head).tolist()
            return found
        given = [row[self.head.name] for row in Answers([self.head])(logits, None, False)]
        if self.head.kind == SINGLE_LABEL:
            return [[one[self.part]] for one in given]
        filler, width = "" if self.part == "label" else 0.0, len(self.head.labels)
        return [[one[self.part] for one in row] + [filler] * (width - len(row)) for row in given]


class Tensors:
    """Answers as elements of output tensors."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self.outputs = outputs

    def answer(self, logits: Mapping[str, Floats]) -> list[tuple[list[Any], ...]]:
        """The elements of each output to each row of the logits."""
        return list(zip(*(output.values(logits[output.head.name]) for output in self.outputs), strict=True))

    def document(self, rows: Sequence[tuple[list[Any], ...]]) -> list[dict[str, Any]]:
        """The `outputs` of a response."""
        return [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": output.shape(len(rows)),
                "data": list(chain.from_iterable(row[column] for row in rows)),
            }
            for column, output in enumerate(self.outputs)
        ]


@dataclass(frozen=True)
class Inference:
    """The body of an infer request, checked as far as it can be without a bundle."""

    texts: list[str]
    outputs: tuple[str, ...] | None
    id: str | None


def outputs_of(heads: Sequence[Head]) -> dict[str, Output]:
    """Every output of a bundle by its name, in the order of the heads."""
    every = [Output(head, part) for head in heads for part in ("label", "score", "probabilities")]
    return {output.name: output for output in every}


def metadata(name: str, version: str, heads: Sequence[Head]) -> dict[str, Any]:
    """What `/v2/models/NAME` tells; an output's parameters tell its head's kind and labels."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": output.shape(-1),
                "parameters": {"kind": output.head.kind, "labels": list(output.head.labels)},
            }
            for output in outputs_of(heads).values()
        ],
    }


def read_infer(body: bytes, settings: Settings) -> Inference:
    """What an infer request asks. Raises: Refusal."""
    data = json_object(body)
    inputs, name = data.get("inputs"), data.get("id")
    if name is not None and type(name) is not str:
        raise wrong(f"id: must be a string, got {kind(name)}")
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise wrong(f"inputs: must be a list of one tensor, {INPUT!r}")
    texts = _texts(inputs[0])
    check_texts(texts, settings, "inputs: data")
    asked = data.get("outputs")
    if asked is None or asked == []:
        return Inference(texts, None, name)
    fine = isinstance(asked, list) and all(isinstance(x, dict) and type(x.get("name")) is str for x in asked)
    if not fine:
        raise wrong('outputs: must be a list of objects with a "name"')
    return Inference(texts, tuple(dict.fromkeys(one["name"] for one in asked)), name)


def _texts(tensor: dict[str, Any]) -> list[Any]:
    """The elements of the input tensor. Raises: Refusal."""
    if tensor.get("name") != INPUT:
        given = tensor.get("name")
        raise wrong("inputs: " + unknown("input", given if type(given) is str else kind(given), [INPUT]))
    if tensor.get("datatype") != "BYTES":
        raise wrong('inputs: datatype: must be "BYTES"')
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise wrong("inputs: shape: must be [n] or [n, 1]")
    if len(shape) != 1 and (len(shape) != 2 or shape[1] != 1):
        raise wrong("inputs: shape: must be [n] or [n, 1]")
    if not isinstance(data, list):
        raise wrong(f"inputs: data: must be a list of strings, got {kind(data)}")
    if len(shape) == 2 and data and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    if len(data) != prod(shape):
        raise wrong(f"inputs: data: has {len(data)} elements, the shape has {prod(shape)}")
    return data
