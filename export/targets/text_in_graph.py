"""One ONNX file that takes raw strings: the tokenizer, the network and the calibration in one graph.

It runs wherever onnxruntime and onnxruntime-extensions do, in any language. Before it is kept it answers a
set of texts beside the bundle's own tokenizer and graph, and is refused where an ordinary one differs.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from tokenizers import Tokenizer

from export.bundle.manifest import MANIFEST, SINGLE_LABEL, TOKENIZER, Head, Manifest
from export.graph.gates import GateError
from export.runtime.probabilities import probabilities
from export.runtime.session import open_graph, run_graph
from export.runtime.tokenizer import open_tokenizer
from export.targets.text_ops import DOMAIN, TextNodes, read_text
from export.targets.wordpiece_tables import spelling_of
from export.targets.writer import check_names, copy_shipped

INPUT = "text"
GRAPH = "model.onnx"
TOLERANCE = 0.02  # of a probability: where int8 rounds an activation the other way, the third digit moves


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write model.onnx, manifest.json, an example and a README.

    Raises:
        TargetError: The tokenizer is not BERT's WordPiece, or a head's name cannot name an output.
        GateError: An ordinary text is read or answered otherwise than by the bundle.
    """
    operators()
    tokenizer = open_tokenizer(bundle / TOKENIZER, manifest.max_length)
    model = onnx.load(bundle / manifest.variants[variant])
    whole = with_text(model, tokenizer, manifest, str(bundle))
    onnx.checker.check_model(whole)
    onnx.save(whole, folder / GRAPH)
    shutil.copyfile(bundle / MANIFEST, folder / MANIFEST)
    copy_shipped("text-in-graph", folder)
    return {"parity": check(bundle, manifest, variant, folder / GRAPH, tokenizer)}


def with_text(model: ModelProto, tokenizer: Tokenizer, manifest: Manifest, where: str) -> ModelProto:
    """A copy of a graph that takes `text`, string [batch], in place of token ids.

    Its outputs are the heads' logits, `probabilities_HEAD`, and of a single_label head `label_HEAD` (string
    [batch]), of a multi_label one `applies_HEAD` (bool [batch, labels]); and `input_ids`, as it read them.

    Raises:
        TargetError: The tokenizer is not BERT's WordPiece; beginning with `where`.
    """
    found = ModelProto()
    found.CopyFrom(model)
    graph, nodes = found.graph, TextNodes()
    spelling = spelling_of(tokenizer, where)
    ids, mask = read_text(nodes, INPUT, spelling, manifest.max_length, manifest.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": mask}
    (inputs["token_type_ids"],) = nodes.add("Sub", mask, mask)
    for value in graph.input:
        nodes.nodes.append(helper.make_node("Identity", [inputs[value.name]], [value.name]))
    wanted = {head.output for head in manifest.heads}
    kept = [value for value in graph.output if value.name in wanted]
    inner = [*graph.node]
    nodes.nodes += inner
    for head in manifest.heads:
        kept += _answer(nodes, head)
    kept.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"]))
    del graph.input[:], graph.output[:], graph.node[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.STRING, ["batch"]))
    graph.output.extend(kept)
    graph.node.extend(nodes.nodes)
    graph.initializer.extend(nodes.constants)
    if all(each.domain != DOMAIN for each in found.opset_import):
        found.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return found


def _answer(nodes: TextNodes, head: Head) -> list[Any]:
    """Adds the head's calibrated probabilities and its answer; returns their descriptions."""
    check_names("head", [head.name])
    name, single = head.name, head.kind == SINGLE_LABEL
    info, width = helper.make_tensor_value_info, len(head.labels)
    shares = f"probabilities_{name}"
    scale = nodes.constant(np.array([1 / head.temperature], np.float32))
    (scaled,) = nodes.add("Mul", head.output, scale)
    (found,) = nodes.add("Softmax", scaled, axis=-1) if single else nodes.add("Sigmoid", scaled)
    nodes.nodes.append(helper.make_node("Identity", [found], [shares]))
    described = [info(shares, TensorProto.FLOAT, ["batch", width])]
    if single:
        (best,) = nodes.add("ArgMax", head.output, axis=-1, keepdims=0)
        (label,) = nodes.add("Gather", nodes.constant(list(head.labels)), best)
        nodes.nodes.append(helper.make_node("Identity", [label], [f"label_{name}"]))
        return [*described, info(f"label_{name}", TensorProto.STRING, ["batch"])]
    least = np.array(head.thresholds or (0.5,) * width, np.float32)
    (below,) = nodes.add("Less", found, nodes.constant(least))
    (over,) = nodes.add("Not", below)
    nodes.nodes.append(helper.make_node("Identity", [over], [f"applies_{name}"]))
    return [*described, info(f"applies_{name}", TensorProto.BOOL, ["batch", width])]


def operators() -> str:
    """The library of operators that the graph needs, of the installed onnxruntime-extensions.

    It is found, not imported: that would import transformers wherever it is installed.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    spec = importlib.util.find_spec("onnxruntime_extensions")
    places = (spec.submodule_search_locations if spec else None) or []
    for place in places:
        for library in Path(place).glob("_extensions_pydll*"):
            if library.suffix != ".pyi":
                return str(library)
    raise ModuleNotFoundError("No module named 'onnxruntime_extensions'", name="onnxruntime_extensions")


def check(
    bundle: Path, manifest: Manifest, variant: str, graph: Path, tokenizer: Tokenizer
) -> dict[str, Any]:
    """How the graph reads and answers the built-in texts, beside the bundle's tokenizer and graph.

    Returns:
        The number of ordinary and of odd texts, and the odd ones whose ids differ.

    Raises:
        GateError: An ordinary text has other ids, or another answer.
    """
    probes = json.loads((files("export.targets") / "templates" / "probes.json").read_text(encoding="utf-8"))
    whole = open_graph(bundle / manifest.variants[variant])
    inputs = [node.name for node in whole.get_inputs()]
    text = open_graph(graph, operators())
    names = [node.name for node in text.get_outputs()]
    for each in probes["ordinary"]:
        expected = tokenizer.encode(each).ids
        found = dict(zip(names, text.run(names, {INPUT: _strings([each])}), strict=True))
        if (ids := found["input_ids"][0].tolist()) != expected:
            raise GateError(f"text-in-graph: {each!r} is read as {ids}, not as {expected}")
        for head in manifest.heads:
            (logits,) = run_graph(whole, [head.output], inputs, [expected], manifest.pad_token_id)
            shares = probabilities(logits, head)
            gap = float(np.abs(found[f"probabilities_{head.name}"] - shares).max())
            if not gap <= TOLERANCE:
                raise GateError(f"text-in-graph: head {head.name!r} differs by {gap:.1e} on {each!r}")
    (rows,) = text.run(["input_ids"], {INPUT: _strings(probes["odd"])})
    width, pad = rows.shape[1], manifest.pad_token_id
    padded = [(tokenizer.encode(each).ids + [pad] * width)[:width] for each in probes["odd"]]
    pairs = zip(probes["odd"], rows.tolist(), padded, strict=True)
    other = [each for each, row, expected in pairs if row != expected]
    return {"ordinary": len(probes["ordinary"]), "odd": len(probes["odd"]), "odd_that_differ": other}


def _strings(texts: list[str]) -> Any:
    return np.array(texts, object)
