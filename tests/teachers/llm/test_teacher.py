"""A teacher against a server that answers well and badly."""

import json
import logging
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from teachers.llm import asking
from teachers.llm.settings import AskedHead, LlmError
from tests.teachers.llm.conftest import HEADS, some_texts
from tests.teachers.llm.server import KINDS, FakeServer, one_in_five, text_of

ROUTES = {
    "logprobs": FakeServer,
    "samples": lambda: FakeServer(logprobs=False),
    "systemone": lambda: FakeServer(systemone=True),
}


def expected(texts):
    return {
        head.name: np.array([[label in text.split() for label in head.labels] for text in texts])
        for head in HEADS
    }


def right(logits, texts):
    """Whether every head of every text is labelled as its words say."""
    truth = expected(texts)
    intent = logits["intent"].argmax(1) == truth["intent"].argmax(1)
    return bool(intent.all() and ((logits["flags"] > 0) == truth["flags"]).all())


def without_n(body):
    """What a request asks, whatever the number of samples."""
    return json.dumps({key: value for key, value in body.items() if key != "n"})


@pytest.mark.parametrize("name", ROUTES)
def test_every_route_labels_both_heads(llm, name):
    fake, texts = ROUTES[name](), some_texts(12)
    teacher = llm(fake)
    counts = teacher.ask(texts)
    assert (counts.texts, counts.answered, counts.dropped, counts.failed) == (12, 12, 0, 0)
    logits = teacher.logits(texts)
    assert {head: x.shape for head, x in logits.items()} == {"intent": (12, 3), "flags": (12, 2)}
    assert right(logits, texts)
    np.testing.assert_allclose(np.exp(logits["intent"]).sum(1), 1, atol=1e-5)
    assert teacher.estimate(texts).route == name
    assert counts.input_tokens


@pytest.mark.parametrize("name", ["logprobs", "systemone"])
def test_probabilities_are_the_servers(llm, name):
    teacher = llm(ROUTES[name]())
    teacher.ask(["track it"])
    logits = teacher.logits(["track it"])
    np.testing.assert_allclose(np.exp(logits["intent"][0]), [0.05, 0.9, 0.05], atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits["flags"][0])), [0.1, 0.1], atol=1e-4)


def test_samples_are_smoothed_shares(llm):
    teacher = llm(FakeServer(logprobs=False), samples=4)
    teacher.ask(["track it"])
    logits = teacher.logits(["track it"])
    np.testing.assert_allclose(np.exp(logits["intent"][0]), [1 / 15, 13 / 15, 1 / 15], atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits["flags"][0])), [0.1, 0.1], atol=1e-4)


@pytest.mark.parametrize(("name", "requests"), [("logprobs", 3), ("samples", 1), ("systemone", 1)])
def test_heads_share_a_request_where_the_protocol_allows(llm, name, requests):
    fake = ROUTES[name]()
    teacher = llm(fake)
    teacher.ask(["track it"])
    assert fake.texts().count("track it") == requests


def test_a_server_that_ignores_n_is_asked_for_each_sample(llm):
    fake = FakeServer(logprobs=False, several=False)
    teacher = llm(fake, samples=3)
    counts = teacher.ask(["track it"])
    assert fake.texts().count("track it") == 3
    assert (counts.answered, counts.bad_answers) == (1, 0)


@pytest.mark.parametrize("name", ROUTES)
def test_more_labels_than_a_question_may_have_are_asked_in_groups(llm, name):
    labels = tuple(f"label{i}" for i in range(70))
    fake = ROUTES[name]()
    teacher = llm(fake, [AskedHead("many", "single_label", labels)])
    texts = [f"this is label{i} here" for i in (0, 33, 69)]
    teacher.ask(texts)
    p = np.exp(teacher.logits(texts)["many"])
    assert p.argmax(1).tolist() == [0, 33, 69]
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-4)
    requests = {"logprobs": 5, "samples": 1, "systemone": 2}[name]  # four groups or three, then the winners
    assert fake.texts().count(texts[0]) == requests


