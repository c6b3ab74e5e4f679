"""The transformers.js export: its files, and its answers in Node and a browser.

TRANSFORMERS_JS names an installed node_modules/@huggingface/transformers; the browser needs playwright-core
in the same node_modules, and a Chromium (CHROMIUM, or on the path).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import TOKENIZER
from export.runtime.classifier import Classifier
from export.targets.registry import export_bundle
from export.targets.writer import TargetError

DRIVER = Path(__file__).parents[3] / "benchmarks" / "readers_browser.mjs"
LIBRARY = os.environ.get("TRANSFORMERS_JS", "")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
needs_node = pytest.mark.skipif(
    not (LIBRARY and shutil.which("node")), reason="needs node, and TRANSFORMERS_JS to name the npm package"
)
needs_browser = pytest.mark.skipif(
    not (LIBRARY and CHROMIUM and Path(LIBRARY).parents[1].joinpath("playwright-core").is_dir()),
    reason="needs Chromium, and playwright-core beside transformers.js",
)


@pytest.fixture(scope="module", params=["int8", "fp32"])
def exported(request, exportable, tmp_path_factory):
    out = tmp_path_factory.mktemp("js") / "out"
    record = export_bundle(exportable, "transformers-js", out, variant=request.param, library=LIBRARY or None)
    if LIBRARY:
        (out.parent / "node_modules").symlink_to(Path(LIBRARY).parents[1])
    return out, record


def test_the_model_is_a_bundle_with_one_variant(exported, exportable, texts):
    out, record = exported
    variant = record["variant"]
    manifest = read_bundle(out / "model")
    file = "onnx/model_quantized.onnx" if variant == "int8" else "onnx/model.onnx"
    assert dict(manifest.variants) == {variant: file} and manifest.default_variant == variant
    assert set(manifest.files) == {file, "tokenizer.json", "config.json", "tokenizer_config.json"}
    assert record["model_bytes"] == (out / "model" / file).stat().st_size
    answers = Classifier.load(out / "model", threads=1)(texts)
    assert answers == Classifier.load(exportable, variant=variant, threads=1)(texts)


def test_the_page_requests_only_its_own_files(exported):
    out, _ = exported
    page = (out / "index.html").read_text("utf-8")
    policy = re.search(r'content="(default-src[^"]*)"', page)[1]
    inline = re.search(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy and "default-src 'none'" in policy
    for file in out.glob("*.*"):
        if file.suffix in (".html", ".js", ".css"):
            assert "//" not in re.sub(r"^\s*//.*|//\s.*$", "", file.read_text("utf-8"), flags=re.MULTILINE), (
                file
            )
    named = set(re.findall(r'"\./([\w./-]+)"', page + (out / "playground.js").read_text("utf-8")))
    for name in named:
        assert (out / name).is_file() or (name.startswith("transformers/") and not LIBRARY), name


def test_a_bundle_without_tokenizer_config_is_refused(bundle, tmp_path):
    with pytest.raises(TargetError, match=r"has no \['tokenizer_config\.json'\]"):
        export_bundle(bundle, "transformers-js", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_invalid_library_is_refused(exportable, tmp_path):
    package = tmp_path / "node_modules" / "@huggingface" / "transformers"
    package.mkdir(parents=True)
    out = tmp_path / "out"
    with pytest.raises(TargetError, match="is not the npm package @huggingface/transformers"):
        export_bundle(exportable, "transformers-js", out, library=package)
    about = {"name": "@huggingface/transformers", "version": "3.8.1"}
    (package / "package.json").write_text(json.dumps(about))
    with pytest.raises(TargetError, match=r"is transformers\.js 3\.8\.1, expected 4"):
        export_bundle(exportable, "transformers-js", out, library=package)
    (package / "package.json").write_text(json.dumps(about | {"version": "4.3.1"}))
    with pytest.raises(TargetError, match=r"transformers\.web\.min\.js: No such file.*npm install"):
        export_bundle(exportable, "transformers-js", out, library=tmp_path / "node_modules")
    assert not out.exists()


@needs_node
def test_node_matches_python(exported, exportable, texts):
    out, record = exported
    classifier = Classifier.load(exportable, variant=record["variant"], threads=1)
    given = [text for text in texts if text]
    done = subprocess.run(["node", str(out / "example.mjs"), *[t.replace("\0", "") for t in given]],
                          capture_output=True, text=True, check=True)  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    same([{"intent": each["intent"], "flags": each["flags"]} for each in found], classifier, given)


@needs_node
def test_node_keeps_the_closing_token_of_a_long_text(exportable, tmp_path):
    """transformers.js itself would drop [SEP]."""
    manifest = read_bundle(exportable)
    document = json.loads((exportable / TOKENIZER).read_text())
    document["post_processor"]["single"].append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    files = {name: exportable / name for name in manifest.files}
    write_bundle(tmp_path / "bundle", manifest, {**files, TOKENIZER: json.dumps(document).encode()})
    export_bundle(tmp_path / "bundle", "transformers-js", tmp_path / "out", variant="fp32")
    (tmp_path / "node_modules").symlink_to(Path(LIBRARY).parents[1])
    texts = ["where is my parcel " * 9, "[CLS] " + "where is my parcel thanks " * 9]
    done = subprocess.run(
        ["node", str(tmp_path / "out" / "example.mjs"), *texts], capture_output=True, check=True
    )
    classifier = Classifier.load(tmp_path / "bundle", variant="fp32", threads=1)
    assert classifier.tokens(texts) == [manifest.max_length] * 2
    same([json.loads(line) for line in done.stdout.splitlines()], classifier, texts)


@needs_browser
def test_chromium_matches_python_and_stays_offline(exported, exportable, texts):
    out, record = exported
    classifier = Classifier.load(exportable, variant=record["variant"], threads=1)
    handler = partial(Quiet, directory=str(out.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/out/"
        command = ["node", str(DRIVER), str(Path(LIBRARY).parents[1]), CHROMIUM, url]
        done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["outside"] == [] and seen["faults"] == []
    same(seen["answers"], classifier, texts)
    assert seen["answers"][-1]["intent"]["label"] in seen["shown"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def same(found, classifier, texts):
    loose = 2e-2 if classifier.variant == "int8" else 1e-5
    for mine, theirs in zip(found, [classifier(text) for text in texts], strict=True):
        assert mine["intent"]["label"] == theirs["intent"]["label"]
        assert mine["intent"]["score"] == pytest.approx(theirs["intent"]["score"], abs=loose)
        assert [x["label"] for x in mine["flags"]] == [x["label"] for x in theirs["flags"]]
        assert [x["score"] for x in mine["flags"]] == pytest.approx(
            [x["score"] for x in theirs["flags"]], abs=loose
        )
