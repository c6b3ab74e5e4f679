"""`distill serve`: bind, load, serve, and stop without losing an accepted request."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import select
import socket
import sys
from time import monotonic
from types import FrameType
from typing import Any

import prometheus_client
import uvicorn

from export.serving.app import create_app
from export.serving.errors import ServingError
from export.serving.model_registry import ModelRegistry
from export.serving.settings import Settings
from export.serving.telemetry import Log

_BACKLOG = 2048
_QUIET_S = 0.2  # seconds without a new request after which open connections are closed


def serve(settings: Settings) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT.

    Returns:
        `served`, the names of the models, and `requests`, the number of responses.

    Raises:
        ServingError: the address is not available, or the bundles cannot be served together.
        BundleError: a bundle is missing or invalid.
    """
    if settings.threads == 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers uses all cores otherwise
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    listener = _bind(settings.host, settings.port)
    log = Log(texts=settings.log_texts)
    registry = ModelRegistry(settings, log)
    server = Server(registry, settings, log)
    sys.setswitchinterval(0.0005)  # shorter turns between the event loop and the classifier threads
    server.run(sockets=[listener])
    log.flush()
    return {"served": registry.names, "requests": server.server_state.total_requests}


class Server(uvicorn.Server):
    """A uvicorn server that rejects new texts before it stops listening.

    After the first signal the server is not ready and responds to new texts with status 503 for `drain_s`
    seconds. Then it stops listening and exits when every connection has its response. A second signal stops
    it immediately.
    """

    def __init__(self, registry: ModelRegistry, settings: Settings, log: Log) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(registry, settings, log),
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(settings.timeout_s) + 5,
            )
        )
        self._registry, self._settings, self._log = registry, settings, log
        self._stop_at: float | None = None
        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [_UvicornHandler(log)], False
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
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._log.event("listening", url=f"http://{shown}:{port}", pid=os.getpid())
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

    def _may_wait(self, deadline: float) -> bool:
        return not self.force_exit and monotonic() < deadline

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining on the first signal, stop immediately on the second."""
        if self._stop_at is None:
            self._registry.draining = True
            self._stop_at = monotonic() + self._settings.drain_s
        else:
            self.should_exit = self.force_exit = True


class _UvicornHandler(logging.Handler):
    """Writes uvicorn's warnings and errors to the log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._log.failure("uvicorn", record.exc_info[1])
        else:
            self._log.event("uvicorn", level=record.levelname.lower(), message=record.getMessage())


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
