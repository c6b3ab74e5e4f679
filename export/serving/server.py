"""`distill serve`: bind, load, answer, and stop without dropping what was accepted."""

from __future__ import annotations

import asyncio
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

from export.serving.app import Application
from export.serving.model_registry import Host
from export.serving.settings import ServingError, Settings
from export.serving.telemetry import Observer

_BACKLOG = 2048
_QUIET_S = 0.2  # without a request, at the end


def serve(settings: Settings) -> dict[str, Any]:
    """Serves until SIGTERM or SIGINT; returns what was done.

    Raises:
        ServingError: an address that cannot be had, bundles that cannot be served together.
        BundleError: a bundle that cannot be loaded.
    """
    if settings.threads == 1:  # tokenizers would take every core for itself
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # a line more for each figure, and nothing said
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    listener = _bind(settings.host, settings.port)
    observer = Observer(texts=settings.log_texts)
    host = Host(settings, observer)
    server = Server(Application(host, settings, observer), host, settings, observer)
    sys.setswitchinterval(0.0005)  # the loop and the classifier's thread take turns
    server.run(sockets=[listener])
    observer.flush()
    return {"served": host.names, "requests": server.server_state.total_requests}


class Server(uvicorn.Server):
    """Uvicorn with the models' life around its own, and a stop that refuses before it closes.

    The first signal makes the server unready; for `drain_s` it still answers, new texts with 503. Then it
    stops listening and ends when every connection has its answer. A second signal ends it at once.
    """

    def __init__(self, application: Application, host: Host, settings: Settings, observer: Observer) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(settings.timeout_s) + 5,
            )
        )
        self._application, self._host = application, host
        self._settings, self._observer = settings, observer
        self._stops_at: float | None = None
        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [_Lines(observer)], False
        logger.setLevel(logging.WARNING)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the queues, then listens."""
        await self._host.start()
        for listener in sockets or []:
            try:  # a port that another bound at the same time is that one's who listens first
                listener.listen(_BACKLOG)
            except OSError as error:
                raise _taken(self._settings.host, self._settings.port, error) from None
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._observer.event("listening", url=f"http://{shown}:{port}", pid=os.getpid())
        self._observer.flush()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop, asked ten times a second."""
        stop = await super().on_tick(counter)
        if self._stops_at is None:
            return stop
        self._host.hurry()
        return stop or monotonic() >= self._stops_at

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, waits for every answer, then closes the queues.

        A connection that is closed with a request on its way to it loses that request. So those who are
        connecting are still let in while no one else is, and no connection is closed unanswered before
        requests have ceased to come.
        """
        until = monotonic() + self._settings.timeout_s
        for listener in sockets or []:
            listener.listen(0)
            while select.select([listener], [], [], 0)[0] and self._goes_on(until):
                await asyncio.sleep(0.01)
        for server in self.servers:
            server.close()
        seen = -1
        while seen < self.server_state.total_requests and self._goes_on(until):
            seen = self.server_state.total_requests
            await asyncio.sleep(_QUIET_S if self.server_state.connections else 0)
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._host.close()
        self._observer.event("stopped", requests=self.server_state.total_requests)

    def _goes_on(self, until: float) -> bool:
        return not self.force_exit and monotonic() < until

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first begins to stop, the second stops."""
        if self._stops_at is None:
            self._application.draining = True
            self._stops_at = monotonic() + self._settings.drain_s
        else:
            self.should_exit = self.force_exit = True


class _Lines(logging.Handler):
    """What uvicorn logs, as lines of our log, without the values in a traceback."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._observer.failure("uvicorn", record.exc_info[1])
        else:
            self._observer.event("uvicorn", level=record.levelname.lower(), message=record.getMessage())


def _bind(host: str, port: int) -> socket.socket:
    """A socket at the address, not yet listening. Raises: ServingError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        raise _taken(host, port, error) from None
    return listener


def _taken(host: str, port: int, error: Exception) -> ServingError:
    reason = getattr(error, "strerror", None) or error
    return ServingError(f"{host}:{port}: cannot be listened at: {reason} (choose --host, --port)")
