"""Labels of a request, in `/predict` and `/v1/systemone`: a server gives what the classifier alone gives."""

from __future__ import annotations

from itertools import cycle

import pytest

from export.runtime.classifier import Classifier
from export.runtime.probabilities import softmax

TEXTS = ["where is my parcel", "thanks", "cancel the order now please"]
LABELS = ["refund", "cancel order", "thanks", "where_is"]
DESCRIBED = {"refund": None, "thanks": "the order", "now": "please"}
STATE = {"ticket": "cancel the order", "days": [1, "now"]}
QUESTIONS = {
    "team": {
        "type": "choice",
        "instructions": "where is",
        "criteria": {"refund": None, "parcel": "my order"},
    },
    "urgent": {"type": "noul", "instructions": "please", "criteria": {"true": "now"}},
    "tone": {"type": "score", "criteria": ["thanks", "please", {"cancel": ["order"]}]},
}


def ask(server, state=STATE, questions=QUESTIONS, **more):
    return server.send("/v1/systemone", {"state": state, "questions": questions, **more})


def question(**changes):
    return {"questions": {"one": {**QUESTIONS["team"], **changes}}}


@pytest.mark.parametrize("labels", [LABELS, DESCRIBED])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"scores": True}, {"thresholds": {}}])
@pytest.mark.parametrize("head", ["intent", "flags"])
def test_predict_with_labels_returns_what_the_classifier_returns(
    packed_server, packed, close_to, labels, options, head
):
    for text in TEXTS:
        reply = packed_server.predict(text=text, labels=labels, heads=[head], **options)
        assert reply.json() == packed(text, labels=labels, heads=[head], **options)
    reply = packed_server.predict(texts=TEXTS, labels=labels, heads=[head, head], **options)
    assert close_to(reply.json(), packed(TEXTS, labels=labels, heads=[head], **options))
    assert packed_server.predict(texts=[], labels=labels, heads=[head]).json() == []


def test_thresholds_of_labels(packed_server, packed):
    options = {"labels": ["red", "now"], "heads": ["flags"], "thresholds": {"flags": {"red": 0}}}
    found = packed_server.predict(text="thanks", **options).json()
    assert found == packed("thanks", **options) and "red" in [one["label"] for one in found["flags"]]
    reply = packed_server.predict(text="thanks", **{**options, "thresholds": {"flags": {"please": 0}}})
    assert (
        reply.status == 422
        and "unknown label 'please', expected one of ['red', 'now']" in reply.json()["error"]
    )


def test_null_labels_are_those_of_the_bundle(packed_server, packed, close_to):
    assert close_to(packed_server.predict(text="thanks", labels=None).json(), packed("thanks"))


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"labels": []}, "labels: must name at least one label, got none"),
        ({"labels": "now"}, 'labels: must be a list of strings, or an object of descriptions, got "now"'),
        ({"labels": 3}, "labels: must be a list of strings"),
        ({"labels": ["now", 3]}, "labels: each must be a string, got 3"),
        ({"labels": {"now": 3}}, "labels: each must be a string, got 3"),
        ({"labels": ["now", " "]}, "labels: position 1: is empty"),
        ({"labels": ["now", "now"]}, "labels: position 1: 'now' is read as 'now' before it"),
        ({"labels": ["now", "Now"]}, "are the same tokens to the network"),
        ({"labels": ["now " * 9]}, "has 10 tokens, expected at most 8"),
        ({"labels": ["now"] * 1001}, "labels: at most 1000 are allowed, got 1001"),
        ({"labels": {"now": "x" * 5_000}}, "labels: has 5003 characters, at most 5000 are allowed"),
        ({"labels": ["now"], "heads": None}, "labels: are of one head, expected heads to name one of"),
        ({"labels": ["now"], "heads": ["flags", "intent"]}, "labels: are of one head"),
        ({"labels": ["now"], "heads": ["intend"]}, "did you mean 'intent'?"),
        ({"labels": ["now"], "scores": 1}, "scores: must be true or false"),
    ],
)
def test_predict_rejects_invalid_labels(packed_server, body, line):
    reply = packed_server.predict(**{"text": "thanks", "heads": ["intent"], **body})
    assert reply.status == 422 and line in reply.json()["error"]


def test_a_bundle_of_fixed_labels_takes_none(server):
    reply = server.predict(text="thanks", labels=["now"])
    problem = "labels: are fixed in this bundle, expected a packed one (train network: packed)"
    assert reply.status == 422 and reply.json() == {"error": problem}
    reply = ask(server)
    problem = "model: 'tiny' has fixed labels, expected a packed bundle (train network: packed)"
    assert reply.status == 422 and reply.json() == {"error": problem}


