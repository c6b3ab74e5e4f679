"""The text-in-graph export gives the token ids and answers of the bundle."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import TOKENIZER
from export.graph.gates import GateError
from export.runtime.classifier import Classifier
from export.runtime.tokenizer import open_tokenizer
from export.targets.registry import export_bundle
from export.targets.text_in_graph import check, operators
from export.targets.writer import TargetError

if importlib.util.find_spec("onnxruntime_extensions") is None:
    pytest.skip("the extra text-in-graph is not installed", allow_module_level=True)
# example.py would import both
ALONE = "import sys; sys.modules |= dict.fromkeys(['transformers', 'torch'])\n"

# accents, CJK, emoji, Hangul, control characters, special tokens, unknown pieces
PIECES = [
    "my",
    "order",
    "refunds",
    "ORDER",
    "[SEP]",
    "[UNK]",
    "[sep]",
    "é",
    "e\u0301",
    "包",
    "한",
    "😀",
    "ß",
    "İ",
]
PIECES += [
    "\x07",
    "\u200b",
    "\ufffd",
    "\ue000",
    "\U000f0000",
    "\U0010ffff",
    "\r",
    "\n",
    "\t",
    " ",
    "\u00a0",
    "。",
    "!",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


@pytest.fixture(scope="module")
def exported(exportable, tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "out"
    return out, export_bundle(exportable, "text-in-graph", out)


@pytest.fixture(scope="module")
def ask(exported):
    session = opened(exported[0] / "model.onnx")
    names = [node.name for node in session.get_outputs()]
    return lambda texts: dict(zip(names, session.run(names, {"text": np.array(texts, object)}), strict=True))


def tokenizer_of(folder):
    path = folder / TOKENIZER
    return open_tokenizer(path.read_bytes(), read_bundle(folder).max_length, path)


@pytest.fixture(scope="module")
def tokenizer(exportable):
    return tokenizer_of(exportable)


def test_the_record_lists_the_checked_texts(exported):
    out, record = exported
    assert record["parity"]["ordinary"] > 20 and record["parity"]["odd"] > 40
    assert record["parity"]["odd_that_differ"] == []  # "a" and "ab" are both unknown here
    (value,) = onnx.load(out / "model.onnx").graph.input
    assert value.name == "text" and value.type.tensor_type.elem_type == onnx.TensorProto.STRING


@given(parts=TEXTS)
@settings(max_examples=300, deadline=None)
def test_token_ids_match_the_tokenizer(ask, tokenizer, parts):
    text = "".join(parts)
    assert ask([text])["input_ids"][0].tolist() == tokenizer.encode(text).ids


def test_a_batch_is_padded_to_its_longest_text(ask, tokenizer, texts):
    given_texts = [text.replace("\0", "") for text in texts]
    rows = ask(given_texts)["input_ids"].tolist()
    ids = [tokenizer.encode(text).ids for text in given_texts]
    width = max(map(len, ids))
    assert rows == [row + [0] * (width - len(row)) for row in ids]
    assert ask(["", ""])["input_ids"].tolist() == [[2, 3], [2, 3]]
    assert ask(["order\0now"])["input_ids"].tolist() == [[2, 11, 3]]  # a text ends at its first NUL


def test_answers_match_the_classifier(ask, exportable, texts):
    classifier = Classifier.load(exportable, threads=1)
    for text in [text.replace("\0", "") for text in texts]:
        found, expected = ask([text]), classifier(text)
        intent, flags = found["probabilities_intent"][0], found["probabilities_flags"][0]
        assert found["label_intent"][0] == expected["intent"]["label"]
        assert intent.max() == pytest.approx(expected["intent"]["score"], abs=1e-5)
        chosen = {
            label for label, yes in zip(("urgent", "späte"), found["applies_flags"][0], strict=True) if yes
        }
        assert chosen == {each["label"] for each in expected["flags"]}
        shares = {each["label"]: each["score"] for each in classifier(text, scores=True)["flags"]}
        assert dict(zip(("urgent", "späte"), flags.tolist(), strict=True)) == pytest.approx(shares, abs=1e-5)
        np.testing.assert_allclose(found["logits_intent"], classifier.logits(text)["intent"], atol=1e-4)


def test_an_empty_batch_does_not_crash(exported):
    code = (
        "import numpy as np, onnxruntime as o\n"
        f"s = o.SessionOptions(); s.register_custom_ops_library({operators()!r})\n"
        f"s = o.InferenceSession({str(exported[0] / 'model.onnx')!r}, s)\n"
        "try: print(s.run(['logits_intent'], {'text': np.array([], object)})[0].shape)\n"
        "except Exception as error: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() in ("(0, 3)", "refused")


def test_the_example_runs(exported, exportable):
    asked = ["Cancel my order, NOW!", ""]
    code = f"{ALONE}import runpy; sys.argv = ['example.py', *{asked!r}]\n"
    code += f"runpy.run_path({str(exported[0] / 'example.py')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [Classifier.load(exportable, threads=1)(text) for text in asked]
    assert [each["intent"]["label"] for each in found] == [each["intent"]["label"] for each in expected]
    assert [[flag["label"] for flag in each["flags"]] for each in found] == [
        [flag["label"] for flag in each["flags"]] for each in expected
    ]


@pytest.mark.parametrize("kind", ["cased", "frame", "token types"])
def test_other_wordpiece_tokenizers(exportable, contents, tmp_path, kind):
    """Cased with accents, other special tokens, a graph with token types."""
    changed = Tokenizer.from_file(str(exportable / TOKENIZER))
    other = {}
    if kind == "cased":
        changed.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    if kind == "frame":
        special = [("[CLS]", 2), ("[SEP]", 3)]
        changed.post_processor = processors.TemplateProcessing("[CLS] [SEP] $A", None, special)
    if kind == "token types":
        other["onnx/model_quantized.onnx"] = contents["onnx/model_quantized.onnx"]
    bundle = tmp_path / "bundle"
    rewritten(exportable, bundle, {TOKENIZER: changed.to_str().encode(), **other})
    export_bundle(bundle, "text-in-graph", tmp_path / "out")
    session = opened(tmp_path / "out" / "model.onnx")
    own = tokenizer_of(bundle)
    for text in ["", "My ORDER é ordér", "where is my parcel " * 5]:
        (found,) = session.run(["input_ids"], {"text": np.array([text], object)})
        assert found[0].tolist() == own.encode(text).ids


def test_another_kind_of_tokenizer_is_refused(bundle, exportable, tmp_path):
    with pytest.raises(TargetError, match="only BERT's WordPiece, got Lowercase, Whitespace, WordPiece"):
        export_bundle(bundle, "text-in-graph", tmp_path / "out")
    words = Tokenizer.from_file(str(exportable / TOKENIZER))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.add_tokens(["refundable"])
    rewritten(exportable, tmp_path / "bundle", {TOKENIZER: words.to_str().encode()})
    with pytest.raises(TargetError, match=r"added tokens \['refundable'\]"):
        export_bundle(tmp_path / "bundle", "text-in-graph", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_different_token_ids_or_probabilities_are_refused(exported, exportable, tmp_path):
    graph, manifest = exported[0] / "model.onnx", read_bundle(exportable)
    tokenizer = tokenizer_of(exportable)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    with pytest.raises(GateError, match="has token ids"):
        check(exportable, manifest, "int8", graph, tokenizer)
    warmer = tuple(replace(head, temperature=head.temperature * 2) for head in manifest.heads)
    with pytest.raises(GateError, match="head 'intent' differs by"):
        own = tokenizer_of(exportable)
        check(exportable, replace(manifest, heads=warmer), "int8", graph, own)


def opened(path):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(operators())
    return onnxruntime.InferenceSession(str(path), options)


def rewritten(source, folder, changes):
    manifest = read_bundle(source)
    write_bundle(folder, manifest, {**{name: source / name for name in manifest.files}, **changes})
