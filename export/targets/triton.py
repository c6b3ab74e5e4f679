"""Exports a bundle as a Triton model repository: the graph, and a config.pbtxt that describes it.

Triton takes token ids and returns logits. So tokenizer.json, the calibration, and a client that uses both are
written next to the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.bundle.manifest import MANIFEST, TOKENIZER, BundleError, Head, Manifest
from export.runtime.session import open_graph
from export.targets.writer import check_names, copy_templates

MAX_BATCH = 64
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(int32)": "TYPE_INT32", "tensor(float)": "TYPE_FP32"}


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write MODEL/config.pbtxt, MODEL/1/model.onnx, MODEL/labels_HEAD.txt and a client.

    Raises:
        TargetError: A name cannot name a folder.
        BundleError: The graph has an unsupported type.
    """
    name = manifest.name
    check_names("the bundle's name", [name], (TOKENIZER, MANIFEST, "client.py", "README.md"))
    check_names("head", [head.name for head in manifest.heads])
    graph, model = bundle / manifest.variants[variant], folder / name
    (model / "1").mkdir(parents=True)
    shutil.copyfile(graph, model / "1" / "model.onnx")
    labels = {head.output: f"labels_{head.name}.txt" for head in manifest.heads}
    for head in manifest.heads:
        (model / labels[head.output]).write_text("\n".join([*head.labels, ""]), encoding="utf-8")
    text = config(graph, name, manifest.heads, labels)
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    for file in (TOKENIZER, MANIFEST):
        shutil.copyfile(bundle / file, folder / file)
    copy_templates("triton", folder, name=name, max_length=manifest.max_length)
    return {"model": name, "max_batch_size": MAX_BATCH}


def config(graph: Path, name: str, heads: Sequence[Head], labels: Mapping[str, str]) -> str:
    """The text of config.pbtxt for an ONNX file.

    Args:
        graph: The file, whose inputs and outputs are described.
        name: Name of the model.
        heads: Heads in order; other outputs of the graph are not served.
        labels: Name of the labels file of each output.

    Raises:
        BundleError: The graph has an unsupported type.
    """
    session = open_graph(graph.read_bytes(), graph)
    outputs = {node.name: node for node in session.get_outputs()}
    served = [(outputs[head.output], len(head.labels)) for head in heads]

    def tensor(node: Any, width: int) -> str:
        if node.type not in TYPES:
            raise BundleError(f"{graph}: {node.name} is {node.type}, expected one of {sorted(TYPES)}")
        file = f" label_filename: {_quote(labels[node.name])}" if node.name in labels else ""
        return f"  {{ name: {_quote(node.name)} data_type: {TYPES[node.type]} dims: [ {width} ]{file} }}"

    lines = [
        f"name: {_quote(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH}",
        "input [",
        ",\n".join(tensor(node, -1) for node in session.get_inputs()),
        "]\noutput [",
        ",\n".join(tensor(node, width) for node, width in served),
        "]\ndynamic_batching { max_queue_delay_microseconds: 200 }",
        "instance_group [\n  { count: 1 kind: KIND_CPU }\n]",
        "version_policy { latest { num_versions: 1 } }",
    ]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