def test_texts_times_labels_are_limited(serve, packed_bundle):
    few = "from export.serving import request\nrequest._MAX_VALUES = 20"
    server = serve(packed_bundle, "--drain-s", 0, before=few)
    assert server.predict(texts=["now"] * 5, labels=LABELS, heads=["intent"]).status == 200
    reply = server.predict(texts=["now"] * 6, labels=LABELS, heads=["intent"])
    assert reply.status == 422 and "at most 5 texts are allowed for 4 scores each" in reply.json()["error"]


@pytest.mark.parametrize(
    "body", [b'{"text":%b}', b'{"text":"a","labels":%b}', b'{"state":%b,"questions":{}}']
)
def test_json_that_is_nested_too_deeply_is_rejected(packed_server, body):
    path = "/v1/systemone" if b"state" in body else "/predict"
    reply = packed_server.send(path, body % (b"[" * 300 + b"]" * 300))
    assert reply.status == 422 and "nested too deeply" in reply.json()["error"]


def test_clients_with_different_labels_get_what_the_classifier_gives_alone(packed_server, packed, close_to):
    words = ["where", "is", "my", "parcel", "please", "cancel", "the", "order", "now", "thanks", "refund"]
    asked = [
        {"texts": [word, f"{word} order"], "labels": words[start : start + 3], "heads": [head]}
        for start in range(8)
        for word, head in zip(words, cycle(("intent", "flags")), strict=False)
    ]
    plain = [{"texts": [word]} for word in words] * 4
    replies = [packed_server.predict_later(**body) for body in [*asked, *plain]]
    answers = [packed_server.pool.submit(ask, packed_server, word) for word in words]
    for body, reply in zip([*asked, *plain], replies, strict=True):
        assert close_to(reply.result().json(), packed(**body)), body
    for word, answer in zip(words, answers, strict=True):
        expected = shares(packed, QUESTIONS["team"]["criteria"], "where is", word)
        found = answer.result().json()["answers"]["team"]["probabilities"]
        assert [*found.values()] == pytest.approx(expected, abs=1e-5)


def test_a_request_of_an_invalid_label_harms_no_other(packed_server, packed, close_to):
    bad = [packed_server.predict_later(text="now", labels=["now " * 9], heads=["intent"]) for _ in range(8)]
    good = [packed_server.predict_later(text="now", labels=LABELS, heads=["intent"]) for _ in range(8)]
    assert {one.result().status for one in bad} == {422}
    expected = packed("now", labels=LABELS, heads=["intent"])
    assert all(close_to(one.result().json(), expected) for one in good)


def shares(packed: Classifier, labels, hypothesis, text):
    view = packed.with_labels(labels, "intent", hypothesis=hypothesis)
    return softmax(view.logits(text)["intent"][0] / view.manifest.heads[0].temperature).tolist()


def test_answers_to_typed_questions(packed_server, packed):
    reply = ask(packed_server, model="packed").json()
    text = '{"ticket":"cancel the order","days":[1,"now"]}'
    assert [*reply] == ["model", "answers", "usage", "diagnostics"] and reply["model"] == "packed"
    team, urgent, tone = (reply["answers"][name] for name in QUESTIONS)

    expected = shares(packed, QUESTIONS["team"]["criteria"], "where is", text)
    assert [*team] == ["type", "choice", "probabilities", "confidence"]
    assert team["type"] == "choice" and [*team["probabilities"]] == ["refund", "parcel"]
    assert [*team["probabilities"].values()] == pytest.approx(expected)
    assert team["choice"] == ["refund", "parcel"][expected[1] > expected[0]]
    assert team["confidence"] == pytest.approx(abs(expected[0] - expected[1]))

    (likely, _) = shares(packed, {"true": "now", "false": None}, "please", text)
    assert urgent == {"type": "noul", "noul": pytest.approx(likely)}

    expected = shares(packed, ["thanks", "please", '{"cancel":["order"]}'], None, text)
    assert tone["type"] == "score" and tone["score"] == pytest.approx(expected[1] + 2 * expected[2])
    assert [*tone["probabilities"]] == ["0", "1", "2"]
    assert [*tone["probabilities"].values()] == pytest.approx(expected)
    assert tone["legend"] == {"0": "thanks", "1": "please", "2": {"cancel": ["order"]}}
    assert tone["confidence"] == pytest.approx((max(expected) - 1 / 3) / (2 / 3))

    assert reply["diagnostics"] == {name: {"label_mass": 1.0, "argmax_is_label": True} for name in QUESTIONS}
    assert reply["usage"]["output_tokens"] == 0 and reply["usage"]["input_tokens"] > 3 * 20


