"""A server process on a loopback port, and a client for it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, PACKED, TOKENIZER, Head, Manifest
from export.runtime.classifier import Classifier

ROOT = Path(__file__).parents[3]
PATIENCE = 60


class Reply:
    """Status, headers and body of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A `distill serve` process that is listening. `before` is Python that runs first."""

    def __init__(self, *arguments: object, before: str = "") -> None:
        code = f"{before}\nfrom distill.cli.main import main\nraise SystemExit(main())"
        command = [sys.executable, "-c", code, "serve", "--port", "0", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.lines: list[dict[str, Any]] = []
        self.reads_log = Event()
        self.reads_log.set()
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
            self.reads_log.wait()
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": "no JSON", "line": line.decode()})

    def line(self, event: str, **details: Any) -> dict[str, Any]:
        """Wait for the first line of the log with this event and these details."""

        wanted = {"event": event, **details}

        def find() -> dict[str, Any] | None:
            matching = (x for x in [*self.lines] if all(x.get(key) == wanted[key] for key in wanted))
            return next(matching, None)

        return self.until(find)

    def until(self, find: Callable[[], Any]) -> Any:
        """Wait until `find` returns a true value, and return it."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := find():
                return value
            time.sleep(0.01)
        raise AssertionError(f"timeout; exit {self.process.poll()}, log {self.lines[-20:]}")

    def send(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Reply:
        """Send a request on a new connection. A body that is not bytes is sent as JSON."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        link.request(method or ("GET" if body is None else "POST"), path, data, headers)
        try:
            return Reply(link.getresponse())
        finally:
            link.close()

    def predict(self, **body: Any) -> Reply:
        return self.send("/predict", body)

    def predict_later(self, **body: Any) -> Future[Reply]:
        """Send a `/predict` request in a thread."""
        return self.pool.submit(self.send, "/predict", body)

    def metric(self, name: str) -> float:
        """The sum of a metric over all label values that start with `name`."""
        lines = self.send("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def wait_for_queue(self, texts: int) -> None:
        """Wait until this many texts are queued."""
        self.until(lambda: self.metric("tinyheads_queue_texts{") == texts)

    def stop(self) -> int:
        """Send SIGTERM, wait for the exit, and return its status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Running]]:
    """A function that starts a server with these arguments. The session kills it at the end."""
    started: list[Running] = []

    def start(*arguments: object, before: str = "") -> Running:
        started.append(Running(*arguments, before=before))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait(PATIENCE)
        running.pool.shutdown()


@pytest.fixture(scope="session")
def packed_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    manifest: Manifest,
    contents: dict[str, bytes],
    weights: dict[str, np.ndarray],
) -> Path:
    """A packed bundle of two heads; a label's logit is the product of its mean embedding and the text's."""
    make, nodes = helper.make_node, []
    for ids, mask, mean in (("input_ids", "attention_mask", "text"), ("label_ids", "label_mask", "label")):
        nodes += [
            make("Gather", ["table", ids], [f"{mean}.embedded"]),
            make("Cast", [mask], [f"{mean}.floats"], to=TensorProto.FLOAT),
            make("Unsqueeze", [f"{mean}.floats", "last"], [f"{mean}.mask"]),
            make("Mul", [f"{mean}.embedded", f"{mean}.mask"], [f"{mean}.masked"]),
            make("ReduceSum", [f"{mean}.masked", "middle"], [f"{mean}.sum"], keepdims=0),
            make("ReduceSum", [f"{mean}.mask", "middle"], [f"{mean}.count"], keepdims=0),
            make("Div", [f"{mean}.sum", f"{mean}.count"], [mean]),
        ]
    nodes += [
        make("Transpose", ["label"], ["labels"], perm=[1, 0]),
        make("MatMul", ["text", "labels"], ["logits_intent"]),
        make("Neg", ["logits_intent"], ["logits_flags"]),
    ]
    constants = {"table": weights["table"], "last": np.array([2]), "middle": np.array([1])}
    shapes = {"input_ids": ["b", "t"], "attention_mask": ["b", "t"]}
    shapes |= {"label_ids": ["l", "n"], "label_mask": ["l", "n"]}
    graph = helper.make_graph(
        nodes,
        "packed",
        [helper.make_tensor_value_info(x, TensorProto.INT64, shape) for x, shape in shapes.items()],
        [
            helper.make_tensor_value_info(x, TensorProto.FLOAT, ["b", "l"])
            for x in ("logits_intent", "logits_flags")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    own = replace(
        manifest,
        name="packed",
        heads=(
            Head("flags", "multi_label", ("now", "please"), "logits_flags", 0.8, (0.2, 0.9)),
            Head("intent", "single_label", ("parcel", "cancel", "thanks"), "logits_intent", 0.5),
        ),
        max_length=24,
        variants={"fp32": FP32},
        kind=PACKED,
        label_length=8,
    )
    folder = tmp_path_factory.mktemp("packed") / "bundle"
    write_bundle(folder, own, {TOKENIZER: contents[TOKENIZER], FP32: model.SerializeToString()})
    return folder


@pytest.fixture(scope="session")
def packed(packed_bundle: Path) -> Classifier:
    return Classifier.load(packed_bundle, threads=1)


@pytest.fixture(scope="session")
def packed_server(serve: Callable[..., Running], packed_bundle: Path) -> Running:
    """A server of the packed bundle, with the limits of `server`."""
    return serve(packed_bundle, "--max-body", 100_000, "--max-text", 5_000, "--queue", 200)


@pytest.fixture(scope="session")
def server(serve: Callable[..., Running], bundle: Path) -> Running:
    """A server of the tiny bundle with smaller limits."""
    return serve(bundle, "--max-body", 100_000, "--max-text", 5_000, "--queue", 200)


@pytest.fixture(scope="session")
def close_to() -> Callable[[Any, Any], bool]:
    """Compare up to the last digits, which depend on the other texts of a batch."""

    def compare(actual: Any, expected: Any) -> bool:
        if isinstance(expected, float):
            return actual == pytest.approx(expected, abs=1e-5)
        if isinstance(expected, dict):
            return actual.keys() == expected.keys() and all(compare(actual[x], expected[x]) for x in expected)
        if isinstance(expected, list):
            return len(actual) == len(expected) and all(map(compare, actual, expected))
        return bool(actual == expected)

    return compare
