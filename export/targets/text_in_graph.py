"""Exports a bundle as one ONNX file from strings to labels: tokenizer, network and calibration.

The file runs wherever onnxruntime and onnxruntime-extensions do, in any language. Its token ids and
probabilities are compared with those of the bundle on a set of texts.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from tokenizers import Tokenizer

from export.bundle.files import read_file
from export.bundle.manifest import MANIFEST, PROBABILITY, SINGLE_LABEL, TOKENIZER, Head, Manifest
from export.graph.builder import GraphBuilder
from export.graph.gates import GateError
from export.runtime.postprocess import columns
from export.runtime.probabilities import probabilities
from export.runtime.session import IDS, INPUTS, open_graph, run_separately
from export.runtime.tokenizer import open_tokenizer
from export.targets.text_ops import DOMAIN, add_tokenizer
from export.targets.wordpiece_tables import wordpiece_tables
from export.targets.writer import check_names, copy_templates, render

INPUT = "text"
GRAPH = "model.onnx"
TOLERANCE = 0.02  # of a probability; int8 rounding changes the third digit


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write model.onnx, manifest.json, an example and a README.

    Raises:
        TargetError: The tokenizer is not BERT's WordPiece, or a head's name cannot name an output.
        GateError: The token ids or probabilities of an ordinary text differ from those of the bundle.
    """
    operators()
    tokenizer = open_tokenizer(
        read_file(bundle, manifest, TOKENIZER), manifest.max_length, bundle / TOKENIZER
    )
    model = onnx.load_model_from_string(read_file(bundle, manifest, manifest.variants[variant]))
    whole = with_tokenizer(model, tokenizer, manifest, str(bundle))
    onnx.checker.check_model(whole)
    onnx.save(whole, folder / GRAPH)
    shutil.copyfile(bundle / MANIFEST, folder / MANIFEST)
    copy_templates("text-in-graph", folder)
    return {"parity": check(bundle, manifest, variant, folder / GRAPH, tokenizer)}


def with_tokenizer(model: ModelProto, tokenizer: Tokenizer, manifest: Manifest, where: str) -> ModelProto:
    """A copy of a graph that takes `text`, string `[batch]`, instead of token ids.

    The outputs are the logits of the heads; `probabilities_HEAD`; `label_HEAD`, string `[batch]`, of a
    single_label head, empty where it abstains; `applies_HEAD`, bool `[batch, labels]`, of a multi_label
    head; and the token ids, `input_ids`.

    Raises:
        TargetError: The tokenizer is not BERT's WordPiece; the message begins with `where`.
    """
    whole = ModelProto()
    whole.CopyFrom(model)
    graph, builder, info = whole.graph, GraphBuilder("text/"), helper.make_tensor_value_info
    tables = wordpiece_tables(tokenizer, where)
    ids, mask = add_tokenizer(builder, INPUT, tables, manifest.max_length, manifest.pad_token_id)
    tensors = dict(zip(INPUTS, (ids, mask, builder.node("Sub", mask, mask)), strict=True))
    for value in graph.input:
        builder.node("Identity", tensors[value.name], name=value.name)
    builder.nodes += graph.node
    heads = {head.output for head in manifest.heads}
    outputs = [value for value in graph.output if value.name in heads]
    for head in manifest.heads:
        outputs += _add_answer(builder, head)
    outputs.append(info(IDS, TensorProto.INT64, ["batch", "length"]))
    text = info(INPUT, TensorProto.STRING, ["batch"])
    initializers = [*graph.initializer, *builder.initializers()]
    graph.CopyFrom(helper.make_graph(builder.nodes, graph.name, [text], outputs, initializers))
    if all(opset.domain != DOMAIN for opset in whole.opset_import):
        whole.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return whole


