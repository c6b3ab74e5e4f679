"""Int8 quantisation of an exported network."""

from __future__ import annotations

import copy
import logging
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
from export.graph.quantize import quantize_int8
from students.shapes import Shape, build_encoder

pytestmark = pytest.mark.exporting
HEADS = (Head("topic", "single_label", ("a", "b", "c")), Head("topic_2", "multi_label", ("x", "y")))
OUTPUTS = [f"logits_{head.name}" for head in HEADS]
VOCABULARY, POSITIONS, LAYERS, HIDDEN = 4000, 40, 2, 32


@pytest.fixture(scope="module", autouse=True)
def root_logger() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@dataclass
class Pair:
    """The fp32 file and its int8 version."""

    fp32: Path
    int8: Path

    def run(self, which: str, ids: Any, mask: Any) -> list[Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            getattr(self, which), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(OUTPUTS, {"input_ids": ids, "attention_mask": mask}))


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def network(request: pytest.FixtureRequest) -> MultiHeadClassifier:
    torch.manual_seed(0)
    if request.param == "bert":
        encoder = build_encoder(Shape(LAYERS, HIDDEN, 2), vocabulary=VOCABULARY, positions=POSITIONS, pad=0)
    else:
        config = DistilBertConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            dim=HIDDEN,
            n_layers=LAYERS,
            n_heads=2,
            hidden_dim=4 * HIDDEN,
            dropout=0.0,
            attention_dropout=0.0,
            attn_implementation="eager",
        )
        encoder = DistilBertModel(config)
    network = MultiHeadClassifier(encoder, HEADS).eval()
    with torch.no_grad():  # logits of the size that training gives, of a few units
        for name, weight in network.named_parameters():
            if not name.startswith("encoder."):
                weight.normal_(0, 0.5)
    return network


def exported(network: MultiHeadClassifier, folder: Path) -> Pair:
    pytest.importorskip("optimum.exporters.onnx.convert", exc_type=ImportError)
    from export.graph.to_onnx import to_onnx

    pair = Pair(folder / "model.onnx", folder / "model_quantized.onnx")
    to_onnx(network, OUTPUTS, pair.fp32)
    quantize_int8(pair.fp32, pair.int8, texts())
    return pair


