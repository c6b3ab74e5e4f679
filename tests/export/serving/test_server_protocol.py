"""`/predict`, the open inference protocol v2, `/docs`, and the errors of invalid requests."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.bundle.files import write_bundle
from export.bundle.manifest import Abstain
from export.runtime.classifier import Classifier

TEXTS = ["where is my parcel", "thanks", "cancel the order now please"]


def tensors(reply):
    """The outputs of a response by name, each as (datatype, shape, data)."""
    assert reply.status == 200, reply.body
    return {x["name"]: (x["datatype"], x["shape"], x["data"]) for x in reply.json()["outputs"]}


def infer(server, data, shape=None, **more):
    tensor = {"name": "text", "datatype": "BYTES", "shape": shape or [len(data)], "data": data}
    return server.send("/v2/models/tiny/infer", {"inputs": [tensor], **more})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": ["flags"]},
        {"heads": ["flags", "intent", "flags"], "top_k": 1},
        {"scores": True},
        {"top_k": 10**9, "model": "tiny", "heads": None},
        {"thresholds": {"flags": 0}},
        {"thresholds": {"flags": {"urgent": 0.2}}, "heads": ["flags"]},
        {"thresholds": None},
        {"thresholds": {"intent": 0.9, "flags": 0.2}},
        {"thresholds": {"intent": 0.9}, "abstain": False, "heads": ["intent"]},
        {"abstain": False},
    ],
)
def test_predict_returns_what_the_classifier_returns(server, classifier, options, close_to):
    called = {key: value for key, value in options.items() if key != "model"}
    for text in TEXTS:
        assert close_to(server.predict(text=text, **options).json(), classifier(text, **called))
    assert close_to(server.predict(texts=TEXTS, **options).json(), classifier(TEXTS, **called))
    assert server.predict(texts=[], **options).json() == []


def test_a_head_that_abstains_answers_null(serve, bundle, manifest, contents, tmp_path):
    rule = Abstain("probability", 0.8, 0.98, 0.95, 0.5)
    heads = (replace(manifest.heads[0], abstain=rule), *manifest.heads[1:])
    write_bundle(tmp_path / "bundle", replace(manifest, heads=heads), contents)
    classifier, server = Classifier.load(tmp_path / "bundle", threads=1), serve(tmp_path / "bundle")
    texts = ["parcel", "cancel", "thanks", "where is my parcel", "cancel the order now please", "refund"]
    answers = [classifier(text) for text in texts]
    assert {answer["intent"]["label"] is None for answer in answers} == {True, False}
    assert [server.predict(text=text).json() for text in texts] == answers
    assert b'"label":null' in server.predict(texts=texts).body
    own = Classifier.load(bundle, threads=1)
    assert [server.predict(text=text, abstain=False).json() for text in texts] == [
        own(text) for text in texts
    ]
    labels, scores = [], []
    for text in texts:
        found = tensors(infer(server, [text]))
        labels += found["intent"][2]
        scores += found["intent.score"][2]
    assert labels == [answer["intent"]["label"] or "" for answer in answers]
    assert scores == [answer["intent"]["score"] for answer in answers]


def test_a_single_text_gets_exactly_the_same_scores(server, classifier):
    assert [server.predict(text=text).json() for text in TEXTS] == [classifier(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"", 400, "body: must be JSON"),
        (b"\xff", 400, "body: must be JSON"),
        (b'{"text": "\\ud800"}', 400, "body: must be JSON"),
        (b"[" * 90_000, 400, "body: must be JSON"),
        (b"[]", 422, "body: must be a JSON object, got []"),
        (b"{}", 422, 'either "text"'),
        ({"text": "a", "texts": []}, 422, 'either "text"'),
        ({"text": 3}, 422, "text: must be a string, got 3"),
        ({"text": None}, 422, "text: must be a string, got null"),
        ({"texts": "a"}, 422, 'texts: must be a list of strings, got "a"'),
        ({"texts": ["a", {}]}, 422, "texts: position 1: must be a string, got {}"),
        ({"texts": ["a"] * 201}, 422, "texts: at most 200"),
        ({"text": "a" * 5_001}, 422, "text: has 5001 characters, at most 5000"),
        ({"text": "a" * 100_001}, 413, "body: at most 100000 bytes"),
        ({"text": "a", "head": ["intent"]}, 422, "unknown key 'head'"),
        ({"text": "a", "heads": ["intend"]}, 422, "did you mean 'intent'?"),
        ({"text": "a", "heads": []}, 422, "heads: must be a list of at least one name"),
        ({"text": "a", "heads": "intent"}, 422, "heads: must be a list"),
        ({"text": "a", "top_k": 0}, 422, "top_k: must be an integer >= 1, got 0"),
        ({"text": "a", "top_k": 10**30}, 422, "top_k: must be an integer >= 1, got 1e+30"),
        ({"text": "a", "top_k": True}, 422, "top_k: must be an integer"),
        ({"text": "a", "thresholds": 0.3}, 422, "thresholds: must map heads to numbers, got 0.3"),
        ({"text": "a", "thresholds": {"flag": 0.3}}, 422, "did you mean 'flags'?"),
        ({"text": "a", "thresholds": {"flags": {"urgnt": 0}}}, 422, "did you mean 'urgent'?"),
        ({"text": "a", "abstain": None}, 422, "abstain: must be true or false, got null"),
        ({"text": "a", "abstain": 0.5}, 422, "abstain: must be true or false, got 0.5"),
        ({"text": "a", "thresholds": {"intent": {"track": 0.5}}}, 422, "'intent': must be one number"),
        ({"text": "a", "thresholds": {"flags": 2}}, 422, "'flags': must be a number from 0 to 1, got 2"),
        ({"text": "a", "thresholds": {"flags": True}}, 422, "must be a number from 0 to 1"),
        ({"text": "a", "thresholds": {"flags": {"urgent": None}}}, 422, "'urgent': must be a number"),
        ({"texts": [], "thresholds": {"flags": 0.1}, "top_k": 1}, 422, "thresholds: do not apply to lists"),
        ({"text": "a", "scores": 1}, 422, "scores: must be true or false"),
        ({"text": "a", "model": "tinny"}, 404, "did you mean 'tiny'?"),
        ({"text": "a", "model": 1}, 422, "model: must be a string"),
    ],
)
def test_predict_rejects_invalid_requests(server, body, status, line):
    reply = server.send("/predict", body)
    assert reply.status == status
    assert line in reply.json()["error"]
    assert reply.headers["content-type"] == "application/json"
    assert server.predict(text="thanks").status == 200


def test_infer_returns_labels_and_scores_of_each_head(server, classifier, close_to):
    outputs = tensors(infer(server, TEXTS, id="7"))
    answers = classifier(TEXTS)
    assert [*outputs] == ["intent", "intent.score", "flags", "flags.score"]
    assert outputs["intent"] == ("BYTES", [3], [one["intent"]["label"] for one in answers])
    assert outputs["intent.score"][:2] == ("FP32", [3])
    assert close_to(outputs["intent.score"][2], [one["intent"]["score"] for one in answers])
    labels, scores = outputs["flags"], outputs["flags.score"]
    assert labels[:2] == ("BYTES", [3, 2]) and scores[:2] == ("FP32", [3, 2])
    for row, answer in enumerate(answers):
        given = [*zip(labels[2][2 * row :][:2], scores[2][2 * row :][:2], strict=True)]
        given = [{"label": label, "score": score} for label, score in given if label]
        assert close_to(given, answer["flags"])
    assert any(one["flags"] for one in answers) and not all(len(one["flags"]) == 2 for one in answers)


def test_infer_returns_the_requested_outputs_in_order(server, classifier):
    requested = [{"name": "flags.probabilities"}, {"name": "intent"}]
    reply = infer(server, TEXTS, outputs=requested)
    outputs = tensors(reply)
    assert [*outputs] == ["flags.probabilities", "intent"]
    expected = classifier.probabilities(classifier.logits(TEXTS)["flags"], "flags")
    assert outputs["flags.probabilities"][:2] == ("FP32", [3, 2])
    assert outputs["flags.probabilities"][2] == pytest.approx(expected.ravel().tolist(), abs=1e-5)
    assert "id" not in reply.json() and reply.json()["model_name"] == "tiny"


def test_infer_accepts_a_flat_or_nested_column_and_no_texts(server, close_to):
    flat = tensors(infer(server, TEXTS))
    assert close_to([*tensors(infer(server, TEXTS, [3, 1])).values()], [*flat.values()])
    assert close_to([*tensors(infer(server, [[x] for x in TEXTS], [3, 1])).values()], [*flat.values()])
    assert tensors(infer(server, [], [0]))["flags.score"] == ("FP32", [0, 2], [])
    assert infer(server, ["a"], id="späte 😀").json()["id"] == "späte 😀"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"name": "txt"}, "inputs: unknown input 'txt', expected one of ['text'] (did you mean 'text'?)"),
        ({"name": 1}, "inputs: unknown input '1'"),
        ({"datatype": "FP32"}, 'datatype: must be "BYTES"'),
        ({"shape": [2]}, "data: has 1 elements, the shape has 2"),
        ({"shape": [1, 2]}, "shape: must be [n] or [n, 1]"),
        ({"shape": []}, "shape: must be [n] or [n, 1]"),
        ({"shape": [True]}, "shape: must be [n] or [n, 1]"),
        ({"shape": None}, "shape: must be [n] or [n, 1]"),
        ({"data": "thanks"}, 'data: must be a list of strings, got "thanks"'),
        ({"data": [1]}, "data: position 0: must be a string, got 1"),
        ({"data": [["a", "b"]], "shape": [1, 1]}, 'data: position 0: must be a string, got ["a","b"]'),
        ({"data": ["a" * 5_001]}, "has 5001 characters"),
    ],
)
def test_infer_rejects_invalid_inputs(server, change, line):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["thanks"], **change}
    reply = server.send("/v2/models/tiny/infer", {"inputs": [tensor]})
    assert reply.status == 422
    assert line in reply.json()["error"]


def test_infer_rejects_other_invalid_values(server):
    for more, line in (
        ({"outputs": [{"name": "intents"}]}, "did you mean 'intent'?"),
        ({"outputs": ["intent"]}, "outputs: must be a list"),
        ({"id": 7}, "id: must be a string"),
        ({"inputs": []}, "inputs: must be a list of one tensor"),
    ):
        reply = infer(server, ["a"], **more)
        assert reply.status == 422 and line in reply.json()["error"]
    assert server.send("/v2/models/none/infer", {"inputs": []}).status == 404
    binary = {"Inference-Header-Content-Length": "2"}
    assert server.send("/v2/models/tiny/infer", b"{}", None, **binary).status == 415
    assert server.send("/v2/models/tiny/infer", b"{}", None, **{"Content-Encoding": "gzip"}).status == 415


def test_metadata_has_inputs_outputs_and_labels(server, classifier):
    metadata = server.send("/v2/models/tiny").json()
    assert metadata["name"] == "tiny" and metadata["platform"] == "onnxruntime_onnx"
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    outputs = {x["name"]: (x["datatype"], x["shape"], x["parameters"]["labels"]) for x in metadata["outputs"]}
    intent, flags = (list(head.labels) for head in classifier.manifest.heads)
    assert outputs == {
        "intent": ("BYTES", [-1], intent),
        "intent.score": ("FP32", [-1], intent),
        "intent.probabilities": ("FP32", [-1, 3], intent),
        "flags": ("BYTES", [-1, 2], flags),
        "flags.score": ("FP32", [-1, 2], flags),
        "flags.probabilities": ("FP32", [-1, 2], flags),
    }
    version = classifier.manifest.to_json()["digest"][:12]
    assert metadata["versions"] == [version] == [infer(server, ["a"]).json()["model_version"]]


def test_health_and_server(server):
    assert server.send("/v2/health/live").json() == {"live": True}
    assert server.send("/v2/health/ready").json() == {"ready": True}
    assert server.send("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert server.send("/v2").json()["extensions"] == []
    head = server.send("/v2", method="HEAD")
    assert head.status == 200 and head.body == b""
    for path in (
        "/v2/models/none",
        "/v2/models/none/ready",
        "/v2/models/",
        "/nothing",
        "/v2/models/%ff/x",
    ):
        reply = server.send(path)
        assert reply.status == 404 and reply.json()["error"]
    reply = server.send("/predict", method="PUT")
    assert reply.status == 405 and reply.headers["allow"] == "POST"
    assert reply.json() == {"error": "method: PUT is not allowed here, expected POST"}
    assert "expected GET or HEAD" in server.send("/v2", method="POST").json()["error"]


def test_the_server_says_what_it_is_and_whether_it_is_ready(server):
    index = server.send("/").json()
    assert index["name"] == "tinyheads" and index["models"] == ["tiny"] and index["docs"] == "/docs"
    assert server.send("/", Accept="text/html,*/*").body == server.send(index["docs"]).body
    assert server.send("/v2/models").json() == {"models": ["tiny"]}
    assert server.send("/health").json() == {"ready": True}


def test_the_docs_page_makes_no_outside_request(server):
    page = server.send("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(rb"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page.body)
    for path in server.send("/openapi.json").json()["paths"]:
        assert path in page.body.decode()


ODD = [
    "",
    "\x00",
    "\x00" * 50,
    "\u202eلا شكرا\u202c",
    "שלום",
    "😀" * 900,
    "a\r\n\tb",
    "\ufeff",
    "\uffff",
    "e\u0301",
]


@pytest.mark.parametrize("text", ODD)
def test_unusual_texts_are_classified(server, classifier, text):
    assert server.predict(text=text).json() == classifier(text)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=200))
def test_any_text_is_classified_or_rejected(server, classifier, text):
    reply = server.send("/predict", json.dumps({"text": text}).encode())
    try:
        text.encode()
    except UnicodeEncodeError:
        assert reply.status == 400
    else:
        assert reply.json() == classifier(text)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda x: json.dumps({"text": x})[:-1].encode()))
def test_arbitrary_bytes_get_a_client_error(server, body):
    assert 400 <= server.send("/predict", body).status < 500 or b'"text' in body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
TENSOR = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("name", "shape", "data"), JSON) | {"datatype": st.just("BYTES")}
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["text", "texts", "heads", "top_k", "scores", "thresholds", "abstain", "model"]), JSON
    )
)
def test_any_predict_request_is_answered_or_rejected(server, body):
    assert server.send("/predict", body).status in (200, 400, 404, 422)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=2)}, optional={"id": JSON, "outputs": JSON})
)
def test_any_infer_request_is_answered_or_rejected(server, body):
    assert server.send("/v2/models/tiny/infer", body).status in (200, 400, 422)
