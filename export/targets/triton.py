"""A Triton model repository: config.pbtxt from what the graph says of itself, and the graph.

Triton gets token ids and gives logits, so tokenizer.json, the calibration and a client that uses both
stand beside the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from export.bundle.manifest import MANIFEST, TOKENIZER, BundleError, Head, Manifest
from export.runtime.session import open_graph
from export.targets.writer import TargetError, check_names

MAX_BATCH = 64
TYPES = {
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(float)": "TYPE_FP32",
}


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write the repository: MODEL/config.pbtxt, MODEL/1/model.onnx, MODEL/labels_HEAD.txt, a client.

    Raises:
        TargetError: A name that cannot name a folder, or a label of several lines.
        BundleError: The graph has a type that no bundle has.
    """
    name = manifest.name
    check_names("the bundle's name", [name], (TOKENIZER, MANIFEST, "client.py", "README.md"))
    check_names("head", [head.name for head in manifest.heads])
    graph = bundle / manifest.variants[variant]
    model = folder / name
    (model / "1").mkdir(parents=True)
    shutil.copyfile(graph, model / "1" / "model.onnx")
    labels = {head.output: f"labels_{head.name}.txt" for head in manifest.heads}
    for head in manifest.heads:
        (model / labels[head.output]).write_text(_lines(head), encoding="utf-8")
    text = config(graph, name, manifest.heads, labels)
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    shutil.copyfile(bundle / TOKENIZER, folder / TOKENIZER)
    shutil.copyfile(bundle / MANIFEST, folder / MANIFEST)
    page = files("export.targets") / "templates" / "triton"
    (folder / "client.py").write_bytes((page / "client.py").read_bytes())
    readme = (page / "README.md").read_text(encoding="utf-8")
    readme = readme.replace("{{name}}", name).replace("{{max_length}}", str(manifest.max_length))
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return {"model": name, "max_batch_size": MAX_BATCH}


def config(graph: Path, name: str, heads: Sequence[Head], labels: dict[str, str]) -> str:
    """The text of config.pbtxt for an ONNX file.

    Args:
        graph: The file; the names and types of its inputs and of the heads' outputs are its own.
        name: Of the model.
        heads: Of the bundle, in order; other outputs of the graph are not served.
        labels: The file of labels of each output.
    """
    session = open_graph(graph)
    outputs = {node.name: node for node in session.get_outputs()}
    inputs = [_tensor(node.name, _type(graph, node), -1) for node in session.get_inputs()]
    found = [
        _tensor(head.output, _type(graph, outputs[head.output]), len(head.labels), labels[head.output])
        for head in heads
    ]
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH}",
        f"input [\n{_joined(inputs)}\n]",
        f"output [\n{_joined(found)}\n]",
        "dynamic_batching { max_queue_delay_microseconds: 200 }",
        "instance_group [\n  { count: 1 kind: KIND_CPU }\n]",
        "version_policy { latest { num_versions: 1 } }",
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, kind: str, width: int, labels: str | None = None) -> str:
    file = f" label_filename: {_quoted(labels)}" if labels else ""
    return f"  {{ name: {_quoted(name)} data_type: {kind} dims: [ {width} ]{file} }}"


def _joined(tensors: list[str]) -> str:
    return ",\n".join(tensors)


def _type(graph: Path, node: Any) -> str:
    if node.type not in TYPES:
        raise BundleError(f"{graph}: {node.name} is {node.type}, expected one of {sorted(TYPES)}")
    return TYPES[node.type]


def _lines(head: Head) -> str:
    for label in head.labels:
        if len(label.splitlines()) != 1:
            raise TargetError(f"head {head.name!r}: label {label!r} is not one line (rename it for Triton)")
    return "".join(f"{label}\n" for label in head.labels)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
