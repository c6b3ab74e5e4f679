"""An ONNX file from a stranger: it reads no other files, ends, fits into memory, and gives finite logits."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, TOKENIZER, BundleError, Manifest
from export.runtime import onnx_file, session
from export.runtime.classifier import Classifier
from export.runtime.onnx_file import check_onnx

Change = Callable[[ModelProto], None]


def constant(value: object, name: str, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def external(location: str, name: str = "bias") -> TensorProto:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[5], name=name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def replace_bias(location: str) -> Change:
    """Let the bias come from another file."""

    def change(model: ModelProto) -> None:
        (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "bias"]
        bias.CopyFrom(external(location))

    return change


def after_logits(*nodes: NodeProto, **constants: object) -> Change:
    """Insert nodes between the last product, now `old`, and `logits`."""

    def change(model: ModelProto) -> None:
        graph, (gemm,) = model.graph, [node for node in model.graph.node if node.op_type == "Gemm"]
        gemm.output[0] = "old"
        at = [*graph.node].index(gemm) + 1
        rest = [*graph.node][at:]
        del graph.node[at:]
        graph.node.extend([*nodes, *rest])
        for name, value in constants.items():
            dtype = np.int64 if name.startswith("i_") else np.float32
            graph.initializer.append(constant(value, name, dtype))

    return change


def body(*outputs: str) -> onnx.GraphProto:
    """A loop body that never ends."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Add", ["carried", "carried"], ["next"]),
    ]
    ends = [info("i", 7, []), info("go", 9, []), info("carried", 1, None)]
    return helper.make_graph(nodes, "body", ends, [info("go_on", 9, []), info("next", 1, None)])


def endless() -> Change:
    inner = after_logits(helper.make_node("Loop", ["", "i_go", "old"], ["logits"], body=body()))

    def change(model: ModelProto) -> None:
        inner(model)
        model.graph.initializer.append(constant(True, "i_go", bool))

    return change


def loop_in_a_branch(model: ModelProto) -> None:
    loop = helper.make_node("Loop", ["", "i_go", "old"], ["out"], body=body())
    same = helper.make_node("Identity", ["old"], ["out"])
    ends = [helper.make_tensor_value_info("out", 1, None)]
    branches = [helper.make_graph([chosen], "branch", [], ends) for chosen in (loop, same)]
    after_logits(
        helper.make_node("If", ["i_go"], ["logits"], then_branch=branches[1], else_branch=branches[0])
    )(model)
    model.graph.initializer.append(constant(True, "i_go", bool))


def within_function(model: ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node], opset))


def constant_node(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["extra"], value=external("weights.bin")))


def sparse(model: ModelProto) -> None:
    found = model.graph.sparse_initializer.add(dims=[5])
    found.values.CopyFrom(external("weights.bin"))
    found.indices.CopyFrom(constant([0, 1, 2, 3, 4], "i", np.int64))


def training(model: ModelProto) -> None:
    model.training_info.add()


node = helper.make_node
CASES = {
    "relative": (replace_bias("weights.bin"), "stores weights in other files"),
    "absolute": (replace_bias("/etc/passwd"), "stores weights in other files"),
    "parents": (replace_bias("../../../../../../etc/passwd"), "stores weights in other files"),
    "address": (replace_bias("*/_ORT_MEM_ADDR_/*"), "stores weights in other files"),
    "constant": (constant_node, "stores weights in other files"),
    "sparse": (sparse, "stores weights in other files"),
    "loop": (endless(), "has loops or functions"),
    "loop in a branch": (loop_in_a_branch, "has loops or functions"),
    "function": (within_function, "has loops or functions"),
    "training": (training, "has loops or functions"),
    "domain": (after_logits(node("Gelu", ["old"], ["logits"], domain="com.microsoft")), "'com.microsoft'"),
    "nan": (
        after_logits(node("Div", ["old", "zero"], ["x"]), node("Sub", ["x", "x"], ["logits"]), zero=0),
        "not finite",
    ),
    "infinite": (after_logits(node("Div", ["old", "zero"], ["logits"]), zero=0), "not finite"),
    "one row": (
        after_logits(node("ReduceSum", ["old", "i_axis"], ["logits"], keepdims=1), i_axis=[0]),
        r"logits must have shapes \[\(2, 3\), \(2, 2\)\]",
    ),
    "memory": (
        after_logits(
            node("ReduceMean", ["old"], ["level"], keepdims=0),
            node("Expand", ["level", "i_tall"], ["tall"]),
            node("Expand", ["level", "i_wide"], ["wide"]),
            node("MatMul", ["tall", "wide"], ["huge"]),
            node("ReduceMean", ["huge"], ["small"], keepdims=0),
            node("Add", ["old", "small"], ["logits"]),
            i_tall=[500_000, 1],
            i_wide=[1, 500_000],
        ),
        "cannot compute 1 texts",
    ),
}  # fmt: skip


