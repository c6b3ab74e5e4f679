"""Prometheus metrics and the JSON log of a server.

Metrics never contain texts, and the log contains them only with `--log-texts`. Log lines are buffered for a
moment and written together, because one write per request would take as long as the request itself. A log
that nobody reads does not block the server: lines that do not fit into the buffer are dropped and counted.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, BinaryIO

import orjson
from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FLUSH_S = 0.05
_MAX_BUFFERED = 1_048_576  # bytes of the log that wait to be written
_PIPE_BUF = 4_096  # bytes that a writable pipe takes without blocking

REQUESTS = Counter("tinyheads_requests", "Responses sent.", ["route", "code"])
REQUEST_SECONDS = Histogram(
    "tinyheads_request_seconds", "Seconds from request to response.", ["route"], buckets=_SECONDS
)
REFUSALS = Counter("tinyheads_refusals", "Requests rejected.", ["reason"])
TEXTS = Counter("tinyheads_texts", "Texts classified.", ["model"])
BATCH_TEXTS = Histogram("tinyheads_batch_texts", "Texts per classifier call.", ["model"], buckets=_SIZES)
BATCH_SECONDS = Histogram(
    "tinyheads_batch_seconds", "Seconds per classifier call.", ["model"], buckets=_SECONDS
)
QUEUE_TEXTS = Gauge("tinyheads_queue_texts", "Texts in the queue.", ["model"])
BUNDLE_INFO = Gauge("tinyheads_bundle_info", "The bundle being served.", ["model", "version", "variant"])
RELOADS = Counter("tinyheads_reloads", "Reloads of changed bundles.", ["model", "outcome"])


@dataclass(slots=True)
class RequestRecord:
    """What the log and the metrics contain about one request.

    Attributes:
        start: `perf_counter` at the start of the request.
        body_complete: whether the whole body was read.
        model: name of the model, once it is known to exist.
        reason: one word for why the request was rejected.
        texts: the texts of the request, once they are known to be valid.
    """

    start: float = field(default_factory=perf_counter)
    body_complete: bool = False
    model: str | None = None
    reason: str | None = None
    texts: Sequence[str] = ()


class Log:
    """The log: one JSON object per line.

    Args:
        stream: where the lines are written. Default: stderr.
        texts: whether the log contains the texts of each request.
    """

    def __init__(self, stream: BinaryIO | None = None, *, texts: bool = False) -> None:
        self._stream, self._texts = stream or _stderr(), texts
        self._buffer, self._dropped = bytearray(), 0
        self._flushing = False

    def request(self, route: str, method: str, code: int, record: RequestRecord) -> None:
        """Log a finished request and update the request metrics."""
        seconds = perf_counter() - record.start
        responses, latency = _request_metrics(route, code)
        responses.inc()
        latency.observe(seconds)
        if record.reason is not None:
            REFUSALS.labels(record.reason).inc()
        details = {
            "route": route,
            "method": method,
            "code": code,
            "ms": round(1000 * seconds, 3),
            "model": record.model,
            "texts": len(record.texts) or None,
            "reason": record.reason,
            "inputs": record.texts if self._texts and record.texts else None,
        }
        self.event("request", **{name: value for name, value in details.items() if value is not None})

    def refused(self, reason: str, code: int | None = None) -> None:
        """Log and count a connection that was closed, or a request that no route has seen."""
        REFUSALS.labels(reason).inc()
        self.event("refused", reason=reason, **({} if code is None else {"code": code}))

    def failure(self, where: str, error: BaseException) -> None:
        """Log an internal error with its stack, without its message, which may contain texts."""
        error = error.__cause__ or error
        stack = [str(frame) for frame in traceback.extract_tb(error.__traceback__)]
        self.event("failure", route=where, error=type(error).__name__, at=stack)

    def event(self, event: str, /, **details: object) -> None:
        """Add a line to the log."""
        self._add({"event": event, **details})
        if not self._flushing:
            self._flush_later()

    def flush(self, wait_s: float = 0.0) -> None:
        """Write the buffered lines. Wait at most `wait_s` seconds for a reader."""
        end = monotonic() + wait_s
        try:
            while self._buffer:
                if self._is_writable() and (written := self._stream.write(self._buffer[:_PIPE_BUF])):
                    del self._buffer[:written]
                elif monotonic() < end:
                    sleep(0.01)
                else:
                    return
                if self._dropped and not self._buffer:
                    dropped, self._dropped = self._dropped, 0
                    self._add({"event": "dropped", "lines": dropped})
        except OSError:  # a closed log must not stop the server
            self._buffer.clear()

    def _add(self, line: dict[str, Any]) -> None:
        if len(self._buffer) > _MAX_BUFFERED:
            self._dropped += 1
            return
        line = {"time": datetime.now(timezone.utc), **line}
        self._buffer += orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def _flush_later(self) -> None:
        """Flush in a moment, and again while something is left; flush now if there is no event loop."""
        try:
            asyncio.get_running_loop().call_later(_FLUSH_S, self._flush_again)
            self._flushing = True
        except RuntimeError:  # before the start or after the stop
            self.flush()

    def _flush_again(self) -> None:
        self.flush()
        self._flushing = False
        if self._buffer:
            self._flush_later()

    def _is_writable(self) -> bool:
        try:
            return bool(select.select([], [self._stream], [], 0)[1])
        except (OSError, ValueError):  # no file descriptor, or on Windows no socket
            return True


@cache
def _request_metrics(route: str, code: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, str(code)), REQUEST_SECONDS.labels(route)


def _stderr() -> BinaryIO:
    """The standard error stream without a buffer, whose lock a blocked thread could hold."""
    try:
        return open(sys.stderr.fileno(), "wb", buffering=0, closefd=False)
    except (OSError, ValueError, AttributeError):  # there is none
        return Path(os.devnull).open("wb")