def test_a_server_that_refuses_n_is_asked_for_each_sample(llm):
    fake = FakeServer(logprobs=False)
    fake.fault = lambda number, body: "400" if body.get("n", 1) > 1 else None
    teacher = llm(fake, samples=3)
    assert teacher.ask(["track it"]).answered == 1
    assert fake.texts().count("track it") == 3
    assert teacher.estimate(["refund it"]).requests == 3


@pytest.mark.parametrize("kind", ["malformed", "wrong", "500", "drop"])
@pytest.mark.parametrize("name", ROUTES)
def test_a_bad_answer_to_the_probe_does_not_decide_the_route(llm, name, kind):
    fake = ROUTES[name]()
    known = "systemone" if name == "systemone" else "chat"
    fake.fault = lambda number, body: kind if sum(known in path for path in fake.paths) == 1 else None
    teacher = llm(fake)
    teacher.ask(["track it"])
    assert teacher.route == name


def test_the_probe_is_sent_once_and_a_missing_logprob_is_told_in_a_line(llm, caplog):
    fake = FakeServer(logprobs=False)
    teacher = llm(fake, samples=3)
    with caplog.at_level(logging.INFO, "tinyheads"):
        teacher.ask(["track it"])
    (line,) = [record.message for record in caplog.records]
    assert "returns no log probabilities" in line
    assert "3 samples" in line
    before = len(fake.bodies)
    teacher.ask(["refund it"])
    assert len(fake.bodies) == before + 1


@pytest.mark.parametrize("route", ["logprobs", "systemone"])
def test_a_route_that_the_server_lacks_is_refused(llm, route):
    with pytest.raises(LlmError, match=r"route: open-model at 127.0.0.1.* returns no .*route: samples"):
        llm(FakeServer(logprobs=False), route=route).ask(["track it"])


@pytest.mark.parametrize("kind", [*KINDS, "502", "slow"])
@pytest.mark.parametrize("name", ROUTES)
def test_every_second_answer_is_bad(llm, name, kind):
    fake, texts = ROUTES[name](), some_texts(6)
    teacher = llm(fake, timeout=0.3, concurrency=1)
    teacher.ask(texts[:1])  # probes
    fake.fault = lambda number, body: kind if number % 2 else None
    counts = teacher.ask(texts)
    assert (counts.answered, counts.dropped, counts.failed) == (6, 0, 0)
    assert right(teacher.logits(texts), texts)
    assert counts.bad_answers if kind in ("malformed", "wrong") else counts.retries


@pytest.mark.parametrize(("name", "number"), [("logprobs", 50), ("samples", 500), ("systemone", 100)])
def test_one_answer_in_five_is_bad(llm, name, number):
    fake, texts = ROUTES[name](), some_texts(number)
    fake.fault = one_in_five()
    teacher = llm(fake)
    counts = teacher.ask(texts)
    assert (counts.texts, counts.failed) == (number, 0)
    assert counts.answered + counts.dropped == number
    assert counts.answered >= 0.98 * number
    logits = teacher.logits(texts)
    known = ~np.isnan(logits["intent"]).any(1) & ~np.isnan(logits["flags"]).any(1)
    assert known.sum() == counts.answered
    assert right(
        {head: x[known] for head, x in logits.items()}, [t for t, k in zip(texts, known, strict=True) if k]
    )
    before = len(fake.bodies)
    assert teacher.ask(texts).requests == 0
    assert len(fake.bodies) == before


ASKS = """
import sys
from pathlib import Path
from teachers.llm.settings import LlmSettings
from teachers.llm.teacher import LlmTeacher
from tests.teachers.llm.conftest import HEADS, some_texts
teacher = LlmTeacher(LlmSettings(sys.argv[1], "open-model", cache=Path(sys.argv[2])), HEADS, backoff=0.001)
teacher.ask(some_texts(int(sys.argv[3])))
"""