@pytest.fixture
def load(tmp_path: Path, manifest: Manifest, contents: dict[str, bytes], graph: Callable[..., bytes]):
    """Load a bundle whose graph was changed."""

    def run(change: Change) -> Classifier:
        model = onnx.load_model_from_string(graph())
        change(model)
        write_bundle(tmp_path / "bundle", manifest, {**contents, FP32: model.SerializeToString()})
        (tmp_path / "bundle/onnx/weights.bin").write_bytes(np.ones(5, np.float32).tobytes())
        return Classifier.load(tmp_path / "bundle")

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_graph(load, case, monkeypatch, tmp_path):
    change, problem = CASES[case]
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=f"bundle/{FP32}: .*{problem}") as caught:
        load(change)
    assert "\n" not in str(caught.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sys.platform != "linux" or grown < 1 << 20, "1 GiB"


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.INT64, TensorProto.DOUBLE])
def test_outputs_that_are_not_float32(load, kind):
    def change(model: ModelProto) -> None:
        (split,) = [found for found in model.graph.node if found.op_type == "Split"]
        split.output[0] = "parts"
        model.graph.node.append(node("Cast", ["parts"], ["logits_intent"], to=kind))
        model.graph.output[0].type.tensor_type.elem_type = kind

    with pytest.raises(BundleError, match=r"model\.onnx: outputs must be float32, got"):
        load(change)


def test_a_branch_is_no_loop(load, texts, classifier):
    """A traced DeBERTa has branches."""
    ends = [helper.make_tensor_value_info("out", 1, None)]
    same = helper.make_graph([node("Identity", ["old"], ["out"])], "branch", [], ends)
    change = after_logits(node("If", ["go"], ["logits"], then_branch=same, else_branch=same))

    def branch(model: ModelProto) -> None:
        change(model)
        model.graph.initializer.append(constant(True, "go", bool))

    assert load(branch).logits(texts)["intent"] == pytest.approx(classifier.logits(texts)["intent"])


def slow(count: int) -> Change:
    products = [node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(count)]
    return after_logits(
        node("ReduceMean", ["old"], ["level"], keepdims=0),
        node("Expand", ["level", "i_shape"], ["m0"]),
        *products,
        node("ReduceMean", [f"m{count}"], ["scale"], keepdims=0),
        node("Mul", ["old", "scale"], ["logits"]),
        i_shape=[1000, 1000],
    )


def test_a_graph_that_takes_too_long(load, monkeypatch):
    monkeypatch.setattr(session, "LOAD_SECONDS", 1)
    change = slow(2000)
    with pytest.raises(BundleError, match=f"{FP32}: is not loaded and run within 1 s"):
        load(change)


def test_logits_of_a_text_that_are_not_finite(load, classifier):
    """The trial at load cannot find a text that a graph treats otherwise."""

    def change(model: ModelProto) -> None:
        (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "table"]
        values = numpy_helper.to_array(table).copy()
        values[classifier._token_ids(["parcel"])[0][1]] = np.nan
        table.CopyFrom(numpy_helper.from_array(values, "table"))

    loaded = load(change)
    assert loaded("order")["intent"]["label"]
    with pytest.raises(BundleError, match=f"{FP32}: computes logits that are not finite"):
        loaded("where is my parcel")


def test_files_that_are_not_onnx(graph):
    data = graph()
    draw = np.random.default_rng(0)
    for size in (1, 10, 1000, len(data)):
        for _ in range(50):
            try:
                check_onnx(draw.bytes(size))
            except ValueError as error:
                assert str(error)
    for size in range(20, len(data) // 2, 7):
        with pytest.raises(ValueError, match="is not an ONNX file"):
            check_onnx(data[:size])
    check_onnx(data)


def test_a_file_of_many_fields(monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 10)
    with pytest.raises(ValueError, match="has more than 10 fields"):
        check_onnx(b"\x08\x01" * 11)


def test_a_tokenizer_that_panics(tmp_path, manifest, contents, monkeypatch):
    """Errors of native code are no Exception."""

    class Panic(BaseException):
        pass

    def panic(data: bytes) -> None:
        raise Panic("index out of bounds")

    write_bundle(tmp_path / "bundle", manifest, contents)
    monkeypatch.setattr("export.runtime.tokenizer.Tokenizer.from_buffer", panic)
    with pytest.raises(BundleError, match=f"{TOKENIZER}: not a tokenizer: index out of bounds"):
        Classifier.load(tmp_path / "bundle")
