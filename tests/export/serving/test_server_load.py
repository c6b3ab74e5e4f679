"""Overload, timeouts and broken requests: what clients get, and what the log and metrics show."""

from __future__ import annotations

import socket
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

HOUR = 3_600_000  # in milliseconds, longer than any test: only a full batch is computed


@pytest.fixture(scope="module")
def patient(serve, bundle):
    """A server that computes only batches of three texts and queues at most four."""
    options = ["--max-batch", 3, "--max-wait-ms", HOUR, "--queue", 4, "--max-body", 2_000]
    return serve(bundle, *options, "--max-text", 100, "--log-texts")


def test_texts_of_several_requests_share_one_call(patient, classifier, close_to):
    texts = ["where is my parcel", "thanks", "cancel the order"]
    calls = patient.metric("tinyheads_batch_texts_count")
    replies = [patient.predict_later(text=text) for text in texts]
    assert close_to([one.result().json() for one in replies], classifier(texts))
    assert patient.metric("tinyheads_batch_texts_count") == calls + 1


def test_requests_with_different_options_share_one_call(patient, classifier, close_to):
    options = [{}, {"heads": ["flags"], "top_k": 1}, {"scores": True}]
    calls = patient.metric("tinyheads_batch_texts_count")
    replies = [patient.predict_later(text="thanks", **option) for option in options]
    for reply, option in zip(replies, options, strict=True):
        assert close_to(reply.result().json(), classifier("thanks", **option))
    assert patient.metric("tinyheads_batch_texts_count") == calls + 1


def test_requests_and_texts_are_counted_and_logged(patient):
    texts, codes = (
        patient.metric("tinyheads_texts_total{"),
        'tinyheads_requests_total{code="200",route="/predict"}',
    )
    requests, seconds = patient.metric(codes), 'tinyheads_request_seconds_count{route="/predict"}'
    observed = patient.metric(seconds)
    assert patient.predict(texts=["now", "now", "please"]).status == 200
    assert patient.metric("tinyheads_texts_total{") == texts + 3
    assert patient.metric(codes) == requests + 1 and patient.metric(seconds) == observed + 1
    assert patient.metric('tinyheads_bundle_info{model="tiny",variant="fp32"') == 1
    assert patient.metric("process_resident_memory_bytes") > 0
    assert patient.line("request", inputs=["now", "now", "please"])["texts"] == 3  # --log-texts


def test_a_full_queue_rejects_requests_with_retry_after(patient):
    waiting = patient.predict_later(texts=["where", "is"])
    patient.wait_for_queue(2)
    refused = patient.predict(texts=["my", "parcel", "now"])
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert "queue: is full" in refused.json()["error"]
    assert patient.predict(text="thanks").status == 200  # the third: the batch is full
    assert waiting.result().status == 200
    assert patient.metric('tinyheads_refusals_total{reason="queue"}') >= 1


def test_an_invalid_request_does_not_affect_others(patient):
    waiting = [patient.predict_later(text=text) for text in ("where", "is")]
    patient.wait_for_queue(2)
    assert patient.send("/predict", b'{"text": "\\udc00"}').status == 400
    assert patient.predict(text="a" * 101).status == 422
    assert patient.predict(text="thanks").status == 200
    assert [one.result().status for one in waiting] == [200, 200]


def test_slow_requests_time_out(serve, bundle):
    slow = serve(bundle, "--max-wait-ms", HOUR, "--timeout-s", 0.3, "--drain-s", 0)
    late = slow.predict(text="where")
    assert late.status == 504 and "no response within 0.3 s" in late.json()["error"]
    with socket.create_connection(("127.0.0.1", slow.port), 60) as link:
        link.sendall(b'POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 20\r\n\r\n{"text"')
        assert link.makefile("rb").read().startswith(b"HTTP/1.1 408 ")
    assert slow.metric('tinyheads_refusals_total{reason="timeout"}') == 2
    slow.wait_for_queue(1)  # the text of the request that timed out
    assert slow.stop() == 0


def test_a_body_that_is_too_large_gets_413_however_it_is_sent(patient):
    for size in (2_001, 16_001):
        assert patient.send("/predict", b"x" * size).status == 413
    chunks = b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + 3 * (
        b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    )
    waits = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 2001\r\nexpect: 100-continue\r\n\r\n"
    for sent in (chunks + b"0\r\n\r\n", waits):
        with socket.create_connection(("127.0.0.1", patient.port), 60) as link:
            link.sendall(sent)
            assert link.recv(100).startswith(b"HTTP/1.1 413 ")


def test_several_requests_on_one_connection(patient):
    one = b'POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 33\r\n\r\n{"texts": ["now", "now", "now" ]}'
    with socket.create_connection(("127.0.0.1", patient.port), 60) as link:
        link.sendall(one * 3)
        link.sendall(b"GET /v2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert link.makefile("rb").read().count(b"HTTP/1.1 200 ") == 4


HEADS = st.sampled_from(
    [b"POST /predict HTTP/1.1\r\n", b"GET /v2/models/", b"GET /v2/models/\xff\xfe HTTP/1.1\r\n\r\n"]
)


@settings(max_examples=40, deadline=None)
@given(HEADS, st.binary(max_size=100))
def test_arbitrary_bytes_do_not_stop_the_server(patient, head, rest):
    with socket.create_connection(("127.0.0.1", patient.port), 60) as link:
        link.sendall(head + rest)
        link.shutdown(socket.SHUT_WR)
        assert b" 500 " not in link.makefile("rb").readline()
    assert patient.send("/v2/health/live").status == 200


def test_the_log_has_one_json_line_per_request_and_no_text(server):
    start = datetime.now(timezone.utc).isoformat()
    for more in ({}, {"heads": ["secretword"]}, {"secretword": 1}):
        server.send("/predict?text=secretword", {"text": "secretword", **more})
    server.send("/secretword")
    server.send("/v2/models/secretword/infer", {})
    server.send("/v2/health/live", method="SECRETWORD")
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["secretword"]}]
    server.send("/v2/models/tiny/infer", {"inputs": inputs, "id": "secretword"})
    server.send("/v2/models/tiny/ready", method="DELETE")
    lines: list[dict] = []

    def whole():
        lines[:] = [line for line in server.lines if line.get("time", start) >= start]
        return any(line.get("method") == "DELETE" for line in lines)

    server.until(whole)
    assert lines[-1].items() >= {"route": "/v2/models/{model}/ready", "code": 405, "reason": "method"}.items()
    # the HTTP parser rejects the unknown method SECRETWORD, so it is no request
    assert [line["event"] for line in lines].count("request") == 7
    assert all({"time", "route", "method", "code", "ms"} <= {*x} for x in lines if x["event"] == "request")
    assert "secretword" not in str(server.lines).lower()
    assert "secretword" not in server.send("/metrics").body.decode().lower()
    assert not [line for line in server.lines if line["event"] == "no JSON"]
