"""The Triton repository: config, graph and client."""

from __future__ import annotations

import importlib.util
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, TOKENIZER, Head
from export.runtime.classifier import Classifier
from export.targets.registry import export_bundle
from export.targets.writer import TargetError


@pytest.fixture(scope="module", params=["int8", "fp32"])
def repository(request, exportable, tmp_path_factory):
    out = tmp_path_factory.mktemp("triton") / "repository"
    export_bundle(exportable, "triton", out, variant=request.param)
    return out


@pytest.fixture(scope="module")
def parsed(repository):
    proto = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="tritonclient has Triton's proto"
    )
    from google.protobuf import text_format

    return text_format.Parse((repository / "tiny" / "config.pbtxt").read_text("utf-8"), proto.ModelConfig())


def test_the_config_matches_the_graph(repository, parsed):
    session = onnxruntime.InferenceSession(str(repository / "tiny" / "1" / "model.onnx"))
    proto = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    names = {proto.TYPE_INT64: "tensor(int64)", proto.TYPE_FP32: "tensor(float)"}
    assert parsed.name == "tiny" and parsed.backend == "onnxruntime" and parsed.max_batch_size > 1
    assert {(x.name, names[x.data_type], tuple(x.dims)) for x in parsed.input} == {
        (x.name, x.type, (-1,)) for x in session.get_inputs()
    }
    found = {x.name: (names[x.data_type], list(x.dims)) for x in parsed.output}
    assert found == {"logits_intent": ("tensor(float)", [3]), "logits_flags": ("tensor(float)", [2])}
    assert parsed.HasField("dynamic_batching") and parsed.instance_group[0].count == 1
    ids = np.zeros((parsed.max_batch_size, 5), np.int64)
    logits = session.run([x.name for x in parsed.output], {x.name: ids for x in parsed.input})
    assert [part.shape for part in logits] == [(parsed.max_batch_size, x.dims[0]) for x in parsed.output]


def test_every_output_has_its_labels(repository, parsed):
    files = {x.name: repository / "tiny" / x.label_filename for x in parsed.output}
    assert files["logits_intent"].read_text("utf-8").splitlines() == ["track", "cancel", "thank"]
    assert files["logits_flags"].read_text("utf-8").splitlines() == ["urgent", "späte"]


def test_the_client_matches_the_classifier(repository, exportable, texts):
    variant = json.loads((repository / "export.json").read_text())["variant"]
    classifier = Classifier.load(exportable, variant=variant, threads=1)
    client = module(repository / "client.py")
    with serving(repository / "tiny") as url:
        found = [client.classify([text], url)[0] for text in texts]
        together = client.classify(texts[:8], url)
    expected = [classifier(text) for text in texts]
    assert [shape(answer) for answer in found] == [shape(answer) for answer in expected]
    assert [answer["intent"]["score"] for answer in found] == pytest.approx(
        [answer["intent"]["score"] for answer in expected], abs=2e-2 if variant == "int8" else 1e-6
    )
    if variant == "fp32":
        assert [shape(answer) for answer in together] == [shape(answer) for answer in expected[:8]]


def test_at_a_threshold_of_1_the_client_gives_no_label(repository):
    client = module(repository / "client.py")
    head = next(head for head in client.MANIFEST["heads"] if head["kind"] == "multi_label")
    width = len(head["labels"])
    head["thresholds"] = [1.0] + [0.5] * (width - 1)
    found = client.answer(head, [40.0] * width)  # a sigmoid that rounds to 1
    assert {each["label"] for each in found} == {*head["labels"][1:]}


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a b", "intent", "bundle's name 'a b' cannot name a file"),
        ("..", "intent", "cannot name a file"),
        ("tiny", "../intent", "head '../intent' cannot name a file"),
    ],
)
def test_names_that_cannot_be_files_are_refused(contents, manifest, tmp_path, name, head, expected):
    heads = (Head(head, "single_label", ("a", "b", "c"), "logits_intent"), manifest.heads[1])
    other = replace(manifest, name=name, heads=heads, variants={"fp32": FP32})
    write_bundle(tmp_path / "bundle", other, {key: contents[key] for key in (TOKENIZER, FP32)})
    with pytest.raises(TargetError, match=expected):
        export_bundle(tmp_path / "bundle", "triton", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def shape(answer):
    return answer["intent"]["label"], [each["label"] for each in answer["flags"]]


def module(path: Path):
    spec = importlib.util.spec_from_file_location("client", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class serving:
    """Serves the graph of the repository over the open inference protocol, like Triton."""

    def __init__(self, model: Path) -> None:
        session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                tensors = [
                    {"name": x.name, "datatype": "INT64", "shape": [-1, -1]} for x in session.get_inputs()
                ]
                self.reply({"name": model.name, "inputs": tensors})

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                feed = {x["name"]: np.array(x["data"], np.int64).reshape(x["shape"]) for x in asked["inputs"]}
                names = [x.name for x in session.get_outputs()]
                logits = session.run(names, feed)
                self.reply(
                    {
                        "outputs": [
                            {"name": n, "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
                            for n, x in zip(names, logits, strict=True)
                        ]
                    }
                )

            def reply(self, document):
                body = json.dumps(document).encode()
                right = self.path.startswith(f"/v2/models/{model.name}")
                self.send_response(200 if right else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
