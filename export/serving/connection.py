"""One client connection: uvicorn's HTTP/1.1 protocol with limits that a client cannot exceed.

Uvicorn limits neither the size of a request head, nor the number of pipelined requests, nor the time that a
client takes to send a head or to read a response.
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from export.serving.request import RequestError, unavailable
from export.serving.settings import Settings
from export.serving.telemetry import Log

MAX_HEAD = 32_768  # bytes of the start line and the headers of a request, or of its trailers
MAX_HEADERS = 100
MAX_PIPELINED = 64  # requests of one connection that wait for the response to an earlier one
_DISCARD_S = 2.0  # seconds in which input that nobody needs is read and discarded


class Connection(HttpToolsProtocol):
    """A connection that is closed when its client exceeds a limit.

    Args:
        settings: `max_connections` and `timeout_s` apply to connections.
        log: gets a line for each request that is rejected before it reaches the application.
        arguments: arguments of uvicorn's protocol.
    """

    def __init__(self, settings: Settings, log: Log, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._settings, self._log = settings, log
        self._head = 0  # bytes of the current head or trailers
        self._in_head = False
        self._ignoring = False
        self._deadline = monotonic() + settings.timeout_s  # for the input that the connection waits for
        self._unread_since: float | None = None
        self._active: RequestResponseCycle | None = None  # `cycle` is the latest, which may be pipelined

    def check(self, now: float) -> None:
        """Close the connection if its client is too slow. The server calls this regularly."""
        limit = self._settings.timeout_s
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > limit:
            self._log.refused("unread")
            self.transport.abort()
            return
        if now > self._deadline:
            if self._in_head and not self._ignoring:
                detail = f"head: incomplete after {limit:g} s (send it faster)"
                self._refuse(RequestError(408, detail, "timeout"))
            else:  # a client that sent nothing, or too much of what is discarded
                self.transport.close()

    # called by the transport

    def connection_made(self, transport: Any) -> None:
        """Refuse a connection above the limit."""
        super().connection_made(transport)
        limit = self._settings.max_connections
        if len(self.connections) > limit:
            detail = f"server: all {limit} connections are in use (retry later)"
            self._refuse(unavailable(detail, "connections"))
            transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the current request that nobody reads its response."""
        self._disconnect_request()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Parse requests. A request to upgrade the protocol gets a response in HTTP/1.1."""
        if self._deadline == inf and self.timeout_keep_alive_task is not None:  # idle
            self._deadline = monotonic() + self._settings.timeout_s
        self._unset_keepalive_if_required()
        while data and not self._ignoring:
            self._head += len(data)
            try:
                self.parser.feed_data(data)
                data = b""
                if self._head > MAX_HEAD:
                    self._refuse(_head_too_large())
            except httptools.HttpParserUpgrade as upgrade:
                # httptools skips the body of such a request, so the request is parsed again
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._head = 0
                self.parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                cause = error.__context__
                detail = "request: must be HTTP/1.1 (see /docs)"
                self._refuse(cause if isinstance(cause, RequestError) else RequestError(400, detail, "http"))

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn closes at once
        """Whether to keep a half-closed connection: until its complete requests have their responses."""
        return self._closes_after_responses()

    def resume_writing(self) -> None:
        """The client has read most of what was sent."""
        self._unread_since = None
        super().resume_writing()

    # called by the parser; an exception ends the parsing

    def on_message_begin(self) -> None:
        """Start the time limit of a head."""
        super().on_message_begin()
        self._in_head, self._deadline = True, monotonic() + self._settings.timeout_s

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers are ignored."""
        if self._in_head:
            super().on_header(name, value)
            if len(self.headers) > MAX_HEADERS:
                detail = f"head: at most {MAX_HEADERS} headers are allowed (send fewer)"
                raise RequestError(431, detail, "head")

    def on_headers_complete(self) -> None:
        """Pass the request to the application."""
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD:
            raise _head_too_large()
        if len(self.pipeline) >= MAX_PIPELINED:
            detail = f"connection: at most {MAX_PIPELINED} requests may wait for responses"
            raise RequestError(429, detail, "pipeline")
        if self.parser.get_method() == b"CONNECT":
            raise RequestError(405, "method: CONNECT is not supported (this is no proxy)", "method")
        if not self.parser.should_upgrade():
            self._head, self._in_head, self._deadline = 0, False, inf
            super().on_headers_complete()
            if not self.pipeline:
                self._active = self.cycle

    def on_chunk_header(self) -> None:
        """The head of a chunk is complete."""
        self._head = 0

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if not self.parser.should_upgrade():
            self._head, self._deadline = 0, inf
            super().on_message_complete()

    # called by the request

    def on_response_complete(self) -> None:
        """Limit the time for the rest of a body that the response did not need."""
        if self.cycle.response_complete and self.cycle.more_body:
            self._deadline = monotonic() + _DISCARD_S
        if self.pipeline:
            self._active = self.pipeline[-1][0]
        super().on_response_complete()

    def _head_without_upgrade(self) -> bytes:
        """The current head without the request to upgrade."""
        dropped = (b"upgrade", b"connection", b"http2-settings")
        lines = [b"%b: %b" % header for header in self.headers if header[0] not in dropped]
        return b"\r\n".join([b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url), *lines, b"", b""])

    def _disconnect_request(self) -> None:
        if self._active is not None and not self._active.response_complete:
            self._active.disconnected = True
            self._active.message_event.set()

    def _closes_after_responses(self) -> bool:
        """Ignore further input, and close after the responses to earlier requests, if there are any."""
        self._ignoring = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if cycle.more_body and not (cycle.response_started or self.pipeline):
            return False
        cycle.keep_alive = False
        return True

    def _refuse(self, error: RequestError) -> None:
        """Respond with an error, and close when the client does, or after a moment.

        To close at once would discard the response if the client is still sending.
        """
        self._log.refused(error.reason, error.status_code)
        if self._closes_after_responses():
            return
        self._disconnect_request()
        body = orjson.dumps({"error": error.detail})
        fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        headers = [
            (name.encode(), value.encode()) for name, value in {**fields, **(error.headers or {})}.items()
        ]
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers + headers]
        self.transport.write(b"".join([STATUS_LINE[error.status_code], *lines, b"\r\n", body]))
        self.transport.write_eof()
        self._deadline = monotonic() + _DISCARD_S


def _head_too_large() -> RequestError:
    return RequestError(431, f"head: at most {MAX_HEAD} bytes are allowed (send fewer headers)", "head")
