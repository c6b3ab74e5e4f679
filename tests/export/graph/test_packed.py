"""The graph of a packed network gives the logits of torch, whatever labels and texts stand beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from distill.heads import Head
from distill.models.packed import PackedClassifier
from export.graph.quantize import quantize_int8
from export.graph.to_onnx import to_onnx
from export.runtime.onnx_file import check_onnx

pytestmark = pytest.mark.exporting
VOCABULARY, POSITIONS = 300, 48
INPUTS = ["input_ids", "attention_mask", "label_ids", "label_mask"]
Labels = Sequence[Sequence[int]]


@dataclass
class Exported:
    network: PackedClassifier
    path: Path
    session: Any

    @property
    def outputs(self) -> list[str]:
        return [f"logits_{head.name}" for head in self.network.heads]

    def logits(self, texts: Labels, labels: Labels, longest: int = 0) -> NDArray[Any]:
        """The logits of onnxruntime, `[heads, texts, labels]`; labels are padded to `longest` tokens."""
        feed = [*padded(texts), *padded(labels, longest)]
        return np.stack(self.session.run(self.outputs, dict(zip(INPUTS, feed, strict=True))))

    def expected(self, texts: Labels, labels: Labels) -> NDArray[Any]:
        """The logits of torch."""
        ids, mask = padded(texts)
        label_ids, label_mask = padded(labels)
        label, place = np.nonzero(label_mask)
        places = np.full(label_mask.shape, -1)
        places[label, place] = np.arange(len(label))
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "label_ids": label_ids[label, place][None],
            "label_segments": label[None],
            "label_places": places[None],
        }
        with torch.inference_mode():
            states = self.network.read({name: torch.tensor(array) for name, array in arrays.items()})
            return np.stack([scorer(*states).numpy() for scorer in self.network.scorers.values()])


def padded(rows: Labels, longest: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask of rows, which are padded with the id 7 so that padding is seen if it is read."""
    width = max(longest, *map(len, rows))
    ids = np.array([[*row, *[7] * (width - len(row))] for row in rows], np.int64)
    return ids, (np.arange(width) < np.array([len(row) for row in rows])[:, None]).astype(np.int64)


