"""A server gets damaged requests over raw sockets. Each is answered or refused, and none harms another.

The test takes a few seconds. For longer, and for a bundle of your own:

    python tests/export/serving/test_server_fuzz.py BUNDLE --minutes 10
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

PREDICT = b"POST /predict HTTP/1.1\r\nhost: a\r\n"
BODY = b'{"texts": ["thanks", "where is my parcel"], "heads": null, "top_k": 2, "scores": false}'
TENSOR = b'{"id": "1", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}'
QUESTIONS = (
    b'{"state": {"a": ["b"]}, "questions": {"c": {"type": "choice", "instructions": "now", "criteria": '
    b'{"order": null, "parcel": "my"}}, "d": {"type": "noul", "criteria": {"true": "a", "false": null}}, '
    b'"e": {"type": "score", "criteria": ["thanks", "cancel", {"a": 1}]}}}'
)
LABELS = b'{"text": "thanks", "heads": ["intent"], "labels": {"order": null, "parcel": "my"}, "top_k": 2}'
BODIES = (
    ("/predict", BODY),
    ("/v2/models/tiny/infer", TENSOR),
    ("/predict", LABELS),
    ("/v1/systemone", QUESTIONS),
)
SEEDS = [
    PREDICT + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY),
    PREDICT + b"transfer-encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\na: b\r\n\r\n" % (len(BODY), BODY),
    PREDICT + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY),
    PREDICT + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY),
    b"POST /v2/models/tiny/infer HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(TENSOR), TENSOR),
    b"GET /v2/models/tiny?a=b HTTP/1.1\r\nconnection: keep-alive, close\r\n\r\n",
    b"HEAD / HTTP/1.0\r\naccept: text/html\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: [::1]:80\r\n\r\n",
]
PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b" ",
        b":",
        b"0\r\n\r\n",
        b"\r\n\r\n",
        b"%00",
        b"%ff",
        b"//",
        b"?#",
    ),
    *(b"content-length: 7\r\n", b"content-length: 18446744073709551616\r\n", b"content-length: -1\r\n"),
    *(b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"connection: upgrade\r\n"),
    *(b"upgrade: websocket\r\n", b"expect: 100-continue\r\n", b"content-encoding: gzip\r\n", b"host: \r\n"),
    *(
        b"ffffffffffffffff\r\n",
        b"[" * 500,
        b'{"a":' * 300,
        b'"\\ud800"',
        b"1e999",
        b"-0",
        b"\xed\xa0\x80",
        b"null",
    ),
    *(b"a" * 5_000, b"b: c\r\n" * 99, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00"),
]
ALLOWED = {200, 400, 404, 405, 408, 413, 415, 422, 429, 431, 503, 504}


def change(data: bytearray, draw: random.Random) -> None:
    """Make a few random changes."""
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((1, 1, 2, 8, 64, 4_096)))
        match draw.randrange(5):
            case 0:
                data[start:start] = draw.choice(PIECES)
            case 1:
                data[start:end] = draw.randbytes(end - start)
            case 2:
                del data[start:end]
            case 3:
                data[start:start] = data[start:end] * draw.choice((1, 1, 50))
            case _:
                del data[start:]


def damaged(draw: random.Random) -> bytes:
    """Requests that are damaged, and requests whose body alone is."""
    if draw.random() < 0.5:
        data = bytearray(b"".join(draw.choices(SEEDS, k=draw.choice((1, 1, 1, 2, 5, 80)))))
        change(data, draw)
        return bytes(data)
    requests = []
    for _ in range(draw.choice((1, 1, 2, 5))):
        path, text = draw.choice(BODIES)
        body = bytearray(text)
        change(body, draw)
        requests.append(
            b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
        )
    return b"".join(requests)


def attack(port: int, seed: int) -> list[int]:
    """The statuses that a server sends to a damaged request, however the client sends it and ends."""
    draw = random.Random(seed)
    data, reply = damaged(draw), b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as link:
        while data:
            size = draw.choice((1, 7, 100, len(data), len(data)))
            link.sendall(data[:size])
            data = data[size:]
            if draw.random() < 0.05:
                time.sleep(0.01)
        ending = draw.randrange(4)
        if ending == 0:  # reset
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif ending > 1:
            if ending == 2:
                link.shutdown(socket.SHUT_WR)
            link.settimeout(0.2)
            while part := link.recv(65_536):
                reply += part
    return [
        int(status) for status in re.findall(rb"(?:^|\n|[}>])HTTP/1\.1 (\d{3}) ", reply) if status != b"100"
    ]


def fuzz(port: int, seconds: float, seed: int) -> Counter[int | str]:
    """Attack a server with 24 clients. Returns the counts of statuses, and of requests as `cases`.

    Raises:
        AssertionError: a status is not documented, or a valid request is not answered correctly.
    """
    counts: Counter[int | str] = Counter()
    valid = SEEDS[0].replace(b"\r\nhost", b"\r\nconnection: close\r\nhost", 1)
    with socket.create_connection(("127.0.0.1", port), 60) as link:
        link.sendall(valid)
        expected = link.makefile("rb").read().partition(b"\r\n\r\n")[2]
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(24) as pool:
        while time.monotonic() < end:
            seeds = range(seed, seed := seed + 240)
            for case, statuses in zip(seeds, pool.map(lambda seed: attack(port, seed), seeds), strict=True):
                counts.update(["cases", *statuses])
                assert {*statuses} <= ALLOWED, f"seed {case}: {statuses}"
            with socket.create_connection(("127.0.0.1", port), 60) as link:
                link.sendall(valid)
                assert link.makefile("rb").read().partition(b"\r\n\r\n")[2] == expected, f"after seed {seed}"
    return counts


@pytest.fixture(params=["bundle", "packed_bundle"])
def attacked(serve, request):
    return serve(request.getfixturevalue(request.param), "--timeout-s", 1, "--drain-s", 0)


def test_damaged_requests_are_answered_or_refused(attacked, seconds: float = 2.0):
    fuzz(attacked.port, seconds / 4, seed=1_000_000)
    before = attacked.metric("process_resident_memory_bytes")
    counts = fuzz(attacked.port, seconds, seed=0)
    time.sleep(2)
    assert counts["cases"] > 100 and counts[200] > 20 and counts[400] > 20
    assert attacked.metric("process_resident_memory_bytes") < before + 20 * 2**20
    assert attacked.metric("process_open_fds") < 40
    assert attacked.stop() == 0
    expected = {"serving", "listening", "request", "refused", "stopped"}
    unexpected = [line for line in attacked.lines if line["event"] not in expected]
    assert not unexpected, json.dumps(unexpected[:3])
    assert {line["code"] for line in attacked.lines if line["event"] == "request"} <= {*ALLOWED, 499}
    print(json.dumps(counts))


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import Running

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    server = Running(options.bundle, "--timeout-s", 1, "--drain-s", 0)
    try:
        test_damaged_requests_are_answered_or_refused(server, 60 * options.minutes)
    finally:
        server.process.kill()


if __name__ == "__main__":
    main()
