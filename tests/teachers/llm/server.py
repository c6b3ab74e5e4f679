"""A server on loopback that answers as a language model would, and misbehaves on demand.

The right option is the one whose name, or one of its words, occurs in the text.
"""

from __future__ import annotations

import json
import math
import re
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, cycle
from threading import Lock, Thread
from typing import Any

KINDS = ("malformed", "wrong", "500", "429", "drop")
SURE = 0.9  # probability of the option that occurs in the text

# the kind of misbehaviour for a request's number and body, None to answer it
Fault = Callable[[int, dict[str, Any]], str | None]


class FakeServer:
    """What the server has, and what it received.

    Attributes:
        logprobs: Whether log probabilities are returned.
        systemone: Whether it has `/v1/systemone`.
        several: Whether `n` is obeyed.
        fault: Which requests it answers badly.
        key: That it expects, if any.
        bodies: Of the requests, in order.
        answered: Of those that were answered well.
        headers: Likewise.
        words: That stand for an option in a text, besides its name.
        slow: Seconds of the fault `slow`.
        retry_after: The header of a 429.
    """

    def __init__(self, *, logprobs: bool = True, systemone: bool = False, several: bool = True) -> None:
        self.logprobs, self.systemone, self.several = logprobs, systemone, several
        self.fault: Fault = lambda number, body: None
        self.key: str | None = None
        self.words: Mapping[str, Collection[str]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.slow, self.retry_after = 1.0, "0"
        self.delay = 0.0
        self.at_once = self.most_at_once = 0
        self._lock, self._numbers = Lock(), count()

    def texts(self) -> list[str]:
        """The texts of the requests, in order."""
        return [text_of(body) for body in self.bodies]

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        """Serve in a thread; gives the base URL."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100

            def handle_error(self, *args: Any) -> None:
                pass

        with Server(("127.0.0.1", port), Handler) as http:
            Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
            try:
                yield f"http://127.0.0.1:{http.server_address[1]}/v1"
            finally:
                http.shutdown()

    def named(self, options: list[str], text: str) -> list[str]:
        """The options that a text names."""
        words = {*re.findall(r"\w+", text)}
        return [option for option in options if words & {option, *self.words.get(option, ())}]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = next(self._numbers)
            self.bodies.append(body)
            self.paths.append(handler.path)
            self.headers.append(dict(handler.headers))
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            time.sleep(self.delay)
            with self._lock:
                fault = self.fault(number, body)
            self._reply(handler, body, fault)
            if fault is None:
                self.answered.append(body)
        finally:
            with self._lock:
                self.at_once -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: str | None) -> None:
        if self.key and handler.headers["Authorization"] != f"Bearer {self.key}":
            sent = handler.headers["Authorization"]
            return _send(handler, 401, {"error": {"message": f"Incorrect API key provided: {sent}"}})
        if fault == "drop":
            handler.close_connection = True
            return handler.connection.shutdown(socket.SHUT_RDWR)
        if fault == "slow":
            time.sleep(self.slow)
        if fault and fault.isdigit():
            key = f" with {handler.headers['Authorization']}" if handler.headers["Authorization"] else ""
            headers = {"Retry-After": self.retry_after} if fault == "429" else {}
            return _send(handler, int(fault), {"error": {"message": "something\nis wrong" + key}}, headers)
        if fault == "malformed":
            return _send(handler, 200, '{"choices": [{"mess')
        if handler.path == "/v1/systemone":
            if not self.systemone:
                return _send(handler, 404, {"detail": "Not Found"})
            return _send(handler, 200, systemone_reply(self, body, wrong=fault == "wrong"))
        if handler.path != "/v1/chat/completions":
            return _send(handler, 404, {"detail": "Not Found"})
        if body.get("logprobs") and self.logprobs:
            return _send(handler, 200, logprobs_reply(self, body, wrong=fault == "wrong"))
        return _send(handler, 200, chat_reply(self, body, wrong=fault == "wrong"))


def text_of(body: dict[str, Any]) -> str:
    """The text that a request asks about."""
    if "state" in body:
        return str(body["state"])
    match = re.search(r"<text>\n(.*)\n</text>", body["messages"][0]["content"], re.DOTALL)
    assert match
    return match[1]


def shares(fake: FakeServer, options: list[str], text: str) -> list[float]:
    """SURE for the option that the text names, if it names one."""
    named = fake.named(options, text)
    if len(named) != 1:
        return [1 / len(options)] * len(options)
    return [SURE if option in named else (1 - SURE) / max(1, len(options) - 1) for option in options]


def logprobs_reply(fake: FakeServer, body: dict[str, Any], *, wrong: bool) -> dict[str, Any]:
    """A letter with the log probabilities of twenty tokens."""
    lines, text = body["messages"][0]["content"], text_of(body)
    options = dict(re.findall(r"^([A-Z]): (\w+)", lines, re.MULTILINE))
    if [*options.values()] == ["yes", "no"]:
        label = re.findall(r"^(\w+)[^\n]*\n[^\n]*\nA: yes", lines, re.MULTILINE)[0]
        yes = SURE if fake.named([label], text) else 1 - SURE
        top = {"A": yes, "B": 1 - yes}
    else:
        top = dict(zip(options, shares(fake, [*options.values()], text), strict=True))
    top = {"The" if wrong else token: p for token, p in top.items()}
    best = max(top, key=top.__getitem__)
    some = top | {f"word{i}": 1e-9 for i in range(20)}
    entries = [
        {"token": token, "logprob": math.log(p)} for token, p in [*some.items()][: body["top_logprobs"]]
    ]
    choice = {
        "message": {"role": "assistant", "content": best},
        "logprobs": {"content": [{"token": best, "logprob": math.log(top[best]), "top_logprobs": entries}]},
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}


def chat_reply(fake: FakeServer, body: dict[str, Any], *, wrong: bool) -> dict[str, Any]:
    """JSON of all heads in each of `n` choices."""
    content, text = body["messages"][0]["content"], text_of(body)
    answer: dict[str, Any] = {}
    for head, how, options in re.findall(r'^"(\w+)": .* Choose (.+):\n((?:- .*\n)+)', content, re.MULTILINE):
        labels = re.findall(r"^- ([^(\n]+?)(?: \(.*)?$", options, re.MULTILINE)
        chosen = fake.named(labels, text)
        answer[head] = chosen if how == "any number of" else (chosen or labels)[0]
    if wrong:
        answer = dict.fromkeys(answer, "no such label")
    message = {"role": "assistant", "content": f"Sure!\n```json\n{json.dumps(answer)}\n```"}
    if not answer:  # a letter was asked for
        message["content"] = "A"
    number = body.get("n", 1) if fake.several else 1
    return {
        "choices": [{"message": message}] * number,
        "usage": {"prompt_tokens": 50, "completion_tokens": 9},
    }


def systemone_reply(fake: FakeServer, body: dict[str, Any], *, wrong: bool) -> dict[str, Any]:
    """The probabilities of every question's options."""
    answers: dict[str, Any] = {}
    for name, question in body["questions"].items():
        if question["type"] == "noul":
            label = question["instructions"].rpartition("\n")[2].partition(" (")[0]
            answers[name] = {"type": "noul", "noul": SURE if fake.named([label], body["state"]) else 1 - SURE}
        else:
            options = [*question["criteria"]]
            assert len(options) <= 26
            found = dict(zip(options, shares(fake, options, body["state"]), strict=True))
            answers[name] = {"type": "choice", "probabilities": {"other": 1.0} if wrong else found}
        if wrong:
            answers[name]["noul"] = None
    assert len(answers) <= 64
    return {"model": body["model"], "answers": answers, "usage": {"input_tokens": 40, "output_tokens": 0}}


def _send(handler: BaseHTTPRequestHandler, status: int, value: Any, headers: Any = None) -> None:
    content = (value if isinstance(value, str) else json.dumps(value)).encode()
    handler.send_response(status)
    for name, text in (headers or {}).items():
        handler.send_header(name, text)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def one_in_five() -> Fault:
    """Every fifth request is answered badly, each time in another way."""
    kinds = cycle(KINDS)
    return lambda number, body: next(kinds) if number % 5 == 3 else None