def texts(rows: int = 200) -> Iterator[dict[str, Any]]:
    """Inputs of random tokens, one text a batch."""
    draw = np.random.default_rng(1)
    for length in draw.integers(3, 25, rows).tolist():
        ids = draw.integers(1, VOCABULARY, (1, length))
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture(scope="module")
def pair(network: MultiHeadClassifier, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return exported(network, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def batch() -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    mask = (np.arange(24) < draw.integers(3, 25, 64)[:, None]).astype(np.int64)
    return draw.integers(1, VOCABULARY, mask.shape) * mask, mask


def initializers(path: Path) -> dict[str, Any]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def nodes(path: Path, *kinds: str) -> list[Any]:
    return [node for node in onnx.load(path).graph.node if node.op_type in kinds]


def test_smaller_by_nearly_four(pair: Pair) -> None:
    """Most bytes are word embeddings; the graph itself does not shrink."""
    big, small = pair.fp32.stat().st_size, pair.int8.stat().st_size
    assert small < 0.5 * big
    numbers = [sum(a.nbytes for a in initializers(path).values()) for path in (pair.fp32, pair.int8)]
    assert numbers[1] < 0.28 * numbers[0]


def test_same_inputs_and_outputs(pair: Pair) -> None:
    both = [onnx.load(path).graph for path in (pair.fp32, pair.int8)]
    for side in ("input", "output"):
        found = [[(v.name, v.type.SerializeToString()) for v in getattr(graph, side)] for graph in both]
        assert found[0] == found[1]
    assert [output.name for output in both[1].output][: len(OUTPUTS)] == OUTPUTS
    onnx.checker.check_model(onnx.load(pair.int8))


def test_embeddings_are_int8(pair: Pair) -> None:
    weights = initializers(pair.int8)
    tables = {(VOCABULARY, HIDDEN), (POSITIONS, HIDDEN)}
    # bert_graph slices the positions
    readers = nodes(pair.int8, "Gather", "Slice")
    gathered = [weights[n.input[0]] for n in readers if n.input[0] in weights]
    assert {table.shape for table in gathered} >= tables
    for table in gathered:
        if table.ndim == 2:
            assert table.dtype.itemsize == 1, table.shape
    # no float copy remains
    floats = [a.shape for a in weights.values() if a.dtype == np.float32]
    assert not tables & set(floats)


def test_products_of_weights_are_integer_products(pair: Pair) -> None:
    weights = initializers(pair.int8)
    products = nodes(pair.int8, "MatMulInteger")
    traced = "mean" not in {node.name for node in nodes(pair.int8, "MatMul")}
    # query, key, value (one product in bert_graph), output, two of feed-forward; heads
    assert len(products) == (6 * LAYERS + len(HEADS) if traced else 4 * LAYERS + 1)
    assert all(weights[node.input[1]].dtype == np.int8 for node in products)
    assert not nodes(pair.int8, "Gemm")


def test_product_weights_have_seven_bits_and_embeddings_eight(pair: Pair) -> None:
    """A pair of products of an activation and a weight must fit 16 bits: 2 * 255 * 64 < 2 ** 15."""
    weights = initializers(pair.int8)
    products = [weights[node.input[1]] for node in nodes(pair.int8, "MatMulInteger")]
    assert max(np.abs(w.astype(int)).max() for w in products) == 64
    tables = [weights[n.input[0]] for n in nodes(pair.int8, "Gather") if n.input[0] in weights]
    (words,) = [table for table in tables if table.shape == (VOCABULARY, HIDDEN)]
    assert np.ptp(words.astype(int)) > 200


def test_weights_have_one_scale_per_column(pair: Pair) -> None:
    weights = initializers(pair.int8)
    for node in nodes(pair.int8, "MatMulInteger"):
        assert weights[node.input[3]].shape == weights[node.input[1]].shape[1:]


def test_products_of_activations_stay_float(pair: Pair) -> None:
    weights = initializers(pair.int8)
    kept = nodes(pair.int8, "MatMul")
    pooled = "mean" in {node.name for node in kept}  # a product in bert_graph
    # scores and context of attention; in bert_graph for each of the two attention heads
    assert len(kept) == 2 * LAYERS * (2 if pooled else 1) + pooled
    for node in kept:
        assert not set(node.input) & set(weights)
    assert {n.name for n in kept} == {
        n.name for n in nodes(pair.fp32, "MatMul") if not set(n.input) & set(initializers(pair.fp32))
    }


def test_logits_are_close(pair: Pair, batch: tuple[Any, Any]) -> None:
    for exact, rounded in zip(pair.run("fp32", *batch), pair.run("int8", *batch), strict=True):
        assert rounded.shape == exact.shape
        assert rounded.dtype == np.float32
        gap, spread = np.abs(exact - rounded), exact.std()
        assert 0 < gap.max() < 0.25 * spread
        assert gap.mean() < 0.05 * spread
        same = (exact.argmax(-1) == rounded.argmax(-1)).mean()
        assert same > 0.9


def test_a_text_has_the_same_logits_whatever_is_beside_it(pair: Pair, batch: tuple[Any, Any]) -> None:
    """Alone, in a list, in another order, and padded: bit for bit."""
    assert not nodes(pair.int8, "DynamicQuantizeLinear")
    ids, mask = batch
    together = pair.run("int8", *batch)
    order = np.random.default_rng(2).permutation(len(ids))
    wide = [np.pad(array[order], ((0, 0), (0, 9))) for array in batch]
    for found, again in zip(together, pair.run("int8", *wide), strict=True):
        np.testing.assert_array_equal(found[order], again)
    for row in range(8):
        length = mask[row].sum()
        alone = pair.run("int8", ids[row : row + 1, :length], mask[row : row + 1, :length])
        for found, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(found[row], one[0])


def test_known_scales_are_taken(pair: Pair, batch: tuple[Any, Any], tmp_path: Path) -> None:
    """So the heads of a frozen encoder keep their int8 logits, whatever texts a new head has."""
    few, again = Pair(pair.fp32, tmp_path / "few.onnx"), Pair(pair.fp32, tmp_path / "again.onnx")
    known = quantize_int8(pair.fp32, tmp_path / "all.onnx", texts())
    quantize_int8(few.fp32, few.int8, texts(1))
    assert quantize_int8(again.fp32, again.int8, texts(1), known) == known
    for found, other, kept in zip(*(p.run("int8", *batch) for p in (pair, few, again)), strict=True):
        assert not np.array_equal(found, other)
        np.testing.assert_array_equal(found, kept)


def test_no_text_to_measure_still_gives_a_file(pair: Pair, batch: tuple[Any, Any], tmp_path: Path) -> None:
    quantize_int8(pair.fp32, path := tmp_path / "int8.onnx", [])
    assert all(np.isfinite(logits).all() for logits in Pair(pair.fp32, path).run("int8", *batch))


def test_what_exceeds_the_measured_range_is_clipped(
    pair: Pair, batch: tuple[Any, Any], tmp_path: Path
) -> None:
    """One text measured leaves the others out of range here and there, not wrong."""
    few = Pair(pair.fp32, tmp_path / "int8.onnx")
    quantize_int8(few.fp32, few.int8, texts(1))
    for exact, rounded in zip(few.run("fp32", *batch), few.run("int8", *batch), strict=True):
        assert np.isfinite(rounded).all() and np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.9


def test_the_source_is_unchanged(pair: Pair, tmp_path: Path) -> None:
    before = pair.fp32.read_bytes()
    quantize_int8(pair.fp32, tmp_path / "again.onnx", texts())
    assert pair.fp32.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]
    assert (tmp_path / "again.onnx").read_bytes() == pair.int8.read_bytes()


@pytest.fixture(scope="module")
def far(network: MultiHeadClassifier, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A network with one column of a norm scaled by 30 and its weights by 1/30."""
    network = copy.deepcopy(network)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)]
    reads, writes = ("0.intermediate.dense", "0.ffn.lin1"), ("0.output.dense", "0.ffn.lin2")
    with torch.no_grad():
        for norm in norms:
            norm.bias.normal_(0, 0.1)  # distinct, since equal tensors are stored once
        norms[1].weight[3] = 30  # read by the first layer's feed-forward part and the sum after it
        for name, weight in network.named_parameters():
            if weight.ndim == 2 and any(part in name for part in reads + writes):
                weight.normal_(0, 0.3)  # so that the feed-forward part matters next to the residual
            if weight.ndim == 2 and any(part in name for part in reads):
                weight[:, 3] /= 30
    return exported(network, tmp_path_factory.mktemp("far"))


def test_outlying_columns_are_scaled_down(pair: Pair, far: Pair) -> None:
    assert not [node for node in nodes(pair.int8, "Mul") if node.name.endswith(".down.scaled")]
    (down,) = [node for node in nodes(far.int8, "Mul") if node.name.endswith(".down.scaled")]
    scale = initializers(far.int8)[down.input[1]]
    assert scale[3] == pytest.approx(2 / 30, rel=0.1)
    assert np.delete(scale, 3) == pytest.approx(np.ones(HIDDEN - 1))
    # the residual adds the unscaled tensor
    assert [n.op_type for n in nodes(far.int8, "Add") if down.input[0] in n.input] == ["Add"]


def gap(fp32: Path, batch: tuple[Any, Any], tmp_path: Path) -> float:
    """The mean difference between int8 and fp32 logits."""
    pair = Pair(fp32, tmp_path / "int8.onnx")
    quantize_int8(pair.fp32, pair.int8, texts())
    both = zip(pair.run("fp32", *batch), pair.run("int8", *batch), strict=True)
    return float(np.mean([np.abs(exact - rounded).mean() for exact, rounded in both]))


def test_smoothing_reduces_the_error_of_outlying_columns(
    far: Pair, batch: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gap(far.fp32, batch, tmp_path)
    monkeypatch.setattr("export.graph.quantize._smooth_activations", lambda model: None)
    assert found < 0.7 * gap(far.fp32, batch, tmp_path)


def test_equalising_reduces_the_error_of_added_tables(
    pair: Pair,
    network: MultiHeadClassifier,
    batch: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training gives the first position, which always holds the same token, outlying columns."""
    (scale,) = [n.input[1] for n in nodes(pair.int8, "Mul") if n.name.endswith(".scaled")]
    assert initializers(pair.int8)[scale].shape == (HIDDEN,)
    far = copy.deepcopy(network)
    with torch.no_grad():
        far.encoder.embeddings.position_embeddings.weight[0, 3] = 20
    fp32 = exported(far, tmp_path).fp32
    found = gap(fp32, batch, tmp_path)
    monkeypatch.setattr("export.graph.quantize._equalize_tables", lambda model: None)
    assert found < 0.7 * gap(fp32, batch, tmp_path)
