"""Compare the predictions of all readers of a bundle: Python, Node, Chromium and the text-in-graph export.

    python benchmarks/readers.py BUNDLE texts.csv --transformers-js node_modules/@huggingface/transformers

Exports the bundle as transformers-js and text-in-graph into a temporary folder and runs each reader. Prints
one JSON document: the number of texts with the same labels as Python for every head, the largest score
difference, and the built-in odd texts whose token ids differ from those of the bundle's tokenizer. Node and
Chromium need --transformers-js. Chromium also needs playwright-core in the same node_modules folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from export.bundle.files import read_file
from export.bundle.manifest import TOKENIZER
from export.runtime.classifier import Classifier
from export.runtime.session import open_graph
from export.runtime.tokenizer import open_tokenizer
from export.targets.registry import export_bundle
from export.targets.text_in_graph import INPUT, operators

DRIVER = Path(__file__).with_name("readers_browser.mjs")
IDS = """
import { readFileSync } from "node:fs";
import { AutoTokenizer, env } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const tokenizer = await AutoTokenizer.from_pretrained("model");
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map((text) => tokenizer.encode(text))));
"""


def main() -> None:
    """Print the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--texts", type=int, default=200, help="number of texts for Node and Chromium (200)")
    parser.add_argument(
        "--graph-texts", type=int, default=1000, help="number of texts for text-in-graph (1000)"
    )
    parser.add_argument("--transformers-js", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--picture", type=Path, help="save a screenshot of the page with the last text")
    options = parser.parse_args()
    with options.csv.open(encoding="utf-8", newline="") as file:
        texts = [row[options.column] for row in csv.DictReader(file)]
    classifier = Classifier.load(options.bundle, threads=1)
    probes = json.loads((files("export.targets") / "templates" / "probes.json").read_text(encoding="utf-8"))
    odd = [*probes["ordinary"], *probes["odd"]]
    results: dict[str, Any] = {"bundle": classifier.manifest.name, "variant": classifier.variant}
    with tempfile.TemporaryDirectory() as scratch:
        few, many = texts[: options.texts], texts[: options.graph_texts]
        graph = _graph(classifier, options.bundle, Path(scratch), odd)
        results["text-in-graph"] = compare(classifier, many, graph[0](many)) | graph[1]
        results["BertTokenizer operator"] = _ready_made(classifier, options.bundle, odd)
        if options.transformers_js:
            folder = _page(options.bundle, Path(scratch), options.transformers_js)
            node, ids = _node(folder, few, odd)
            results["node"] = compare(classifier, few, node) | _ids(classifier, options.bundle, odd, ids)
            if options.chromium:
                results["chromium"] = _chromium(classifier, folder, few, options)
    print(json.dumps(results, indent=2, ensure_ascii=False))


def compare(classifier: Classifier, texts: list[str], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The number of texts whose `answers` have the classifier's labels, and the largest score difference.

    The classifier gets one text per call.
    """
    same, gap = 0, 0.0
    for text, answer in zip(texts, answers, strict=True):
        reference = classifier(text)
        pairs = [(_listed(answer[head]), _listed(reference[head])) for head in classifier.heads]
        equal = all([x["label"] for x in a] == [x["label"] for x in b] for a, b in pairs)
        same += equal
        if equal:
            scores = [(x["score"], y["score"]) for a, b in pairs for x, y in zip(a, b, strict=True)]
            gap = max([gap, *(abs(x - y) for x, y in scores)])
    return {"texts": len(texts), "same_labels": same, "max_score_difference": gap}


def _listed(answer: Any) -> list[dict[str, Any]]:
    return answer if isinstance(answer, list) else [answer]


def _tokenizer(classifier: Classifier, bundle: Path) -> Tokenizer:
    data = read_file(bundle, classifier.manifest, TOKENIZER)
    return open_tokenizer(data, classifier.manifest.max_length, bundle / TOKENIZER)


def _ids(classifier: Classifier, bundle: Path, texts: list[str], ids: list[list[int]]) -> dict[str, Any]:
    tokenizer = _tokenizer(classifier, bundle)
    tokenizer.no_truncation()
    other = [text for text, theirs in zip(texts, ids, strict=True) if tokenizer.encode(text).ids != theirs]
    return {"odd_texts": len(texts), "odd_that_differ": len(other), "differ": [text[:40] for text in other]}


def _graph(
    classifier: Classifier, bundle: Path, scratch: Path, odd: list[str]
) -> tuple[Callable[[list[str]], list[dict[str, Any]]], dict[str, Any]]:
    export_bundle(bundle, "text-in-graph", scratch / "graph")
    graph = scratch / "graph" / "model.onnx"
    session = open_graph(graph.read_bytes(), graph, operators=operators())
    names = [node.name for node in session.get_outputs()]

    def classify(texts: list[str]) -> list[dict[str, Any]]:
        return [_answer(classifier, run(text)) for text in texts]

    def run(text: str) -> dict[str, Any]:
        return dict(zip(names, session.run(names, {INPUT: np.array([text], object)}), strict=True))

    ids = [run(text)["input_ids"][0].tolist() for text in odd]
    tokenizer = _tokenizer(classifier, bundle)
    other = [text for text, theirs in zip(odd, ids, strict=True) if tokenizer.encode(text).ids != theirs]
    return classify, {
        "odd_texts": len(odd),
        "odd_that_differ": len(other),
        "differ": [text[:40] for text in other],
    }


def _answer(classifier: Classifier, outputs: dict[str, Any]) -> dict[str, Any]:
    """The graph's outputs for one text, in the format of the classifier."""
    answer: dict[str, Any] = {}
    for head in classifier.manifest.heads:
        probabilities = outputs[f"probabilities_{head.name}"][0]
        if head.kind == "single_label":
            label = outputs[f"label_{head.name}"][0]
            answer[head.name] = {"label": label, "score": float(probabilities.max())}
            continue
        order = np.argsort(-outputs[head.output][0], kind="stable")
        applies = [i for i in order if outputs[f"applies_{head.name}"][0][i]]
        answer[head.name] = [{"label": head.labels[i], "score": float(probabilities[i])} for i in applies]
    return answer


def _ready_made(classifier: Classifier, bundle: Path, texts: list[str]) -> dict[str, Any]:
    """Token ids of the BertTokenizer operator of onnxruntime-extensions, which the export does not use."""
    document = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    normalizer, vocabulary = document["normalizer"], document["model"]["vocab"]
    node = helper.make_node(
        "BertTokenizer",
        [INPUT],
        ["ids", "types", "mask"],
        domain="ai.onnx.contrib",
        vocab_file="\n".join(sorted(vocabulary, key=vocabulary.__getitem__)),
        do_lower_case=int(normalizer["lowercase"]),
        strip_accents=int(normalizer["lowercase"]),
    )
    info = helper.make_tensor_value_info
    ends = [info(INPUT, TensorProto.STRING, [None])], [info("ids", TensorProto.INT64, [None])]
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    model = helper.make_model(helper.make_graph([node], "ids", *ends), opset_imports=domains, ir_version=8)
    session = open_graph(model.SerializeToString(), Path("ids.onnx"), operators=operators())
    ids = [session.run(["ids"], {INPUT: np.array([text], object)})[0].tolist() for text in texts]
    tokenizer = _tokenizer(classifier, bundle)
    tokenizer.no_truncation()
    other = [text for text, theirs in zip(texts, ids, strict=True) if tokenizer.encode(text).ids != theirs]
    return {"odd_texts": len(texts), "odd_that_differ": len(other), "differ": [text[:40] for text in other]}


def _page(bundle: Path, scratch: Path, library: Path) -> Path:
    export_bundle(bundle, "transformers-js", scratch / "page", library=library)
    (scratch / "node_modules").symlink_to(library.resolve().parents[1])
    (scratch / "page" / "ids.mjs").write_text(IDS, encoding="utf-8")
    return scratch / "page"


def _node(folder: Path, texts: list[str], odd: list[str]) -> tuple[list[dict[str, Any]], list[list[int]]]:
    def run(*words: str, given: str) -> str:
        command = ["node", *words]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout

    lines = "".join(" ".join(text.split()) + "\n" for text in texts)  # one text per line
    answers = [json.loads(line) for line in run(str(folder / "example.mjs"), given=lines).splitlines()]
    return answers, json.loads(run(str(folder / "ids.mjs"), f"{folder}{os.sep}", given=json.dumps(odd)))


def _chromium(classifier: Classifier, folder: Path, texts: list[str], options: Any) -> dict[str, Any]:
    handler = partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        command = [
            "node",
            str(DRIVER),
            str(options.transformers_js.resolve().parents[1]),
            options.chromium,
            url,
        ]
        command += [str(options.picture)] if options.picture else []
        done = subprocess.run(command, input=json.dumps(texts), stdout=subprocess.PIPE, text=True)
        if done.returncode:  # the driver prints the reason
            sys.exit(f"{DRIVER.name}: failed with status {done.returncode}")
    finally:
        server.shutdown()
        server.server_close()
    page = json.loads(done.stdout)
    latency = sorted(answer["ms"] for answer in page["answers"])
    result = compare(classifier, texts, page["answers"])
    return result | {
        "p50_ms": latency[len(latency) // 2],
        "outside": page["outside"],
        "faults": page["faults"],
    }


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Do not log requests."""


if __name__ == "__main__":
    main()
