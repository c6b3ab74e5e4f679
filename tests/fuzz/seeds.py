"""Valid files to damage: bundles of each kind and tokenizer, recipes, and labelled texts in every format."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from onnx import numpy_helper
from onnx.parser import parse_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, MANIFEST, PACKED, TOKENIZER, Head, Manifest

WORDS = [
    "where",
    "is",
    "my",
    "parcel",
    "please",
    "cancel",
    "the",
    "order",
    "now",
    "thanks",
    "a",
    "b",
    "##s",
    "##a",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZE = 300  # rows of the embedding, more than any vocabulary here
GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (int64[batch, length] input_ids, int64[batch, length] attention_mask)
    => (float[batch, 3] logits_intent, float[batch, 2] logits_flags) {
    embedded = Gather (table, input_ids)
    floats = Cast <to = 1> (attention_mask)
    mask = Unsqueeze (floats, last)
    shape = Shape (embedded)
    wide = Expand (mask, shape)
    masked = Mul (embedded, wide)
    tall = Tile (masked, ones)
    sum = ReduceSum <keepdims = 0> (tall, middle)
    flat = Reshape (sum, rows)
    filled = ConstantOfShape (eight)
    shifted = Add (flat, filled)
    small, scale, zero = DynamicQuantizeLinear (shifted)
    product = MatMulInteger (small, weight, zero)
    real = Cast <to = 1> (product)
    scaled = Mul (real, scale)
    logits = Clip (scaled, low, high)
    logits_intent, logits_flags = Split <axis = 1> (logits, split)
}
"""
PACKED_GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
packed (int64[batch, length] input_ids, int64[batch, length] attention_mask,
        int64[labels, longest] label_ids, int64[labels, longest] label_mask)
    => (float[batch, labels] logits_intent, float[batch, labels] logits_flags) {
    words = Gather (table, input_ids)
    floats = Cast <to = 1> (attention_mask)
    mask = Unsqueeze (floats, last)
    masked = Mul (words, mask)
    text = ReduceSum <keepdims = 0> (masked, middle)
    pieces = Gather (table, label_ids)
    label_floats = Cast <to = 1> (label_mask)
    label_masks = Unsqueeze (label_floats, last)
    label_words = Mul (pieces, label_masks)
    label = ReduceSum <keepdims = 0> (label_words, middle)
    turned = Transpose <perm = [1, 0]> (label)
    scores = MatMul (text, turned)
    logits_intent = Clip (scores, low, high)
    logits_flags = Mul (logits_intent, scale)
}
"""

DATA: dict[str, Any] = {"train": "data.csv", "id": "id", "text": "text", "licence": "CC0"}
HEADS = {
    "label": {"column": "label", "min_texts": 2, "weight": 2.0},
    "tags": {"column": "tags", "kind": "multi_label", "none": "none", "separator": "|"},
    "flags": {"columns": ["urgent", "polite"]},
}
RECIPES = [
    {"name": "toy", "data": DATA, "heads": HEADS},
    {
        "name": "toy",
        "seed": 1,
        "data": {
            "train": {"hub": "a/b", "config": "c", "split": "train", "revision": "d"},
            "validation": {"from": "train", "fraction": 0.1},
            "test": "test.csv",
            "text": ["title", "body"],
            "encoding": "cp1252",
            "unlabeled": ["a.txt", {"hub": "x/y"}],
            "max_bad_rows": 0.1,
        },
        "heads": {"h": {"column": "label", "labels": ["a", "b", 1, True, 2.0]}, "g": {"columns": ["x", "y"]}},
        "teacher": {
            "encoder": "a/b@c",
            "epochs": 3,
            "lr": 2e-5,
            "train": ["encoder", "h"],
            "metric": "h.accuracy",
        },
        "student": {"layers": 2, "hidden": 128, "attention_heads": 2, "vocabulary": 5_000, "start": "random"},
        "augment": {"copies": 3, "mask": 0.1, "drop": 0.1, "replace": 0.1, "span": 0.25},
        "distillation": {"loss": "kl", "temperature": 2, "soft_weight": 0.5},
        "match": {"hidden": 0.0, "layers": [1, 2]},
        "export": {"quantize": "int8", "max_length": 128},
        "gates": {"parity": 1e-3, "allow": ["h"]},
        "precision": "no",
        "device": "cpu",
        "trackers": [],
        "checkpoint_every": 5,
    },
    {
        "name": "merged",
        "data": {
            "train": [
                {"file": "data.csv", "validation": "v.csv", "test": {"from": "train", "fraction": 0.1}},
                {"hub": "a/b", "split": "x", "text": ["a", "b"], "columns": {"h": "c", "g": ["x", "y"]}},
                {"file": "c.txt", "id": "id", "encoding": "cp1252", "max_texts": 5},
            ],
            "mixing": 0.3,
            "max_texts": 9,
        },
        "heads": {"h": {}, "g": {"labels": ["p", "q"], "kind": "multi_label"}},
        "distillation": {"fill": False},
    },
    {
        "name": "start",
        "data": {"unlabeled": ["a.txt"], "root": "b", "max_bad_rows": 0},
        "teacher": {"encoder": "a/b", "layers": 2, "pooling": "cls", "sha256": "0" * 64},
        "student": {"size": "tiny", "epochs": 1, "lr": 1e-3, "batch_size": 8, "warmup": 0.0},
        "max_length": 64,
    },
]


def graph() -> onnx.ModelProto:
    """A graph with the operators whose shapes follow from tensors, and those of int8."""
    model, draw = parse_model(GRAPH), np.random.default_rng(0)
    constants = {
        "table": draw.normal(size=(SIZE, 8)).astype(np.float32),
        "weight": draw.integers(0, 99, (8, 5)).astype(np.uint8),
        "last": np.array([2]),
        "middle": np.array([1]),
        "ones": np.array([1, 1, 1]),
        "rows": np.array([-1, 8]),
        "eight": np.array([8]),
        "split": np.array([3, 2]),
        "low": np.float32(-30),
        "high": np.float32(30),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    onnx.checker.check_model(model)
    return model


def packed_graph() -> onnx.ModelProto:
    """A graph that scores labels by their words and those of the text."""
    model, draw = parse_model(PACKED_GRAPH), np.random.default_rng(0)
    constants = {
        "table": draw.normal(size=(SIZE, 8)).astype(np.float32),
        "last": np.array([2]),
        "middle": np.array([1]),
        "scale": np.float32(0.5),
        "low": np.float32(-30),
        "high": np.float32(30),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    onnx.checker.check_model(model)
    return model


def tokenizers() -> list[bytes]:
    """The tokenizer.json of a WordPiece, a byte-level BPE, a Unigram and a word-level tokenizer."""
    ids = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    ends = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    piece = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    piece.normalizer, piece.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    piece.post_processor, piece.decoder = ends, decoders.WordPiece()
    piece.add_special_tokens(SPECIAL)
    letters = {letter: n for n, letter in enumerate(["<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()])}
    pair = Tokenizer(models.BPE({**letters, "th": 258, "the": 259}, [("t", "h"), ("th", "e")]))
    pair.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pair.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    unigram = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((f"▁{w}", -2.0) for w in WORDS), ("▁", -3.0)], 0, True)
    )
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    word = Tokenizer(models.WordLevel(ids, "[UNK]"))
    word.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    word.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(True)]
    )
    word.enable_padding(length=30)
    word.enable_truncation(8, stride=2)
    return [each.to_str().encode() for each in (piece, pair, unigram, word)]


@cache
def bundle() -> dict[str, bytes]:
    """The files of a bundle, by their paths."""
    heads = (
        Head("intent", "single_label", ("where", "is", "my"), "logits_intent", 1.5),
        Head("flags", "multi_label", ("urgent", "polite"), "logits_flags", 0.8, (0.6, 0.7)),
    )
    columns = {"intent": {"column": "label", "none": None}, "flags": {"columns": ["urgent", "polite"]}}
    reads = {"text": ["text", "id"], "encoding": "cp1252", "heads": columns}
    details = {"recipe_sha256": "0" * 64, "quality": {"intent": {"accuracy": 0.5}}, "reads": reads}
    manifest = Manifest("tiny", heads, 12, 0, {"fp32": FP32}, "fp32", details=details)
    return _written(manifest, graph())


@cache
def packed_bundle() -> dict[str, bytes]:
    """The files of a packed bundle, by their paths."""
    descriptions = {"where": "is my order", "my": "a b"}
    heads = (
        Head(
            "intent", "single_label", ("where", "is", "my"), "logits_intent", 1.5, descriptions=descriptions
        ),
        Head("flags", "multi_label", ("a", "b"), "logits_flags", 0.8, (0.6, 0.7), hypothesis="please cancel"),
    )
    return _written(
        Manifest("tiny", heads, 12, 0, {"fp32": FP32}, "fp32", kind=PACKED, label_length=16), packed_graph()
    )


def _written(manifest: Manifest, model: onnx.ModelProto) -> dict[str, bytes]:
    files = {TOKENIZER: tokenizers()[0], FP32: model.SerializeToString(), "config.json": b"{}"}
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Path(scratch, "b"), manifest, files)
        return {name: Path(scratch, "b", name).read_bytes() for name in (MANIFEST, *files)}


def table() -> list[list[str]]:
    """Forty labelled rows with a header, as the columns that `HEADS` names."""
    rows = [["id", "text", "label", "tags", "urgent", "polite"]]
    for n in range(40):
        text = " ".join(WORDS[(n * step) % 10] for step in (1, 3, 7)) + f" {n} é"
        rows.append(
            [str(n), text, WORDS[n % 3], ("a|b", "a", "none", "")[n % 4], str(n % 2), str(n // 2 % 2)]
        )
    return rows


def objects() -> list[dict[str, Any]]:
    """The rows of `table` as objects, with numbers and lists, and a field that nobody reads."""
    header, *rows = table()
    found: list[dict[str, Any]] = [dict(zip(header, row, strict=True)) for row in rows]
    for n, row in enumerate(found):
        row |= {
            "id": n,
            "urgent": n % 2,
            "polite": float(n // 2 % 2),
            "tags": ["a", "b"][: n % 3],
            "other": {"x": [n]},
        }
    return found


def delimited(rows: list[list[str]], separator: str = ",") -> bytes:
    """A CSV file."""
    csv.writer(stream := io.StringIO(), delimiter=separator).writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def workbook() -> bytes:
    """An .xlsx file."""
    from openpyxl import Workbook

    book = Workbook()
    for row in table():
        book.active.append([int(cell) if cell.isdecimal() else cell for cell in row])
    book.save(stream := io.BytesIO())
    return stream.getvalue()


def parquet() -> bytes:
    """A parquet file."""
    rows = [{key: value for key, value in row.items() if key != "other"} for row in objects()]
    pq.write_table(pa.Table.from_pylist(rows), stream := io.BytesIO())
    return stream.getvalue()


def saved() -> dict[str, bytes]:
    """The files of a data set that `datasets` saved."""
    rows = [{key: value for key, value in row.items() if key != "other"} for row in objects()]
    with tempfile.TemporaryDirectory() as scratch:
        Dataset.from_list(rows).save_to_disk(scratch)
        return {file.name: file.read_bytes() for file in Path(scratch).iterdir()}


def json_files() -> list[bytes]:
    """JSON files: an array, what pandas writes in three orientations, and objects in an object."""
    rows = objects()
    columns = {key: {str(n): row[key] for n, row in enumerate(rows)} for key in rows[0]}
    split = {"columns": [*rows[0]], "index": [*range(40)], "data": [[*row.values()] for row in rows]}
    values = [rows, columns, split, {str(n): row for n, row in enumerate(rows)}, {"data": rows, "version": 1}]
    return [json.dumps(value).encode() for value in values]
