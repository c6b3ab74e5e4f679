"""What the server says of itself: figures for Prometheus, and lines of JSON.

Texts are in neither, unless asked for. Lines are gathered for a moment and written together: one write
a request costs as much as the request.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FLUSH_S = 0.05


class Observer:
    """The figures of one server, in a registry of its own, and its log.

    Args:
        stream: where the lines go.
        texts: whether a request's line has its texts.
    """

    def __init__(self, stream: BinaryIO | None = None, *, texts: bool = False) -> None:
        self._stream, self._texts = stream or _stderr(), texts
        self._lines: list[bytes] = []
        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("tinyheads_requests", "Requests answered.", ("route", "code"), registry=own)
        self._seconds = Histogram(
            "tinyheads_request_seconds",
            "From a request's head to its answer.",
            ("route",),
            registry=own,
            buckets=_SECONDS,
        )
        self._refusals = Counter("tinyheads_refusals", "Requests refused.", ("reason",), registry=own)
        self._asked = Counter("tinyheads_texts", "Texts classified.", ("model",), registry=own)
        self._batch = Histogram(
            "tinyheads_batch_texts",
            "Texts in a call of the classifier.",
            ("model",),
            registry=own,
            buckets=_TEXTS,
        )
        self._call = Histogram(
            "tinyheads_batch_seconds",
            "Seconds of a call of the classifier.",
            ("model",),
            registry=own,
            buckets=_SECONDS,
        )
        self._queue = Gauge("tinyheads_queue_texts", "Texts that wait.", ("model",), registry=own)
        self._bundle = Gauge(
            "tinyheads_bundle_info", "The bundle that answers.", ("model", "version", "variant"), registry=own
        )
        self._reloads = Counter("tinyheads_reloads", "Bundles swapped.", ("model", "outcome"), registry=own)
        self._told: dict[tuple[str, int], Any] = {}

    def request(
        self,
        route: str,
        method: str,
        code: int,
        seconds: float,
        *,
        model: str | None = None,
        reason: str | None = None,
        texts: Sequence[str] = (),
    ) -> None:
        """Counts a request and logs its line; `reason` says in a word why it was refused."""
        told = self._told.get((route, code))
        if told is None:
            told = self._requests.labels(route, str(code)), self._seconds.labels(route)
            self._told[route, code] = told
        told[0].inc()
        told[1].observe(seconds)
        line = {"route": route, "method": method, "code": code, "ms": round(1000 * seconds, 3)}
        if model is not None:
            line["model"] = model
        if texts:
            line["texts"] = len(texts)
        if reason is not None:
            self._refusals.labels(reason).inc()
            line["reason"] = reason
        if self._texts and texts:
            line["asked"] = list(texts)
        self._write("request", line)

    def event(self, event: str, **details: Any) -> None:
        """Logs something that is no request."""
        self._write(event, details)

    def failure(self, route: str, error: BaseException) -> None:
        """Logs a fault of the server's own with where it came from, but not what the error says."""
        frames = traceback.extract_tb(error.__traceback__)
        self._write(
            "failure", {"route": route, "error": type(error).__name__, "at": [str(x) for x in frames]}
        )

    def batches(self, model: str) -> Callable[[int, float], None]:
        """A function that counts one call of the model's classifier: its texts, its seconds."""
        texts, batch, call = self._asked.labels(model), self._batch.labels(model), self._call.labels(model)

        def told(size: int, seconds: float) -> None:
            texts.inc(size)
            batch.observe(size)
            call.observe(seconds)

        return told

    def bundle(self, model: str, version: str, variant: str, depth: Callable[[], int]) -> None:
        """Says which version of a model answers from now on, and how its queue is looked up."""
        self._bundle.remove_by_labels({"model": model})
        self._bundle.labels(model, version, variant).set(1)
        self._queue.labels(model).set_function(depth)

    def reload(self, model: str, outcome: str) -> None:
        """Counts a swap that was done or refused."""
        self._reloads.labels(model, outcome).inc()

    def metrics(self) -> bytes:
        """All figures in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def flush(self) -> None:
        """Writes the lines that were gathered."""
        lines, self._lines = self._lines, []
        with suppress(OSError):  # who reads the log may be gone, who asks is not
            self._stream.write(b"".join(lines))
            self._stream.flush()

    def _write(self, event: str, details: dict[str, Any]) -> None:
        line = {"time": datetime.now(timezone.utc), "event": event, **details}
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        if len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
            except RuntimeError:  # before the loop runs, and after
                self.flush()


def _stderr() -> BinaryIO:
    return sys.stderr.buffer if sys.stderr else Path(os.devnull).open("wb")