@pytest.mark.parametrize(("name", "number"), [("logprobs", 60), ("samples", 500), ("systemone", 120)])
def test_a_killed_process_resends_nothing_that_was_answered(llm, serve, tmp_path, name, number):
    fake, texts = ROUTES[name](), some_texts(number)
    fake.fault, fake.delay = one_in_five(), 0.005
    url = serve(fake)
    killed = subprocess.Popen(
        [sys.executable, "-c", ASKS, url, str(tmp_path / "cache"), str(number)], cwd=Path.cwd()
    )
    while len(fake.bodies) < 0.6 * number and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    time.sleep(0.2)
    teacher = llm(url)
    before, left = len(fake.bodies), teacher.estimate(texts)
    answered = {without_n(body) for body in fake.answered}
    assert 0 < left.cached < number
    fake.fault = lambda number, body: None
    counts = teacher.ask(texts)
    assert len(fake.bodies) - before == counts.requests <= left.requests
    assert counts.cached == left.cached
    again = {without_n(body) for body in fake.bodies[before:]} & answered
    assert len(again) <= 8  # those that were in flight
    assert right(teacher.logits(texts), texts)


def test_a_question_with_bad_answers_alone_is_dropped_and_its_text_kept(llm):
    fake, texts = FakeServer(), some_texts(8)
    fake.fault = lambda number, body: "wrong" if "order 3" in text_of(body) else None
    teacher = llm(fake)
    counts = teacher.ask(texts)
    assert (counts.answered, counts.dropped, counts.bad_answers) == (7, 1, 12)
    logits = teacher.logits(texts)
    assert np.isnan(logits["intent"]).all(1).tolist() == [i == 3 for i in range(8)]
    again = teacher.ask(texts)
    assert (again.requests, again.dropped) == (0, 1)
    fake.fault = lambda number, body: None
    assert teacher.ask(texts, dropped=True).answered == 8
    assert not np.isnan(teacher.logits(texts)["intent"]).any()


def test_a_text_that_the_server_refuses_is_dropped(llm):
    fake, texts = FakeServer(), some_texts(8)
    fake.fault = lambda number, body: "400" if "order 3" in text_of(body) else None
    counts = llm(fake).ask(texts)
    assert (counts.answered, counts.dropped) == (7, 1)


def test_a_later_pass_may_have_no_valid_answer(llm):
    fake, texts = FakeServer(), some_texts(8)
    fake.fault = lambda number, body: "400" if "order 3" in text_of(body) else None
    teacher = llm(fake)
    assert teacher.ask([text for text in texts if "order 3" not in text]).answered == 7
    assert teacher.ask([text for text in texts if "order 3" in text]).dropped == 1


def test_a_text_that_the_server_fails_on_is_asked_again_by_the_next_run(llm):
    fake, texts = FakeServer(), some_texts(8)
    fake.fault = lambda number, body: "500" if "order 3" in text_of(body) else None
    teacher = llm(fake)
    counts = teacher.ask(texts)
    assert (counts.answered, counts.failed) == (7, 1)
    assert np.isnan(teacher.logits(texts)["intent"][3]).all()
    fake.fault = lambda number, body: None
    assert teacher.ask(texts).answered == 8


@pytest.mark.parametrize("kind", ["wrong", "400"])
def test_a_model_without_any_valid_answer_stops_the_asking_and_is_not_remembered(llm, kind):
    fake, texts = FakeServer(), some_texts(200)
    teacher = llm(fake)
    fake.fault = lambda number, body: kind if "order" in text_of(body) else None
    last = "the last was '(400: something is wrong|The|refund)'"
    with pytest.raises(LlmError, match=rf"no valid answer to .* questions, {last}") as caught:
        teacher.ask(texts)
    assert len(fake.bodies) < 200
    assert "\n" not in str(caught.value)
    fake.fault = lambda number, body: None
    assert teacher.ask(texts).answered == 200


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed_by_all_threads(llm, as_date):
    fake = FakeServer()
    teacher = llm(fake)
    teacher.ask(["track it"])
    fake.retry_after = (
        format_datetime(datetime.now(timezone.utc) + timedelta(seconds=3), usegmt=True) if as_date else "1"
    )
    first = len(fake.bodies)
    times = []

    def fault(number, body):
        times.append(time.monotonic())
        return "429" if number == first else None

    fake.fault = fault
    started = time.monotonic()
    teacher.ask(some_texts(40))
    assert 0.9 <= time.monotonic() - started <= 5
    assert max(b - a for a, b in pairwise(times)) >= 0.9


