"""Labels that are whole numbers come back as whole numbers, from every reader of a bundle."""

import importlib.util
import json
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from distill.cli.main import main
from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import Manifest
from export.runtime.classifier import Classifier
from export.serving.openapi import openapi_document
from export.serving.settings import Settings
from export.serving.v2_api import model_metadata, output_tensors
from export.targets.registry import export_bundle
from export.text import strip_text

TEMPLATES = Path(__file__).parents[2] / "export" / "targets" / "templates"
TEXTS = ["where is my parcel", "thanks", "cancel the order now", "refund"]
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, contents: Any) -> Path:
    """The bundle with whole numbers as labels."""
    names = {"intent": ("0", "1", "10"), "flags": ("-1", "7")}
    heads = tuple(replace(h, labels=names[h.name], label_type="integer") for h in manifest.heads)
    folder = tmp_path_factory.mktemp("numbered") / "bundle"
    write_bundle(folder, replace(manifest, heads=heads), contents)
    return folder


def numbers(value: Any) -> Any:
    """An answer of the bundle with words as that with numbers gives it."""
    names = {"track": 0, "cancel": 1, "thank": 10, "urgent": -1, "späte": 7}
    if isinstance(value, dict):
        return {key: names[x] if key == "label" else numbers(x) for key, x in value.items()}
    return [numbers(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"scores": True}, {"heads": ["flags"]}])
def test_answers(numbered: Path, classifier: Classifier, options: dict[str, Any]) -> None:
    found = Classifier.load(numbered, threads=1)
    assert found(TEXTS, **options) == numbers(classifier(TEXTS, **options))
    assert found.labels("intent") == (0, 1, 10) and found.labels("flags") == (-1, 7)
    label = found.predict_intent(TEXTS[0])["label"]
    assert type(label) is int and json.loads(json.dumps(label)) == label


def test_a_bundle_without_the_field_has_strings(numbered: Path) -> None:
    """Bundles of earlier versions lack it, and earlier versions ignore it."""
    found = read_bundle(numbered)
    document = found.to_json()
    for head in document["heads"]:
        del head["label_type"]
    old = Manifest.from_json(with_digest(document))
    assert [head.values for head in old.heads] == [("0", "1", "10"), ("-1", "7")]


def with_digest(document: dict[str, Any]) -> dict[str, Any]:
    from export.bundle.manifest import _digest

    rest = {key: value for key, value in document.items() if key != "digest"}
    return {**rest, "digest": _digest(rest)}


def test_predict_and_evaluate(numbered: Path, tmp_path: Path, capfd: Any) -> None:
    assert main(["predict", str(numbered), "where is my parcel"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert type(answer["intent"]["label"]) is int
    label = answer["intent"]["label"]
    for cells in ([label, float(label), str(label), f"{label}.0"], [True, False, "1.0", "0"]):
        rows = [{"text": "where is my parcel", "intent": cell} for cell in cells]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        assert main(["evaluate", str(numbered), str(tmp_path / "a.jsonl"), "--heads=intent", "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["texts"] == {"intent": 4} and found["unknown_labels"] == {}
        assert found["heads"]["intent"]["accuracy"] == sum(int(float(c)) == label for c in cells) / 4


def test_a_bytes_tensor_has_strings(numbered: Path) -> None:
    found = Classifier.load(numbered, threads=1)
    answers, logits = found(TEXTS), found.logits(TEXTS)
    outputs = output_tensors(found.manifest.heads)
    intent = outputs["intent"].tensor(logits["intent"], answers)
    assert intent["datatype"] == "BYTES"
    assert intent["data"] == [str(answer["intent"]["label"]) for answer in answers]
    flags = outputs["flags"].tensor(logits["flags"], answers)
    assert {*map(type, flags["data"])} == {str}
    described = model_metadata("x", "1", [*outputs.values()])["outputs"]
    assert described[0]["parameters"] == {"kind": "single_label", "labels": ("0", "1", "10")}


def test_the_openapi_document_allows_both() -> None:
    document = json.dumps(openapi_document(["tiny"], Settings(bundles=("bundle",))))
    assert '"label": {"type": ["string", "integer"]}' in document


@pytest.fixture
def triton(numbered: Path, tmp_path: Path) -> Any:
    out = export_bundle(numbered, "triton", tmp_path / "out", variant="fp32")["out"]
    spec = importlib.util.spec_from_file_location("client", Path(out) / "client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_client_for_triton(numbered: Path, triton: Any) -> None:
    found = Classifier.load(numbered, variant="fp32", threads=1)
    logits = found.logits(TEXTS)
    for row, expected in enumerate(found(TEXTS)):
        answers = {h["name"]: triton.answer(h, logits[h["name"]][row]) for h in triton.MANIFEST["heads"]}
        assert [answers["intent"]["label"]] == [expected["intent"]["label"]]
        assert [x["label"] for x in answers["flags"]] == [x["label"] for x in expected["flags"]]
    assert json.dumps(answers)


NASTY = [
    " a\u00a0 b\u3000",
    "\ufeff\u200b a\n",
    "\x1c\x85a b\u2060\u200d",
    "\u200b",
    "",
    "\0 a \0",
    "\u2028❤\ufe0f\u2029",
]


def test_the_client_for_triton_strips_texts(triton: Any) -> None:
    assert [triton.ENDS.sub("", text) for text in NASTY] == [*map(strip_text, NASTY)]


@needs_node
def test_javascript(numbered: Path, tmp_path: Path) -> None:
    heads = [asdict(head) for head in read_bundle(numbered).heads]
    code = f"""
import {{ answer, ranked, strip }} from "{TEMPLATES}/transformers-js/classifier.js";
const [intent, flags] = {json.dumps(heads)};
console.log(JSON.stringify({{
  intent: answer(intent, ranked(intent, [0, 3, 1])).label,
  flags: answer(flags, ranked(flags, [9, 8])).map((each) => each.label),
  texts: {json.dumps(NASTY)}.map(strip),
}}));
"""
    (tmp_path / "x.mjs").write_text(code, "utf-8")
    done = subprocess.run(["node", str(tmp_path / "x.mjs")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"intent": 1, "flags": [-1, 7], "texts": [*map(strip_text, NASTY)]}


def test_id2label_stays_text(numbered: Path) -> None:
    from export.targets.tei import _labels

    labels = _labels(read_bundle(numbered).heads[0])
    assert labels["id2label"] == {"0": "0", "1": "1", "2": "10"} and labels["label2id"]["10"] == 2
