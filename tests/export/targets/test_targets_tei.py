"""The export for text-embeddings-inference: files of each head, and the logits of extracted heads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle.files import read_bundle, write_bundle
from export.runtime.classifier import Classifier
from export.targets.extract_head import extract_head
from export.targets.registry import export_bundle
from export.targets.writer import TargetError


@pytest.fixture(scope="module", params=["int8", "fp32"])
def exported(request, exportable, tmp_path_factory):
    out = tmp_path_factory.mktemp("tei") / "out"
    return out, export_bundle(exportable, "tei", out, variant=request.param)


def test_logits_of_a_head_match_the_bundle(exported, exportable, texts):
    out, record = exported
    classifier = Classifier.load(exportable, variant=record["variant"], threads=1)
    for head in classifier.manifest.heads:
        for text in texts:
            logits = served(out / head.name, text)
            whole = classifier.logits([text], [head.name])[head.name][0]
            np.testing.assert_allclose(logits, whole / head.temperature, rtol=1e-5, atol=1e-5)
            share = softmax(logits) if head.kind == "single_label" else 1 / (1 + np.exp(-logits))
            np.testing.assert_allclose(share, classifier.probabilities(whole, head.name), atol=1e-5)


def test_only_the_heads_own_columns_are_left(exported):
    out, record = exported
    assert {name: value["narrowed"] for name, value in record["heads"].items()} == {
        "intent": True,
        "flags": True,
    }
    for head, labels in {"intent": 3, "flags": 2}.items():
        graph = onnx.load(out / head / "onnx" / "model.onnx").graph
        assert [value.name for value in graph.output] == ["logits"]
        shapes = [tuple(tensor.dims) for tensor in graph.initializer]
        assert (8, labels) in shapes and (8, 5) not in shapes and (5,) not in shapes
        read = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= read
        assert not [node for node in graph.node if node.op_type in ("Split", "Slice")]


def test_the_folder_has_what_the_server_requires(exported):
    out, _ = exported
    for head, labels in {"intent": ["track", "cancel", "thank"], "flags": ["urgent", "späte"]}.items():
        config = json.loads((out / head / "config.json").read_text("utf-8"))
        # the fields that the router and the ONNX backend of the server parse
        assert [name.endswith("Classification") for name in config["architectures"]] == [True]
        types = {"model_type": str, "max_position_embeddings": int, "pad_token_id": int}
        types |= {"hidden_size": int, "num_hidden_layers": int}
        assert {name: type(config[name]) for name in types} == types
        assert config["id2label"] == {str(i): label for i, label in enumerate(labels)}
        assert config["label2id"] == {label: i for i, label in enumerate(labels)}
        assert json.loads((out / head / "sentence_bert_config.json").read_text()) == {"max_seq_length": 12}
        assert (out / head / "tokenizer.json").is_file() and (out / head / "tokenizer_config.json").is_file()
        readme = (out / head / "README.md").read_text("utf-8")
        assert "{{" not in readme and ("raw_scores" in readme) == (head == "flags")
    assert '"späte": 0.7' in (out / "flags" / "README.md").read_text("utf-8")


def test_sizes_under_other_names(exportable, tmp_path):
    config = {"model_type": "distilbert", "dim": 8, "n_layers": 1, "max_position_embeddings": 64}
    with_config(exportable, tmp_path / "bundle", config)
    export_bundle(tmp_path / "bundle", "tei", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "intent" / "config.json").read_text())
    assert (written["hidden_size"], written["num_hidden_layers"]) == (8, 1)
    assert written["architectures"] == ["DistilBertForSequenceClassification"]
    with_config(exportable, tmp_path / "bundle", {"model_type": "bert"})
    with pytest.raises(TargetError, match=r"config\.json: has no hidden_size"):
        export_bundle(tmp_path / "bundle", "tei", tmp_path / "out")


def test_a_head_name_cannot_leave_the_folder(exportable, tmp_path):
    manifest = read_bundle(exportable)
    heads = (replace(manifest.heads[0], name="../../intent"), manifest.heads[1])
    files = {name: exportable / name for name in manifest.files}
    write_bundle(tmp_path / "bundle", replace(manifest, heads=heads), files)
    with pytest.raises(TargetError, match="cannot name a file"):
        export_bundle(tmp_path / "bundle", "tei", tmp_path / "deep" / "out")


@pytest.mark.parametrize("kind", ["slice", "own", "transposed", "fused", "unknown", "negative", "renamed"])
def test_an_extracted_head_gives_the_same_logits(kind, tmp_path):
    """Narrowed and whole products give the same logits."""
    model, expected = network(kind)
    rows = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    for output in expected:
        whole = run(model, output, rows)
        name = output if kind == "renamed" else "logits"
        graph, narrowed = extract_head(model, output, name, 0.5)
        onnx.checker.check_model(graph)
        np.testing.assert_allclose(run(graph, name, rows), whole * 0.5, rtol=1e-5, atol=1e-6)
        assert narrowed == (kind not in ("unknown", "negative"))
        left = sum(numpy_helper.to_array(tensor).size for tensor in graph.graph.initializer)
        if narrowed:
            assert left < sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)


def network(kind):
    """x [batch, 6] times weights [6, 5], split into a [.., 3] and c [.., 2]."""
    draw = np.random.default_rng(0)
    weight, bias = draw.normal(size=(6, 5)).astype(np.float32), draw.normal(size=5).astype(np.float32)
    make, ints = helper.make_node, lambda *values: np.array(values, np.int64)
    constants = {
        "w": weight,
        "b": bias,
        "0": ints(0),
        "3": ints(3),
        "5": ints(5),
        "1": ints(1),
        "-2": ints(-2),
    }
    split = [make("Slice", ["y", "0", "3", "1"], ["a"]), make("Slice", ["y", "3", "5", "1"], ["c"])]
    product = [make("MatMul", ["x", "w"], ["p"]), make("Add", ["p", "b"], ["y"])]
    domains = [helper.make_opsetid("", 17)]
    if kind == "transposed":
        constants["w"] = np.ascontiguousarray(weight.T)
        product = [make("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    if kind == "own":
        product, constants["v"] = [], weight[:, 3:]
        split = [make("MatMul", ["x", "w"], ["a"]), make("MatMul", ["x", "v"], ["c"])]
    if kind == "fused":
        scale = np.abs(weight).max(0) / 127
        constants |= {"w": np.round(weight / scale).astype(np.int8), "s": scale, "z": np.zeros(5, np.int8)}
        product = [make("DynamicQuantizeMatMul", ["x", "w", "s", "z", "b"], ["y"], domain="com.microsoft")]
        domains.append(helper.make_opsetid("com.microsoft", 1))
    if kind == "unknown":
        product[1] = make("Add", ["p", "b"], ["q"])
        product.append(make("Tanh", ["q"], ["y"]))
    if kind == "negative":
        split[1] = make("Slice", ["y", "-2", "5", "1"], ["c"])
        split[0] = make("Slice", ["y", "0", "-2", "1"], ["a"])
    used = {name for node in [*product, *split] for name in node.input}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*product, *split],
        "network",
        [info("x", TensorProto.FLOAT, ["batch", 6])],
        [info("a", TensorProto.FLOAT, ["batch", None]), info("c", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=domains, ir_version=8), ("a", "c")


def run(model, output, rows):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run([output], {"x": rows})[0]


def served(folder: Path, text: str):
    """The logits of one text, with the tokenizer of the folder."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(
        json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    )
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    return session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def with_config(source: Path, folder: Path, config) -> None:
    manifest = read_bundle(source)
    files = {name: source / name for name in manifest.files}
    shutil.rmtree(folder, ignore_errors=True)
    write_bundle(folder, manifest, {**files, "config.json": json.dumps(config).encode()})
