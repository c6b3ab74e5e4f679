"""Exported networks give the logits of torch in onnxruntime."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from transformers import DistilBertConfig, DistilBertModel

from distill.heads import Head
from distill.models.classifier import MultiHeadClassifier
from export.graph.bert import FEW
from export.graph.gates import check_parity
from export.graph.to_onnx import to_onnx
from export.runtime.session import ALL_LOGITS
from students.shapes import Shape, build_encoder

pytestmark = pytest.mark.exporting
ARCHITECTURES = ("bert", "distilbert")
HEADS = (  # each name is a prefix of the next
    Head("topic", "single_label", ("a", "b", "c")),
    Head("topic_2", "multi_label", ("x", "y")),
    Head("topic_22", "single_label", ("p", "q", "r", "s")),
)
OUTPUTS = [f"logits_{head.name}" for head in HEADS]
WIDTH, POSITIONS, VOCABULARY = 9, 40, 50


@pytest.fixture(scope="module", autouse=True)
def exporter() -> None:
    """optimum-onnx 0.1.0 needs transformers < 4.58; without it these tests are skipped."""
    pytest.importorskip("optimum.exporters.onnx.convert", exc_type=ImportError)


def network_of(
    architecture: str, heads: tuple[Head, ...] = HEADS, attention_heads: int = 2, **settings: Any
) -> MultiHeadClassifier:
    """A network with random weights, so that no two are equal."""
    torch.manual_seed(0)
    if architecture == "bert":
        shape = Shape(2, 16, attention_heads)
        encoder = build_encoder(shape, vocabulary=VOCABULARY, positions=POSITIONS, pad=0)
    else:
        config = DistilBertConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            dim=16,
            n_layers=2,
            n_heads=attention_heads,
            hidden_dim=64,
            attn_implementation="eager",
        )
        encoder = DistilBertModel(config)
    network = MultiHeadClassifier(encoder, heads, **settings).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.normal_(1.0 if "norm.weight" in name.lower() else 0.0, 0.3)
    return network


@dataclass
class Exported:
    network: MultiHeadClassifier
    path: Path
    model: Any
    session: Any

    def logits(self, ids: Any, mask: Any) -> dict[str, Any]:
        names = [output.name for output in self.session.get_outputs() if output.name != ALL_LOGITS]
        found = self.session.run(names, {"input_ids": ids, "attention_mask": mask})
        return dict(zip(names, found, strict=True))


def exported_of(network: MultiHeadClassifier, outputs: list[str], path: Path, **settings: Any) -> Exported:
    to_onnx(network, outputs, path, **settings)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Exported(network, path, onnx.load(path), session)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    return exported_of(network_of(request.param), OUTPUTS, path)


def batches() -> Iterator[tuple[Any, Any]]:
    """Batches of 1 to 5 texts, of lengths 3 to 40, padded to the longest."""
    draw = np.random.default_rng(0)
    for size, longest in itertools.product(range(1, 6), (3, 4, 7, 16, 17, 31, 40)):
        lengths = draw.integers(3, longest + 1, size)
        lengths[draw.integers(size)] = longest
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        yield draw.integers(1, VOCABULARY, mask.shape) * mask, mask


def expected_of(network: MultiHeadClassifier, ids: Any, mask: Any) -> dict[str, Any]:
    with torch.inference_mode():
        logits = network({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)})
    return {head: part.numpy() for head, part in network.split(logits).items()}


def assert_same(exported: Exported, prefix: str = "logits_") -> None:
    for ids, mask in batches():
        expected = expected_of(exported.network, ids, mask)
        found = exported.logits(ids, mask)
        assert [f"{prefix}{head}" for head in expected] == list(found)
        assert not check_parity(expected, dict(zip(expected, found.values(), strict=True)), 1e-4)[1]


def test_parity_over_batches_and_lengths(exported: Exported) -> None:
    assert_same(exported)


def test_every_length(exported: Exported) -> None:
    for length in range(3, 41):
        ids = np.full((1, length), length, np.int64)
        expected = expected_of(exported.network, ids, np.ones_like(ids))
        for head, logits in zip(HEADS, exported.logits(ids, np.ones_like(ids)).values(), strict=True):
            np.testing.assert_allclose(logits, expected[head.name], atol=1e-4)


def test_padding_changes_nothing(exported: Exported) -> None:
    ids = np.array([[2, 7, 9, 3]])
    alone = exported.logits(ids, np.ones_like(ids))
    padded = np.zeros((3, 20), np.int64)
    padded[1, :4] = ids
    mask = np.zeros_like(padded)
    mask[1, :4], mask[0], mask[2, :5] = 1, 1, 1
    for name, logits in exported.logits(padded, mask).items():
        np.testing.assert_allclose(logits[1], alone[name][0], atol=1e-5)


def test_inputs_and_outputs(exported: Exported) -> None:
    assert [i.name for i in exported.session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [i.type for i in exported.session.get_inputs()] == ["tensor(int64)"] * 2
    for taken in exported.session.get_inputs():
        assert all(isinstance(size, str) for size in taken.shape)  # both dynamic
    assert len({tuple(taken.shape) for taken in exported.session.get_inputs()}) == 1
    outputs = exported.session.get_outputs()
    bert = exported.network.config.model_type == "bert"
    assert [o.name for o in outputs] == [*OUTPUTS, ALL_LOGITS][: len(OUTPUTS) + bert]
    assert [o.shape[1] for o in outputs] == [*(len(head.labels) for head in HEADS), WIDTH][: len(outputs)]
    assert all(isinstance(o.shape[0], str) for o in outputs)


def test_a_single_output_can_be_requested(exported: Exported) -> None:
    ids = np.array([[2, 7, 9, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (found,) = exported.session.run(["logits_topic_2"], feed)
    np.testing.assert_allclose(
        found, expected_of(exported.network, ids, feed["attention_mask"])["topic_2"], atol=1e-4
    )


def test_model_metadata(exported: Exported) -> None:
    onnx.checker.check_model(exported.model, full_check=True)
    assert [(o.domain, o.version) for o in exported.model.opset_import] == [("", 17)]
    assert exported.model.producer_name == "tinyheads"
    assert {node.domain for node in exported.model.graph.node} == {""}  # no custom operators
    assert [path.name for path in exported.path.parent.iterdir()] == ["model.onnx"]


def weights_of(model: Any) -> dict[str, Any]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def test_a_built_graph_has_one_product_for_all_heads_and_a_traced_one_a_product_each(
    exported: Exported,
) -> None:
    weights = weights_of(exported.model)
    widths = [
        size
        for node in exported.model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input
        if name in weights and weights[name].ndim == 2
        for size in weights[name].shape
    ]
    built = any(node.name == "mean" for node in exported.model.graph.node)
    sizes = [len(head.labels) for head in HEADS]
    assert sum(map(widths.count, {*sizes})) == (0 if built else len(HEADS))
    assert widths.count(WIDTH) == (1 if built else 0)
    assert WIDTH not in (16, 64)  # the count above depends on it


def test_weights_are_stored_once(exported: Exported) -> None:
    stored = sum(weight.size for weight in weights_of(exported.model).values() if weight.dtype == np.float32)
    constants = sum(
        numpy_helper.to_array(attribute.t).size
        for node in exported.model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
    )
    whole = exported.network.parameters_count
    if exported.network.config.model_type == "bert":  # token types are added to the positions
        whole -= exported.network.encoder.embeddings.token_type_embeddings.weight.numel()
    assert stored + constants >= whole
    # constants are sizes, axes, scales: a few dozen numbers
    assert stored <= exported.network.parameters_count
    assert constants < 300
    whole = [weight.tobytes() for weight in weights_of(exported.model).values() if weight.size > 1]
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cls_pooling(architecture: str, tmp_path: Path) -> None:
    network = network_of(architecture, pooling="cls")
    assert_same(exported_of(network, OUTPUTS, tmp_path / "model.onnx"))


def test_only_head_is_named_logits(tmp_path: Path) -> None:
    network = network_of("bert", HEADS[:1])
    exported = exported_of(network, ["logits"], tmp_path / "model.onnx")
    assert [o.name for o in exported.session.get_outputs()] == ["logits"]
    for ids, mask in batches():
        (found,) = exported.logits(ids, mask).values()
        np.testing.assert_allclose(found, expected_of(network, ids, mask)["topic"], atol=1e-4)


def test_output_names_like_those_of_the_exporter(tmp_path: Path) -> None:
    """Renaming must not confuse a given name with one that is yet to be replaced."""
    outputs = ["head_0001_logits", "head_0002_logits", "head_0000_logits"]
    exported = exported_of(network_of("bert"), outputs, tmp_path / "model.onnx")
    ids = np.array([[2, 7, 9, 3]])
    found = exported.logits(ids, np.ones_like(ids))
    assert {name: logits.shape[1] for name, logits in found.items()} == dict(
        zip(outputs, (3, 2, 4), strict=True)
    )
    for expected, logits in zip(
        expected_of(exported.network, ids, np.ones_like(ids)).values(), found.values(), strict=True
    ):
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_all_logits_are_the_heads_concatenated(pooling: str, tmp_path: Path) -> None:
    exported = exported_of(network_of("bert", pooling=pooling), OUTPUTS, tmp_path / "model.onnx")
    for ids, mask in batches():
        (whole,) = exported.session.run([ALL_LOGITS], {"input_ids": ids, "attention_mask": mask})
        parts = exported.logits(ids, mask).values()
        np.testing.assert_array_equal(whole, np.concatenate([*parts], axis=1))


def test_bert_needs_no_node_for_shapes(tmp_path: Path) -> None:
    """A BERT with another activation, which `bert_graph` does not support, is traced."""
    plain, other = network_of("bert"), network_of("bert")
    other.encoder.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.ReLU()
    other.encoder.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()
    other.config.hidden_act = "relu"
    laid, traced = (
        exported_of(network, OUTPUTS, tmp_path / f"{name}.onnx")
        for network, name in ((plain, "a"), (other, "b"))
    )
    kinds = [[node.op_type for node in found.model.graph.node] for found in (laid, traced)]
    assert kinds[0].count("Shape") == 1 and not {"ConstantOfShape", "Expand", "Where"} & set(kinds[0])
    assert kinds[1].count("Relu") == 2
    for found in (laid, traced):
        assert_same(found)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_attention_heads_one_by_one_or_together(count: int, tmp_path: Path) -> None:
    network = network_of("bert", attention_heads=count)
    exported = exported_of(network, OUTPUTS, tmp_path / "model.onnx")
    assert_same(exported)
    kinds = Counter(node.op_type for node in exported.model.graph.node)
    assert kinds["Softmax"] == 2 * (count if count <= FEW else 1)


def test_unused_positions_are_dropped(tmp_path: Path) -> None:
    exported = exported_of(network_of("bert"), OUTPUTS, tmp_path / "model.onnx", positions=24)
    assert weights_of(exported.model)["positions"].shape == (24, 16)
    ids = np.full((1, 24), 7, np.int64)
    found = exported.logits(ids, np.ones_like(ids))["logits_topic"]
    np.testing.assert_allclose(
        found, expected_of(exported.network, ids, np.ones_like(ids))["topic"], atol=1e-4
    )


def test_many_heads_keep_their_order(tmp_path: Path) -> None:
    heads = tuple(Head(f"h{i}", "single_label", tuple("ab")) for i in (11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6, 0))
    exported = exported_of(
        network_of("distilbert", heads), [f"logits_{h.name}" for h in heads], tmp_path / "m.onnx"
    )
    assert_same(exported)


def test_the_network_is_unchanged(tmp_path: Path) -> None:
    network = network_of("bert")
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    settings = network.config.to_dict()
    to_onnx(network, OUTPUTS, tmp_path / "model.onnx")
    after = network.config.to_dict()
    changed = {key for key in settings if after[key] != settings[key]}
    assert changed <= {"use_cache"}  # set by the exporter; encoders ignore it
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(weight.requires_grad for weight in network.parameters())


def test_a_missing_output_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        to_onnx(network_of("bert"), OUTPUTS[:2], tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
