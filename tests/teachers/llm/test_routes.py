"""What the routes send and read, without a server."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from export.serving.settings import Settings
from export.serving.systemone_api import parse_systemone, systemone_response
from teachers.llm.questions import Question, answer_heads, smoothed
from teachers.llm.routes import Logprobs, Samples, SystemOne
from teachers.llm.settings import AskedHead, LlmSettings

SETTINGS = LlmSettings("http://localhost/v1", "open-model", "The texts are mails.")
CHOICE = Question("intent", "choice", "What is wanted?", (("refund", "money back"), ("track", None)))
YES_NO = Question("flags", "yes_no", "Does it apply?", (("urgent", "at once"),))
LIST = Question("flags", "list", "Which apply?", (("urgent", None), ("polite", None)))
ROUTES = (Logprobs(), Samples(3), SystemOne())

KEYS = ["choices", "message", "content", "logprobs", "top_logprobs", "token", "logprob", "answers", "q0"]
KEYS += ["probabilities", "noul", "true", "refund", "track", "diagnostics", "label_mass", "intent"]
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=9),
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(
            some.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_any_reply_is_read_as_probabilities_or_as_none(reply):
    for route in ROUTES:
        for question in (CHOICE, LIST if route.lists else YES_NO):
            (votes,) = route.votes_in(reply, [question])
            for vote in votes:
                assert vote is None or question.probabilities(vote) == pytest.approx(vote)


def reply_of(*tokens):
    top = [{"token": token, "logprob": math.log(p)} for token, p in tokens]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}


def test_spellings_of_a_letter_add_up():
    (votes,) = Logprobs().votes_in(reply_of(("A", 0.5), (" A", 0.2), ("B.", 0.1), ("The", 0.2)), [CHOICE])
    assert votes == [pytest.approx([0.875, 0.125])]


def test_a_letter_among_no_tokens_is_at_most_as_probable_as_the_last():
    (votes,) = Logprobs().votes_in(reply_of(("A", 0.9), ("The", 0.04)), [CHOICE])
    assert votes == [pytest.approx([0.9 / 0.94, 0.04 / 0.94])]


def test_a_model_that_answers_with_other_words_has_not_answered():
    assert Logprobs().votes_in(reply_of(("The", 0.95), ("A", 0.03), ("B", 0.02)), [CHOICE]) == [[None]]


@pytest.mark.parametrize(
    ("content", "votes"),
    [
        ('{"intent": "refund"}', [1, 0]),
        ('```json\n{"intent": " refund "}\n```', [1, 0]),
        ('<think>{"intent": "refund"}</think>{"intent": ["track"]}', [0, 1]),
        ('{"intent": "Refund"}', None),
        ('{"intent": "refund", "intent": "other"}', None),
        ('{"intent": ["refund", "track"]}', None),
        ('{"intent": null}', None),
        ('{"intnt": "refund"}', None),
        ("refund", None),
        ("", None),
        ("{" * 10_000, None),
    ],
)
def test_a_sample_names_a_label_exactly(content, votes):
    reply = {"choices": [{"message": {"content": content}}]}
    assert Samples(1).votes_in(reply, [CHOICE]) == [[votes]]


def test_a_list_may_be_empty():
    reply = {"choices": [{"message": {"content": '{"flags": []}'}}]}
    assert Samples(1).votes_in(reply, [LIST]) == [[[0, 0]]]


def test_labels_of_yaml_are_numbers_and_booleans_in_json():
    question = Question("x", "choice", "?", (("1", None), ("true", None)))
    for content, vote in (('{"x": 1}', [1, 0]), ('{"x": true}', [0, 1])):
        assert Samples(1).votes_in({"choices": [{"message": {"content": content}}]}, [question]) == [[vote]]


def test_our_own_server_takes_and_answers_the_questions():
    route, asked = SystemOne(), [CHOICE, YES_NO]
    request = parse_systemone(route.body(SETTINGS, asked, "where is it", 1), Settings((Path("bundle"),)))
    assert [(one.type, list(one.labels)) for one in request.questions] == [
        ("choice", ["refund", "track"]),
        ("noul", ["true", "false"]),
    ]
    assert request.questions[1].hypothesis == "The texts are mails.\n\nDoes it apply?\nurgent (at once)"
    logits = [np.log([0.25, 0.75]), np.log([0.9, 0.1])]
    reply = systemone_response("open-model", request.questions, logits, 9)
    assert route.votes_in(reply, asked) == [[pytest.approx([0.25, 0.75])], [pytest.approx([0.9])]]


def test_groups_and_their_winners_give_the_probabilities_of_one_question():
    """Where the odds of two labels do not depend on the others."""
    labels = tuple(f"label{i}" for i in range(31))
    p = np.random.default_rng(0).dirichlet(np.ones(31))

    def ask(questions):
        found = [np.array([p[labels.index(label)] for label in question.labels]) for question in questions]
        return [(part / part.sum()).tolist() for part in found]

    for most in (5, 20, None):
        head = AskedHead("many", "single_label", labels)
        answer = answer_heads([head], ask, most_options=most, lists=False)["many"]
        np.testing.assert_allclose(answer, p)


def test_smoothed_shares_add_up():
    assert smoothed([[1, 0, 0], [1, 0, 0], [0, 1, 0]], 3) == pytest.approx([7 / 12, 4 / 12, 1 / 12])