def test_a_long_retry_after_stops_the_asking(llm):
    fake = FakeServer()
    fake.fault, fake.retry_after = (lambda number, body: "429"), "86400"
    with pytest.raises(LlmError, match=r"asks to wait for 86400 s .*kept"):
        llm(fake).ask(["track it"])


def test_a_server_that_stops_answering_ends_the_asking_in_a_line(llm):
    fake, texts = FakeServer(), some_texts(100)
    teacher = llm(fake)
    fake.fault = lambda number, body: "503" if number > 50 else None
    with pytest.raises(LlmError, match=r"does not answer any more: 503 something is wrong .*kept"):
        teacher.ask(texts)
    fake.fault = lambda number, body: None
    before = len(fake.bodies)
    assert teacher.ask(texts).answered == 100
    assert len(fake.bodies) - before < 300 - 40


def test_no_server_at_all(llm):
    with pytest.raises(LlmError, match=r"127.0.0.1:9 does not answer: ConnectError.*check base_url"):
        llm("http://127.0.0.1:9/v1").ask(["track it"])


def test_an_unknown_path_or_model(llm):
    fake = FakeServer()
    fake.fault = lambda number, body: "404"
    with pytest.raises(
        LlmError, match="does not know the route or the model 'open-model': 404: something is wrong"
    ):
        llm(fake).ask(["track it"])


def test_max_requests_stops_and_keeps_the_answers(llm):
    fake, texts = FakeServer(), some_texts(60)
    teacher = llm(fake, max_requests=32)
    with pytest.raises(LlmError, match=r"max_requests: 32 requests are sent, .* of 60 texts") as caught:
        teacher.ask(texts)
    assert caught.value.exit_code == 2
    assert len(fake.bodies) == 32
    left = teacher.estimate(texts).requests
    assert left == 180 - 30  # two requests have probed the server
    assert llm(teacher.settings.base_url).ask(texts).requests == left


def test_no_more_requests_at_a_time_than_the_limit(llm):
    fake = FakeServer()
    fake.delay = 0.01
    llm(fake, concurrency=3).ask(some_texts(20))
    assert fake.most_at_once == 3


