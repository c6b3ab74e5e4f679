"""`distill serve`: bind, load, serve, and stop without losing an accepted request."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import select
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from threading import Timer
from time import monotonic
from types import FrameType
from typing import Any, cast

import prometheus_client
import uvicorn

from export.serving.app import create_app
from export.serving.connection import Connection
from export.serving.model_registry import ModelRegistry
from export.serving.settings import ServingError, Settings
from export.serving.telemetry import Log

_BACKLOG = 2048
_QUIET_S = 0.2  # seconds without a new request after which open connections are closed
_CLOSE_S = 5.0  # seconds to close connections and models after the last response
_CHECK_S = 0.25  # seconds between checks for slow clients
_SPARE_FILES = 128  # open files besides the connections


def serve(settings: Settings) -> dict[str, Any]:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Returns:
        `served`, the names of the models, and `requests`, the number of responses.

    Raises:
        ServingError: the address is not available, or the bundles cannot be served together.
        BundleError: a bundle is missing or invalid.
    """
    if settings.threads == 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers uses all cores otherwise
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    files = _raise_open_files(settings.max_connections + _SPARE_FILES)
    settings = replace(settings, max_connections=max(1, min(settings.max_connections, files - _SPARE_FILES)))
    listener = _bind(settings.host, settings.port)
    log = Log(texts=settings.log_texts)
    registry = ModelRegistry(settings, log)
    server = Server(registry, settings, log)
    hangup = getattr(signal, "SIGHUP", None)
    if hangup and signal.getsignal(hangup) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(hangup, server.handle_exit)
    sys.setswitchinterval(0.0005)  # shorter turns between the event loop and the classifier threads
    try:
        server.run(sockets=[listener])
    finally:
        server.grace.cancel()
    log.flush(wait_s=1)
    return {"served": registry.names, "requests": server.server_state.total_requests}


class Server(uvicorn.Server):
    """A uvicorn server that rejects new texts before it stops listening.

    After the first signal the server is not ready and responds to new texts with status 503 for `drain_s`
    seconds. Then it stops listening and exits when every connection has its response. A second SIGTERM or
    SIGINT ends the process immediately, and so does the end of the grace period, whatever hangs.

    Attributes:
        grace: the timer of the grace period, which starts with the first signal.
    """

    def __init__(self, registry: ModelRegistry, settings: Settings, log: Log) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(registry, settings, log),
                http=cast(Any, partial(Connection, settings, log)),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=75,
                headers=[("x-content-type-options", "nosniff")],
            )
        )
        self._registry, self._settings, self._log = registry, settings, log
        self._stop_at: float | None = None
        seconds = settings.drain_s + settings.timeout_s + _CLOSE_S
        self.grace = Timer(seconds, self._end, [1, f"not stopped after {seconds:g} s"])
        self.grace.daemon = True
        for name in ("uvicorn.error", "asyncio"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [_LogHandler(log)], False
            logger.setLevel(logging.WARNING)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then start the models and accept connections.

        Raises:
            ServingError: another process listens on the port.
        """
        for listener in sockets or []:
            try:  # two processes may bind the same port, but only one may listen on it
                listener.listen(_BACKLOG)
            except OSError as error:
                raise _bind_error(self._settings.host, self._settings.port, error) from None
        await super().startup(sockets)
        self._check_connections()
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            details = {"pid": os.getpid(), "max_connections": self._settings.max_connections}
            self._log.event("listening", url=f"http://{shown}:{port}", **details)
        self._log.flush()
        gc.freeze()  # garbage collection need not scan the loaded modules and models

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop. Uvicorn calls this ten times per second."""
        stop = await super().on_tick(counter)
        if self._stop_at is None:
            return stop
        self._registry.flush()
        return stop or monotonic() >= self._stop_at

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for all responses, then stop the models.

        Closing a connection loses a request that the client has already sent. So the server first accepts
        the connections that are waiting, and closes connections only when no new requests arrive.
        """
        deadline = monotonic() + self._settings.timeout_s
        for listener in sockets or []:
            listener.listen(0)
            while select.select([listener], [], [], 0)[0] and self._may_wait(deadline):
                await asyncio.sleep(0.01)
        for server in self.servers:
            server.close()
        seen = -1
        while seen < self.server_state.total_requests and self._may_wait(deadline):
            seen = self.server_state.total_requests
            await asyncio.sleep(_QUIET_S if self.server_state.connections else 0)
        await super().shutdown(sockets)
        self._log.event("stopped", requests=self.server_state.total_requests)

    def _check_connections(self) -> None:
        now = monotonic()
        for connection in [*self.server_state.connections]:
            cast(Connection, connection).check(now)
        asyncio.get_running_loop().call_later(_CHECK_S, self._check_connections)

    def _may_wait(self, deadline: float) -> bool:
        return not self.force_exit and monotonic() < deadline

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining on the first signal, end the process on the second."""
        if self._stop_at is None:
            self._registry.draining = True
            self._stop_at = monotonic() + self._settings.drain_s
            self.grace.start()
        elif sig in (signal.SIGTERM, signal.SIGINT):  # a terminal that closes sends SIGHUP twice
            self._end(128 + sig, "second signal")

    def _end(self, status: int, reason: str) -> None:
        """End the process, also if a thread hangs in native code."""
        self._log.event("stopped", requests=self.server_state.total_requests, reason=reason)
        self._log.flush()
        os._exit(status)


class _LogHandler(logging.Handler):
    """Writes warnings and errors of uvicorn and asyncio to the log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._log.failure(record.name, record.exc_info[1])
        else:
            self._log.event("uvicorn", level=record.levelname.lower(), message=record.getMessage())


def _raise_open_files(count: int) -> int:
    """Raise the limit of open files to at least `count`, as far as the system allows; return it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return count
    soft = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address. It does not listen yet, so clients cannot connect before the start."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        raise _bind_error(host, port, error) from None
    return listener


def _bind_error(host: str, port: int, error: Exception) -> ServingError:
    reason = getattr(error, "strerror", None) or error
    return ServingError(f"{host}:{port}: cannot bind: {reason} (choose another --host or --port)")
