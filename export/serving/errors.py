"""A request that is not answered with a result: its status, the line that says why, and in a word."""

from __future__ import annotations


class Refusal(Exception):
    """Raised anywhere below the application; ends a request.

    Attributes:
        status: of HTTP.
        line: what the client is told: where, what is wrong, what was expected.
        reason: a word for metrics and logs, never taken from the request.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, line: str, reason: str, **headers: str) -> None:
        super().__init__(line)
        self.status, self.line, self.reason = status, line, reason
        self.headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


def busy(line: str, reason: str, *, close: bool = False) -> Refusal:
    """A 503 that asks to come again in a second; `close` ends the connection too."""
    return Refusal(503, line, reason, retry_after="1", **({"connection": "close"} if close else {}))


def wrong(line: str, reason: str = "request") -> Refusal:
    """A 422: JSON, but not what was expected."""
    return Refusal(422, line, reason)