def test_the_key_is_sent_and_never_shown(llm, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MY_KEY", "sk-very-secret\n")
    fake = FakeServer()
    fake.key = "sk-very-secret"
    teacher = llm(fake, api_key_env="MY_KEY")
    with caplog.at_level(logging.DEBUG):
        assert teacher.ask(some_texts(3)).answered == 3
        fake.key = "another"
        with pytest.raises(LlmError, match=r"refuses the key in MY_KEY \(401\) \(set MY_KEY\)") as caught:
            teacher.ask(["a new text"])
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "secret" not in f"{caught.value}{caplog.text}{teacher!r}{teacher.settings}"
    assert b"secret" not in files


def test_a_server_that_repeats_the_key_in_its_messages(llm, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    fake = FakeServer()
    teacher = llm(fake)
    teacher.ask(["track it"])
    fake.fault = lambda number, body: "400"
    with pytest.raises(LlmError, match=r"something is wrong with Bearer \*\*\*'") as caught:
        llm(teacher.settings.base_url, [AskedHead("new", "single_label", ("a", "b"))]).ask(["track it"])
    assert "secret" not in str(caught.value)


def test_a_missing_key_names_the_variable(llm):
    fake = FakeServer()
    fake.key = "sk-very-secret"
    with pytest.raises(LlmError, match="without a key, expected one in OPENAI_API_KEY"):
        llm(fake).ask(["track it"])


def test_a_key_that_is_no_header_is_not_repeated(llm, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX: y")
    with pytest.raises(LlmError, match="OPENAI_API_KEY: is no key") as caught:
        llm(FakeServer()).ask(["track it"])
    assert "secret" not in str(caught.value)


def test_an_estimate_sends_nothing_and_counts_what_is_cached(llm):
    fake, texts = FakeServer(), some_texts(10)
    teacher = llm(fake, input_price=2.0, output_price=10.0, route="logprobs")
    before = teacher.estimate([*texts, *texts])
    assert not fake.bodies
    assert (before.texts, before.cached, before.requests, before.assumed) == (10, 0, 30, True)
    assert before.cost == pytest.approx((2 * before.input_tokens + 10 * before.output_tokens) / 1e6)
    characters = 0
    teacher.ask(texts[:4])
    for body in fake.bodies[1:]:
        characters += len(body["messages"][0]["content"])
    after = teacher.estimate(texts)
    assert (after.cached, after.requests, after.assumed) == (4, 18, False)
    assert before.input_tokens - after.input_tokens == pytest.approx(characters / 4)


def test_another_question_is_asked_and_the_others_are_not(llm, serve):
    fake = FakeServer(systemone=True)
    url, texts = serve(fake), some_texts(5)
    llm(url).ask(texts)
    before = len(fake.bodies)
    llm(f"{url}/").ask(texts)  # another address is probed again, not asked
    assert [text_of(body) for body in fake.bodies[before:]] == ["The dog barks at the postman."]
    before = len(fake.bodies)
    more = AskedHead("tone", "single_label", ("now", "never"))
    llm(url, [*HEADS, more]).ask(texts)
    assert [len(body["questions"]) for body in fake.bodies[before:]] == [1] * 5
    described = AskedHead("tone", "single_label", ("now", "never"), {"now": "at once"})
    assert llm(url, [described]).estimate(texts).cached == 0
    assert llm(url, instructions="The texts are mails.").estimate(texts).cached == 0
    assert llm(url).digest != llm(url, instructions="The texts are mails.").digest
    assert llm(url).digest == llm("http://127.0.0.1:1/v1").digest


def test_more_samples_are_added_to_those_in_the_cache(llm, serve):
    fake = FakeServer(logprobs=False)
    url = serve(fake)
    llm(url, samples=3).ask(["track it"])
    llm(url, samples=5).ask(["track it"])
    assert fake.bodies[-1]["n"] == 2


def test_a_damaged_cache_is_told_and_set_aside(llm, caplog, tmp_path):
    fake = FakeServer()
    teacher = llm(fake)
    teacher.ask(some_texts(30))
    teacher.close()
    path = tmp_path / "cache/answers.sqlite3"
    path.write_bytes(b"no database at all" * 300)
    with caplog.at_level(logging.INFO, "tinyheads"):
        again = llm(teacher.settings.base_url)
    assert [r.message for r in caplog.records] == [
        f"{path}: is damaged, so its answers are asked for again; it is kept as answers.sqlite3.damaged-1"
    ]
    assert again.ask(some_texts(30)).answered == 30
    assert (path.parent / "answers.sqlite3.damaged-1").read_bytes().startswith(b"no database")


def test_a_damaged_row_is_asked_again(llm, tmp_path):
    teacher = llm(FakeServer(), HEADS[:1])
    texts = some_texts(6)
    teacher.ask(texts)
    with sqlite3.connect(tmp_path / "cache/answers.sqlite3") as file:
        file.execute("UPDATE answers SET answer = '[[[2.0, 0.0, 0.0]], 0]' WHERE answer LIKE '[[%'")
    assert teacher.ask(texts).requests == 6


def test_a_cache_that_cannot_be_written(llm, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LlmError, match=r"cache: .*answers.sqlite3: File exists .*another folder"):
        llm("http://127.0.0.1:9/v1")


def test_two_teachers_share_a_cache(llm, serve):
    from threading import Thread

    fake, texts = FakeServer(), some_texts(60)
    url = serve(fake)
    teachers = [llm(url), llm(url)]
    threads = [Thread(target=teacher.ask, args=(texts,)) for teacher in teachers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right(teachers[0].logits(texts), texts)


def test_an_interrupt_ends_at_once_and_keeps_the_answers(llm, monkeypatch):
    fake, texts = FakeServer(), some_texts(50)
    teacher = llm(fake)
    monkeypatch.setattr(asking, "PATIENCE", 0.2)

    def interrupt(done, seen=[]):  # noqa: B006
        seen.append(done)
        if len(seen) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher.ask(texts, interrupt)
    assert teacher.estimate(texts).cached >= 20
    assert teacher.ask(texts).answered == 50
