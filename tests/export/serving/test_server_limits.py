"""Limits that a client cannot exceed: heads, connections, pipelining, slow and half-closed clients, hosts."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import suppress

import pytest

from export.serving.connection import MAX_HEAD, MAX_HEADERS, MAX_PIPELINED

PREDICT = b"POST /predict HTTP/1.1\r\nhost: a\r\n"
BODY = b'{"text": "thanks"}'
WHOLE = PREDICT + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
LAST = b"GET /v2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


def received(link: socket.socket) -> bytes:
    """Everything that a peer sends until it closes the connection."""
    parts = []
    with suppress(ConnectionError):
        while part := link.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def statuses(data: bytes) -> list[int]:
    """The statuses of the responses in a stream, without 100."""
    return [
        int(x)
        for x in re.findall(rb"(?m)^HTTP/1\.1 (\d+) ", data.replace(b"}HTTP", b"}\nHTTP"))
        if x != b"100"
    ]


def raw(server, sent: bytes) -> bytes:
    """Everything that a server sends on a new connection until it closes it."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as link:
        with suppress(ConnectionError):
            link.sendall(sent)
        return received(link)


@pytest.fixture(scope="module")
def strict(serve, bundle):
    """A server with a short timeout and few connections."""
    return serve(bundle, "--timeout-s", 0.5, "--max-connections", 20, "--drain-s", 0)


def memory(server):
    return server.metric("process_resident_memory_bytes") / 2**20


