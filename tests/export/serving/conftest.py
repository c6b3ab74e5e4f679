"""A real server process on a loopback port, and a way to ask it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[3]
PATIENCE = 60


class Reply:
    """The status, headers and body of an answer."""

    def __init__(self, found: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = found.status, found.headers, found.read()

    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A `distill serve` that listens."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "distill.cli.main", "serve", "--port", "0", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.lines: list[dict[str, Any]] = []
        self.pool = ThreadPoolExecutor(32)
        Thread(target=self._read, daemon=True).start()
        try:
            self.url = self.line("listening")["url"]
        except BaseException:
            self.process.kill()
            raise
        self.port = urlsplit(self.url).port

    def _read(self) -> None:
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": "no JSON", "line": line.decode()})

    def line(self, event: str, **details: Any) -> dict[str, Any]:
        """The first line of the log with this event and details, waited for."""

        wanted = {"event": event, **details}

        def find() -> dict[str, Any] | None:
            fitting = (x for x in [*self.lines] if all(x.get(key) == wanted[key] for key in wanted))
            return next(fitting, None)

        return self.until(find)

    def until(self, find: Callable[[], Any]) -> Any:
        """What `find` gives as soon as that is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := find():
                return found
            time.sleep(0.01)
        raise AssertionError(f"waited in vain; exit {self.process.poll()}, log {self.lines}")

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Reply:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        link.request(method or ("GET" if body is None else "POST"), path, data, headers)
        try:
            return Reply(link.getresponse())
        finally:
            link.close()

    def predict(self, **body: Any) -> Reply:
        return self.ask("/predict", body)

    def later(self, **body: Any) -> Future[Reply]:
        """A `/predict` in a thread of its own."""
        return self.pool.submit(self.ask, "/predict", body)

    def metric(self, name: str) -> float:
        """The sum of a metric over all its labels; `name` may bear some of them."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def waits(self, texts: int) -> None:
        """Returns when so many texts stand in the queue."""
        self.until(lambda: self.metric("tinyheads_queue_texts{") == texts)

    def stop(self) -> int:
        """The exit status after SIGTERM."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Running]]:
    """A function (arguments) that starts a server; ended with the tests if not before."""
    started: list[Running] = []

    def start(*arguments: object) -> Running:
        started.append(Running(*arguments))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait(PATIENCE)
        running.pool.shutdown()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Running], bundle: Path) -> Running:
    """A server of the tiny bundle as it is by default, but for the smaller bounds."""
    return serve(bundle, "--max-body", 100_000, "--max-text", 5_000, "--queue", 200)


@pytest.fixture(scope="session")
def closely() -> Callable[[Any, Any], bool]:
    """Whether answers are alike but for the last digits, which the texts beside one decide."""

    def compare(answers: Any, expected: Any) -> bool:
        if isinstance(expected, float):
            return answers == pytest.approx(expected, abs=1e-5)
        if isinstance(expected, dict):
            return answers.keys() == expected.keys() and all(
                compare(answers[x], expected[x]) for x in expected
            )
        if isinstance(expected, list):
            return len(answers) == len(expected) and all(map(compare, answers, expected))
        return bool(answers == expected)

    return compare