def _add_answer(builder: GraphBuilder, head: Head) -> list[ValueInfoProto]:
    """Add the calibrated probabilities and the answer of a head; returns these outputs."""
    check_names("head", [head.name])
    info, width = helper.make_tensor_value_info, len(head.labels)
    scores, label, applies = (f"{kind}_{head.name}" for kind in ("probabilities", "label", "applies"))
    scale = builder.constant(np.array([1 / head.temperature], np.float32))
    scaled = builder.node("Mul", head.output, scale)
    described = [info(scores, TensorProto.FLOAT, ["batch", width])]
    if head.kind == SINGLE_LABEL:
        builder.node("Softmax", scaled, name=scores, axis=-1)
        best = builder.node("ArgMax", head.output, axis=-1, keepdims=0)
        labels = builder.constant(np.array(head.labels, object))
        if rule := head.abstain:
            reduce = "ReduceMax" if rule.score == PROBABILITY else "ReduceLogSumExp"
            judged = builder.node(reduce, scores if reduce == "ReduceMax" else scaled, axes=[-1], keepdims=0)
            threshold = builder.constant(np.array(rule.threshold, np.float32))
            own = builder.node("Gather", labels, best)
            none = builder.constant(np.array([""], object))
            builder.node("Where", builder.node("Less", judged, threshold), none, own, name=label)
        else:
            builder.node("Gather", labels, best, name=label)
        return [*described, info(label, TensorProto.STRING, ["batch"])]
    builder.node("Sigmoid", scaled, name=scores)
    thresholds = builder.constant(np.array(head.limits, np.float32))
    builder.node("Not", builder.node("Less", scores, thresholds), name=applies)
    return [*described, info(applies, TensorProto.BOOL, ["batch", width])]


def operators() -> str:
    """The path of the operator library of the installed onnxruntime-extensions.

    The package is located without an import, which would import transformers if that is installed.

    Raises:
        ModuleNotFoundError: onnxruntime-extensions is not installed.
    """
    spec = importlib.util.find_spec("onnxruntime_extensions")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for library in Path(folder).glob("_extensions_pydll*"):
            if library.suffix != ".pyi":
                return str(library)
    raise ModuleNotFoundError("No module named 'onnxruntime_extensions'", name="onnxruntime_extensions")


def check(
    bundle: Path, manifest: Manifest, variant: str, graph: Path, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Compare the token ids and probabilities of the built-in texts with those of the bundle.

    Returns:
        The numbers of ordinary and of odd texts, and the odd texts whose ids differ.

    Raises:
        GateError: The ids or the probabilities of an ordinary text differ.
    """
    texts: dict[str, list[str]] = json.loads(render("probes.json"))
    ordinary, odd = texts["ordinary"], texts["odd"]
    session = open_graph(graph.read_bytes(), graph, operators=operators())
    names = [node.name for node in session.get_outputs()]
    expected = [tokenizer.encode(text).ids for text in ordinary]
    source = manifest.variants[variant]
    data = read_file(bundle, manifest, source)
    logits = run_separately(data, bundle / source, manifest, expected)
    for row, (text, ids) in enumerate(zip(ordinary, expected, strict=True)):
        found = dict(zip(names, session.run(names, {INPUT: np.array([text], object)}), strict=True))
        if (found_ids := found[IDS][0].tolist()) != ids:
            raise GateError(f"text-in-graph: {text!r} has token ids {found_ids}, expected {ids}")
        for head, part in zip(manifest.heads, columns(manifest.heads).values(), strict=True):
            scores = probabilities(logits[row : row + 1, part], head)
            difference = float(np.abs(found[f"probabilities_{head.name}"] - scores).max())
            if not difference <= TOLERANCE:
                raise GateError(f"text-in-graph: head {head.name!r} differs by {difference:.1e} on {text!r}")
    (rows,) = session.run([IDS], {INPUT: np.array(odd, object)})
    padding = [manifest.pad_token_id] * rows.shape[1]
    padded = [(tokenizer.encode(text).ids + padding)[: rows.shape[1]] for text in odd]
    differing = [text for text, row, ids in zip(odd, rows.tolist(), padded, strict=True) if row != ids]
    return {"ordinary": len(ordinary), "odd": len(odd), "odd_that_differ": differing}