@pytest.mark.parametrize(
    ("head", "status", "problem"),
    [
        (b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\n\r\n", 431, "head: at most 32768 bytes"),
        (b"GET /v2 HTTP/1.1\r\na: " + b"b" * MAX_HEAD + b"\r\n\r\n", 431, "head: at most 32768 bytes"),
        (
            b"GET /v2 HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
            431,
            "head: at most 100 headers",
        ),
        (b"GET /v2 HTTP/1.1\r\na" + b"a" * 100_000, 431, "head: at most"),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 405, "method: CONNECT is not supported"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "request: must be HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "request: must be HTTP/1.1"),
        (PREDICT + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab", 400, "request: must be HTTP/1.1"),
        (PREDICT + b"transfer-encoding: chunked\r\n\r\nx\r\n", 400, "request: must be HTTP/1.1"),
    ],
)
def test_an_invalid_head_gets_an_error_in_json(server, head, status, problem):
    reply = raw(server, head)
    fields, _, body = reply.partition(b"\r\n\r\n")
    assert statuses(reply) == [status] and b"connection: close" in fields
    assert problem in json.loads(body)["error"]


def test_the_largest_head_is_accepted(server):
    head = b"GET /v2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n" + b"a: b\r\n" * (MAX_HEADERS - 3)
    assert statuses(raw(server, head + b"c: " + b"d" * (MAX_HEAD - 1_000) + b"\r\n\r\n")) == [200]


def send_without_end(server, start: bytes, part: bytes) -> None:
    """Send until the server closes the connection."""
    end = time.monotonic() + 20
    with socket.create_connection(("127.0.0.1", server.port), 60) as link, suppress(ConnectionError):
        link.sendall(start)
        while time.monotonic() < end:
            link.sendall(part)
    assert time.monotonic() < end


CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
ENDLESS = [
    (b"GET /v2 HTTP/1.1\r\n", b"a: b\r\n" * 1_000),
    (b"GET /v2 HTTP/1.1\r\na: ", b"b" * 10_000),
    (b"GET /", b"b" * 10_000),
    (PREDICT + CHUNKED, b"3e8\r\n" + b"x" * 1_000 + b"\r\n"),
    (PREDICT + CHUNKED + b"1;", b"x" * 10_000),
    (PREDICT + CHUNKED + b"1\r\nx\r\n0\r\na: ", b"x" * 10_000),
    (PREDICT + CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n" * 1_000),
    (b"GET /v2 HTTP/1.1\r\n" + CHUNKED, b"3e8\r\n" + b"x" * 1_000 + b"\r\n"),
    (b"PUT /predict HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", b"x" * 10_000),
    (b"", b"\r\n" * 5_000),
]


def test_requests_without_end_are_ended_in_little_memory(strict):
    before = memory(strict)
    for sent in [strict.pool.submit(send_without_end, strict, *case) for case in ENDLESS]:
        sent.result()
    assert memory(strict) < before + 60
    assert strict.predict(text="thanks").status == 200


def test_slow_heads_and_silent_connections_are_closed(strict):
    assert statuses(raw(strict, b"GET /v2 HTT")) == [408]
    assert statuses(raw(strict, WHOLE + b"GET /v2 HTT")) == [200, 408]
    assert raw(strict, b"") == b"" == raw(strict, b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", strict.port), 60) as link:
        link.sendall(WHOLE)
        while not link.recv(65_536).endswith(b"]}"):
            pass
        link.sendall(b"\r\n")  # no longer idle, but no request
        assert received(link) == b""


def test_a_client_that_does_not_read_is_disconnected(serve, bundle):
    server = serve(bundle, "--timeout-s", 1, "--drain-s", 0, "--queue", 2_000)
    texts = json.dumps({"texts": ["a"] * 500, "scores": True}).encode()
    request = PREDICT + b"content-length: %d\r\n\r\n" % len(texts) + texts
    links = []
    for _ in range(3):
        links.append(socket.socket())
        links[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        links[-1].connect(("127.0.0.1", server.port))
        links[-1].sendall(request * 60)
    server.until(lambda: server.metric('tinyheads_refusals_total{reason="unread"}') == 3)
    server.until(lambda: server.metric("process_open_fds") < 30)
    assert server.predict(text="thanks").status == 200
    assert server.stop() == 0
    for link in links:
        link.close()


def test_connections_above_the_limit_get_503(strict):
    links = [socket.create_connection(("127.0.0.1", strict.port), 60) for _ in range(20)]
    reply = raw(strict, b"")
    assert statuses(reply) == [503] and b"retry-after: 1" in reply
    assert b"server: all 20 connections are in use (retry later)" in reply
    for link in links:
        link.close()
    strict.until(lambda: statuses(raw(strict, LAST)) == [200])


def test_the_limit_of_connections_follows_from_the_limit_of_open_files(serve, bundle):
    lower = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))"
    server = serve(bundle, "--drain-s", 0, before=lower)
    assert server.line("listening")["max_connections"] == 22
    raised = "import resource\nhard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
    server = serve(
        bundle, "--drain-s", 0, before=f"{raised}resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))"
    )
    assert server.line("listening")["max_connections"] == 1_024


def test_pipelined_requests_are_answered_in_order_up_to_a_limit(server):
    assert statuses(raw(server, WHOLE * 60 + LAST)) == [200] * 61
    reply = statuses(raw(server, WHOLE * 1_000))
    assert reply == [200] * len(reply) and MAX_PIPELINED <= len(reply) < 1_000


def test_an_invalid_request_does_not_take_the_response_of_an_earlier_one(server):
    assert statuses(raw(server, WHOLE + b"nonsense\r\n\r\n")) == [200]
    assert statuses(raw(server, WHOLE * 5 + PREDICT + b"a" * MAX_HEAD * 20)) == [200] * 5


def test_a_half_closed_client_gets_its_responses(server):
    for sent, expected in ((WHOLE, [200]), (WHOLE * 5, [200] * 5), (WHOLE[:-1], []), (b"GET", [])):
        with socket.create_connection(("127.0.0.1", server.port), 60) as link:
            link.sendall(sent)
            link.shutdown(socket.SHUT_WR)
            assert statuses(link.makefile("rb").read()) == expected


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
def test_a_request_to_upgrade_is_answered_as_http_1(server, protocol):
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: %b\r\nhttp2-settings: AAA\r\n" % protocol
    whole = PREDICT + upgrade + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    assert statuses(raw(server, whole * 3 + LAST)) == [200] * 4
    chunked = PREDICT + upgrade + b"transfer-encoding: chunked\r\n\r\n"
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert statuses(raw(server, chunked + LAST)) == [200, 200]
    with socket.create_connection(("127.0.0.1", server.port), 60) as link:
        for byte in whole:
            link.sendall(bytes([byte]))
        link.sendall(LAST)
        assert statuses(link.makefile("rb").read()) == [200, 200]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_with_http2(server, classifier):
    command = ["curl", "-s", "--http2", f"{server.url}/predict", "-d", '{"text": "thanks"}']
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == classifier("thanks")


def test_expect_100_continue(server):
    head = PREDICT + b"expect: 100-continue\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 60) as link:
        link.sendall(head + b"content-length: %d\r\n\r\n" % len(BODY))
        assert link.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        link.sendall(BODY + LAST)
        assert statuses(link.makefile("rb").read()) == [200, 200]
    # the client sends no body after this response, so the next request cannot follow
    reply = raw(server, head + b"content-length: 999999\r\n\r\n")
    assert statuses(reply) == [413] and b"connection: close" in reply


def test_only_allowed_hosts_are_answered(serve, bundle):
    server = serve(bundle, "--allowed-hosts", "LocalHost, 127.0.0.1,*.example.com,[::1]", "--drain-s", 0)
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "a.example.com", "[::1]", "[::1]:80"):
        assert server.send("/v2", Host=host).status == 200
    for host in (
        "evil.com",
        "example.com",
        "localhost.evil.com",
        "evil.com:localhost",
        "",
        "::1",
        "example.com.",
    ):
        reply = server.send("/predict", {"text": "thanks"}, Host=host)
        assert reply.status == 400
        assert reply.json() == {"error": "host: must be one of --allowed-hosts (add it there)"}
    assert statuses(raw(server, b"GET /v2 HTTP/1.1\r\nconnection: close\r\n\r\n")) == [400]
    assert server.stop() == 0


def test_repeated_heads_and_outputs_keep_no_memory(server):
    heads, outputs = ["intent", "flags"], ["intent", "flags", "flags.score", "flags.probabilities"]

    def ask(turn: int) -> None:
        chosen = [heads[turn >> bit & 1] for bit in range(8)] * 900
        assert len(server.predict(text="a", heads=chosen, top_k=turn % 3 + 1).json()) <= 2
        named = [{"name": outputs[turn >> bit & 3]} for bit in range(8)] * 300
        inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
        assert server.send("/v2/models/tiny/infer", {"inputs": inputs, "outputs": named}).status == 200

    for turn in range(32):
        ask(turn)
    before = memory(server)
    for turn in range(256):
        ask(turn)
    assert memory(server) < before + 10


def test_incomplete_bodies_share_a_limit(serve, bundle):
    server = serve(bundle, "--max-body", 1_000, "--drain-s", 0)
    part = PREDICT + b"content-length: 1000\r\n\r\n" + b" " * 990
    links = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(64)]
    for link in links:
        link.sendall(part)
    reply = raw(server, part)
    assert statuses(reply) == [503] and b"too many bodies are incomplete" in reply
    for link in links:
        link.close()
    server.until(lambda: server.predict(text="thanks " * 100).status == 200)
    assert server.stop() == 0


def test_a_response_has_a_limited_number_of_scores(serve, bundle):
    few = "from export.serving import request\nrequest._MAX_VALUES = 20"
    server = serve(bundle, "--drain-s", 0, before=few)
    problem = "texts: at most 4 texts are allowed for 5 scores each, got 5 (split the request)"
    assert server.predict(texts=["a"] * 4, scores=True).status == 200
    assert server.predict(texts=["a"] * 5, scores=True).json() == {"error": problem}
    assert server.predict(texts=["a"] * 5, scores=True, heads=["intent"]).status == 200
    assert server.predict(texts=["a"] * 5, thresholds={"flags": 0}).json() == {"error": problem}
    assert server.predict(texts=["a"] * 10, top_k=1).status == 200
    assert server.predict(texts=["a"] * 11, top_k=1).status == 422
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [4], "data": ["a"] * 4}]
    assert server.send("/v2/models/tiny/infer", {"inputs": inputs}).status == 422  # 1 + 1 + 2 + 2 values
    reply = server.send(
        "/v2/models/tiny/infer", {"inputs": inputs, "outputs": [{"name": "flags.probabilities"}]}
    )
    assert reply.status == 200
