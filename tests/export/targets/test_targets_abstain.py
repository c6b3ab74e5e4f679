"""Heads that abstain, in every target: the same texts without a label as in the runtime."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import ENERGY, PROBABILITY, Abstain
from export.runtime.classifier import Classifier
from export.runtime.postprocess import Answers
from export.targets.registry import export_bundle
from export.targets.text_in_graph import operators


@pytest.fixture(
    scope="module", params=[Abstain(PROBABILITY, 0.6), Abstain(ENERGY, 2.1)], ids=lambda x: x.score
)
def abstaining(request, exportable, tmp_path_factory):
    """An exportable bundle whose head intent abstains on some texts."""
    manifest = read_bundle(exportable)
    heads = (replace(manifest.heads[0], abstain=request.param), *manifest.heads[1:])
    folder = tmp_path_factory.mktemp("abstaining") / "bundle"
    files = {name: exportable / name for name in manifest.files}
    write_bundle(folder, replace(manifest, heads=heads, default_variant="fp32"), files)
    return folder


def logits(count=200):
    """Random logits of the head intent, some of them sure."""
    draw = np.random.default_rng(3)
    return draw.normal(size=(count, 3)) * draw.uniform(0.1, 6, (count, 1))


def expected(folder):
    head = read_bundle(folder).heads[0]
    answers = [one["intent"] for one in Answers([head])(logits(), None, False)]
    assert 20 < sum(answer["label"] is None for answer in answers) < 180
    return answers


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_transformers_js(abstaining, tmp_path):
    export_bundle(abstaining, "transformers-js", tmp_path / "out", variant="fp32")
    head = json.loads((tmp_path / "out/model/manifest.json").read_text("utf-8"))["heads"][0]
    script = (
        "import { answer, confidence, ranked } from './classifier.js';\n"
        f"const head = {json.dumps(head)}, all = {json.dumps(logits().tolist())};\n"
        "const found = all.map((one) => answer(head, ranked(head, one), confidence(head, one)));\n"
        "console.log(JSON.stringify(found));"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=True,
    )
    for found, wanted in zip(json.loads(done.stdout), expected(abstaining), strict=True):
        assert found == {"label": wanted["label"], "score": pytest.approx(wanted["score"], abs=1e-9)}


def test_triton(abstaining, tmp_path):
    export_bundle(abstaining, "triton", tmp_path / "out")
    spec = importlib.util.spec_from_file_location("client", tmp_path / "out/client.py")
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    for row, wanted in zip(logits(), expected(abstaining), strict=True):
        found = client.answer(client.MANIFEST["heads"][0], row)
        assert found == {"label": wanted["label"], "score": pytest.approx(wanted["score"], abs=1e-9)}


def test_text_embeddings_inference(abstaining, tmp_path):
    export_bundle(abstaining, "tei", tmp_path / "out")
    rule = read_bundle(abstaining).heads[0].abstain
    text = (tmp_path / "out/intent/README.md").read_text("utf-8")
    words = "abstains below a score of 0.6" if rule.score == PROBABILITY else "is below 2.1"
    assert words in text and ("raw_scores" in text) is (rule.score == ENERGY)
    assert "abstain" not in (tmp_path / "out/flags/README.md").read_text("utf-8")


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_extensions") is None, reason="needs the extra text-in-graph"
)
def test_text_in_graph(abstaining, texts, tmp_path):
    export_bundle(abstaining, "text-in-graph", tmp_path / "out")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(operators())
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"), options)
    classifier = Classifier.load(abstaining, threads=1)
    given = [text.replace("\0", "") for text in texts]
    (labels,) = session.run(["label_intent"], {"text": np.array(given, object)})
    answers = classifier.predict(given, "intent")
    assert None in answers and {*answers} != {None}
    assert labels.tolist() == [answer or "" for answer in answers]
