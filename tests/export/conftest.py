"""A bundle built in code: twelve words, one embedding, a head of three labels and one of two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, INT8, TOKENIZER, Head, Manifest
from export.runtime.classifier import Classifier

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["where", "is", "my", "parcel", "please", "cancel", "the", "order", "now", "thanks"]
WORDS += ["refund", "##s"]
WIDTH, MAX_LENGTH = 8, 12
Graph = Callable[..., bytes]


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    """The weights: embeddings [16, 8], a linear layer [8, 5], a bias [5]."""
    draw = np.random.default_rng(0)
    shapes = {"table": (len(SPECIAL) + len(WORDS), WIDTH), "weight": (WIDTH, 5), "bias": (5,)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def graph(weights: dict[str, np.ndarray]) -> Graph:
    """A function that builds the ONNX file, with optional other inputs, outputs or embeddings."""

    def build(
        inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
        outputs: tuple[str, ...] = ("logits_intent", "logits_flags"),
        rows: int | None = None,
        split: tuple[int, int] = (3, 2),
    ) -> bytes:
        constants = {
            "table": weights["table"][:rows],
            "weight": weights["weight"],
            "bias": weights["bias"],
            "last": np.array([2], np.int64),
            "middle": np.array([1], np.int64),
            "one": np.ones(1, np.float32),
            "split": np.array(split, np.int64),
        }
        make = helper.make_node
        nodes = [
            make("Gather", ["table", inputs[0]], ["embedded"]),
            make("Cast", ["attention_mask"], ["floats"], to=TensorProto.FLOAT),
            make("Unsqueeze", ["floats", "last"], ["mask"]),
            make("Mul", ["embedded", "mask"], ["masked"]),
            make("ReduceSum", ["masked", "middle"], ["sum"], keepdims=0),
            make("ReduceSum", ["mask", "middle"], ["counted"], keepdims=0),
            make("Max", ["counted", "one"], ["count"]),
            make("Div", ["sum", "count"], ["mean"]),
            make("Gemm", ["mean", "weight", "bias"], ["logits"]),
            make("Split", ["logits", "split"], list(outputs), axis=1),
        ]
        shape = ["batch", "length"]
        whole = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(x, TensorProto.INT64, shape) for x in inputs],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", None]) for x in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    return build


@pytest.fixture(scope="session")
def contents(graph: Graph) -> dict[str, bytes]:
    """The files of the bundle; the second variant takes token types, with the same weights."""
    vocabulary = {word: row for row, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, special)
    tokenizer.enable_padding(length=30)  # the runtime must disable this
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    return {
        TOKENIZER: tokenizer.to_str().encode(),
        "config.json": b'{"model_type": "bert"}',
        FP32: graph(),
        INT8: graph(inputs),
    }


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """The manifest before the bundle is written."""
    return Manifest(
        name="tiny",
        heads=(
            Head("intent", "single_label", ("track", "cancel", "thank"), "logits_intent", 1.5),
            Head("flags", "multi_label", ("urgent", "späte"), "logits_flags", 0.8, (0.6, 0.7)),
        ),
        max_length=MAX_LENGTH,
        pad_token_id=0,
        variants={"fp32": FP32, "int8": INT8},
        default_variant="fp32",
        details={"recipe_sha256": "0" * 64, "quality": {"intent": {"accuracy": 0.5}}},
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, contents: dict[str, bytes]) -> Path:
    """The bundle on disk; read-only."""
    folder = tmp_path_factory.mktemp("export") / "bundle"
    write_bundle(folder, manifest, contents)
    return folder


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the bundle to modify."""
    yield Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle, threads=1)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts of many lengths in random order; one empty, one too long, one of unknown words."""
    draw = np.random.default_rng(1)
    drawn = [" ".join(draw.choice(WORDS[:-1], size)) for size in draw.integers(1, 9, 60)]
    return [*drawn, "", "parcels " * 40, "ünbekannt 包裹 \x00 😀", "Thanks"]


@pytest.fixture(scope="session")
def exportable(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, contents: dict[str, bytes], graph: Graph
) -> Path:
    """A bundle that every target supports: int8, a BERT tokenizer and config (width 8, one layer)."""
    from export.graph.quantize import quantize_int8

    folder = tmp_path_factory.mktemp("exportable")
    (folder / "fp32.onnx").write_bytes(graph())
    ids = np.arange(len(WORDS), dtype=np.int64)[:, None]
    batches = [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]
    quantize_int8(folder / "fp32.onnx", folder / "int8.onnx", batches)
    config = {"model_type": "bert", "architectures": None, "hidden_size": WIDTH, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 1, "max_position_embeddings": 64, "id2label": {"0": "LABEL_0"}}
    tokenizer = {"tokenizer_class": "BertTokenizer", "model_max_length": MAX_LENGTH}
    for mark in ("pad", "unk", "cls", "sep"):
        tokenizer[f"{mark}_token"] = f"[{mark.upper()}]"
    words = Tokenizer.from_str(contents[TOKENIZER].decode())
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.add_special_tokens(SPECIAL)
    files = {
        TOKENIZER: words.to_str().encode(),
        "config.json": json.dumps(config).encode(),
        "tokenizer_config.json": json.dumps(tokenizer).encode(),
        FP32: folder / "fp32.onnx",
        INT8: folder / "int8.onnx",
    }
    write_bundle(folder / "bundle", replace(manifest, default_variant="int8"), files)
    return folder / "bundle"