def some(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Rows of 1 to `longest` ids, one of them of the full length, each begun by the id 2."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, count)
    lengths[draw.integers(count)] = longest
    return [[2, *draw.integers(5, VOCABULARY, length - 1)] for length in lengths]


@pytest.fixture(scope="module")
def export_of(
    tiny_bert: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Exported]:
    """A function that exports a packed network with random weights, so that no two are equal."""

    def build(architecture: str = "bert", heads: Sequence[str] = ("intent",), **shape: Any) -> Exported:
        settings = {"layers": 2, "vocabulary": VOCABULARY, "positions": POSITIONS} | shape
        encoder = tiny_bert(architecture, **settings)
        network = PackedClassifier(encoder, [Head(name, "single_label", ("a", "b")) for name in heads]).eval()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.normal_(1.0 if "norm.weight" in name.lower() else 0.0, 0.3)
        path = tmp_path_factory.mktemp("packed") / "model.onnx"
        to_onnx(network, [f"logits_{name}" for name in heads], path, positions=POSITIONS)
        return Exported(network, path, session_of(path))

    return build


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def exported(request: pytest.FixtureRequest, export_of: Callable[..., Exported]) -> Exported:
    return export_of(request.param, ("intent", "sa_layer_norm", "flags"))


@pytest.mark.parametrize(
    ("texts", "labels"), [((1, 2), (1, 1)), ((1, 20), (1, 6)), ((1, 9), (40, 7)), ((5, 24), (12, 9))]
)
def test_logits_of_torch(exported: Exported, texts: tuple[int, int], labels: tuple[int, int]) -> None:
    given = some(*texts), some(*labels, seed=1)
    np.testing.assert_allclose(exported.logits(*given), exported.expected(*given), atol=1e-4)


@pytest.mark.parametrize(
    "shape", [{"layers": 1}, {"layers": 3, "attention_heads": 8}, {"attention_heads": 1}]
)
def test_shapes_of_encoders(export_of: Callable[..., Exported], shape: dict[str, int]) -> None:
    exported = export_of(**shape)
    given = some(3, 12), some(6, 5, seed=1)
    np.testing.assert_allclose(exported.logits(*given), exported.expected(*given), atol=1e-4)


def test_neighbours_change_no_logit(exported: Exported) -> None:
    texts, labels = some(4, 20), some(30, 6, seed=1)
    found = exported.logits(texts, labels)
    assert found.std() > 0.1
    for number, label in enumerate(labels):
        alone = exported.logits(texts[:1], [label])
        np.testing.assert_allclose(alone[..., 0], found[:, :1, number], atol=1e-4)
    order = np.random.default_rng(2).permutation(len(labels))
    shuffled = exported.logits(texts[::-1], [labels[i] for i in order])
    np.testing.assert_allclose(shuffled, found[:, ::-1, order], atol=1e-4)


def test_padding_of_labels_changes_no_logit(exported: Exported) -> None:
    texts, labels = some(2, 8), some(5, 4, seed=1)
    found = exported.logits(texts, labels)
    np.testing.assert_allclose(exported.logits(texts, labels, longest=9), found, atol=1e-5)


def test_a_text_and_a_label_may_take_every_position(exported: Exported) -> None:
    given = some(1, POSITIONS - 8), some(3, 8, seed=1)
    np.testing.assert_allclose(exported.logits(*given), exported.expected(*given), atol=1e-4)


def test_file(exported: Exported) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    check_onnx(exported.path.read_bytes())
    assert [node.name for node in exported.session.get_inputs()] == INPUTS
    shapes = [tuple(node.shape) for node in exported.session.get_inputs()]
    assert all(isinstance(size, str) for shape in shapes for size in shape)
    assert len(set(shapes)) == 2 and shapes[0] == shapes[1]  # texts and labels, four sizes
    outputs = exported.session.get_outputs()
    assert [node.name for node in outputs] == exported.outputs
    assert {tuple(node.shape) for node in outputs} == {(shapes[0][0], shapes[2][0])}
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"If", "Loop", "Scan"} and {node.domain for node in model.graph.node} == {""}
    (table,) = [numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "positions"]
    assert len(table) == POSITIONS


def test_unused_positions_are_dropped(exported: Exported, tmp_path: Path) -> None:
    to_onnx(exported.network, exported.outputs, tmp_path / "model.onnx", positions=12)
    short = Exported(exported.network, tmp_path / "model.onnx", session_of(tmp_path / "model.onnx"))
    given = some(2, 8), some(3, 4, seed=1)
    np.testing.assert_allclose(short.logits(*given), exported.expected(*given), atol=1e-4)
    (table,) = [i for i in onnx.load(short.path).graph.initializer if i.name == "positions"]
    assert list(table.dims) == [12, 16]


def test_a_missing_output_name_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        to_onnx(exported.network, exported.outputs[:2], tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_int8(architecture: str, export_of: Callable[..., Exported], tmp_path: Path) -> None:
    exact = export_of(architecture, ("intent", "flags"), hidden=32)
    quantize_int8(exact.path, path := tmp_path / "int8.onnx")
    check_onnx(path.read_bytes())
    rounded = Exported(exact.network, path, session_of(path))
    for side in ("input", "output"):
        found = [getattr(onnx.load(file).graph, side) for file in (exact.path, path)]
        assert [str(value) for value in found[0]] == [str(value) for value in found[1]]
    model = onnx.load(path).graph
    assert "embedded.scaled" in {node.name for node in model.node}  # both tables share a scale
    weights = {i.name: numpy_helper.to_array(i) for i in model.initializer}
    floats = [weight for weight in weights.values() if weight.dtype == np.float32]
    assert max(weight.ndim for weight in floats) == 1  # tables and products are integers
    given = some(8, 20), some(20, 6, seed=1)
    logits, close = exact.logits(*given), rounded.logits(*given)
    assert 0 < np.abs(logits - close).max() < logits.std()
    assert np.abs(logits - close).mean() < 0.1 * logits.std()
    texts, labels = given
    parts = [rounded.logits(texts, [label]) for label in labels]
    np.testing.assert_allclose(np.concatenate(parts, -1), close, atol=1e-4)  # no label moves another