def test_the_order_of_options_changes_no_probability(packed_server):
    criteria = {"refund": None, "parcel": "my order", "cancel": None, "thanks": "now"}
    one = ask(packed_server, "where", **question(criteria=criteria)).json()["answers"]["one"]
    other = ask(packed_server, "where", **question(criteria=dict(reversed(criteria.items()))))
    other = other.json()["answers"]["one"]
    assert [*one["probabilities"]] == [*reversed(other["probabilities"])]
    assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_one_option_is_certain(packed_server):
    answer = ask(packed_server, "", **question(criteria={"now": None})).json()["answers"]["one"]
    expected = {"type": "choice", "choice": "now", "probabilities": {"now": 1.0}, "confidence": 1.0}
    assert answer == expected


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"state": None}, "state: must be a string, an object or a list, got null"),
        ({"state": 3}, "state: must be a string, an object or a list, got 3"),
        ({"state": ["a" * 4_997]}, "state: has 5001 characters, at most 5000"),
        ({"questions": []}, "questions: must be an object of questions, got []"),
        ({"questions": {}}, "questions: must be from 1 to 64, got 0"),
        ({"questions": dict.fromkeys(map(str, range(65)), QUESTIONS["team"])}, "from 1 to 64, got 65"),
        ({"questions": {"": QUESTIONS["team"]}}, "questions: an id is empty"),
        ({"questions": {"one": "two"}}, "questions: 'one': must be an object, got \"two\""),
        ({"stat": "a"}, "body: unknown key 'stat', expected one of ['model', 'state', 'questions']"),
        ({"model": 3}, "model: must be a string, got 3"),
        (question(type="noull"), "questions: 'one': unknown type 'noull'"),
        (question(type=None), "questions: 'one': unknown type 'null'"),
        (question(labels=[]), "questions: 'one': unknown key 'labels'"),
        (question(instructions=3), "questions: 'one': instructions: must be a string"),
        (question(instructions="now " * 30), "questions: 'one': hypothesis: 'now now"),
        (question(criteria=None), "criteria: must be an object of options and their descriptions, got null"),
        (question(criteria={}), "questions: 'one': labels: must name at least one label"),
        (question(criteria={"a": 3}), "criteria: must be a string, an object or a list, got 3"),
        (question(criteria={"now": None, "NOW": None}), "questions: 'one': labels: 'NOW' and 'now' are the"),
        (question(criteria={str(x): None for x in range(256)}), "criteria: at most 255 are allowed, got 256"),
        (question(type="noul", criteria={"yes": "now"}), "criteria: unknown outcome 'yes'"),
        (question(type="noul", criteria=["now"]), "criteria: must be an object of options"),
        (question(type="noul", instructions=None, criteria=None), "must have instructions, or criteria"),
        (question(type="score"), "criteria: must be a list of 2 to 10 levels"),
        (question(type="score", criteria=["now"]), "criteria: must be a list of 2 to 10 levels"),
        (question(type="score", criteria=["now"] * 11), "criteria: must be a list of 2 to 10 levels"),
        (question(type="score", criteria=["now", None]), "labels: position 1: is empty"),
        (question(type="score", criteria=["now", "now"]), "is read as 'now' before it"),
    ],
)
def test_invalid_questions_are_rejected(packed_server, body, line):
    reply = packed_server.send("/v1/systemone", {"state": "now", "questions": QUESTIONS, **body})
    assert reply.status == 422
    assert line in reply.json()["error"]


def test_an_unknown_model_is_not_found(packed_server):
    reply = ask(packed_server, model="packet")
    assert reply.status == 404 and "did you mean 'packed'?" in reply.json()["error"]


def test_a_question_is_one_text_of_the_queue(serve, packed_bundle):
    server = serve(packed_bundle, "--queue", 2, "--drain-s", 0, "--log-texts")
    reply = ask(server)
    assert reply.status == 422 and "questions: must be from 1 to 2, got 3" in reply.json()["error"]
    assert ask(server, questions={"a": QUESTIONS["team"], "b": QUESTIONS["tone"]}).status == 200
    assert server.metric("tinyheads_texts_total{") == 2
    line = server.line("request", route="/v1/systemone", code=200)
    assert line["inputs"] == ['{"ticket":"cancel the order","days":[1,"now"]}']
