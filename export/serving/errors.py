"""Errors of the server: why it cannot start, and why it rejects a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from starlette.exceptions import HTTPException


class ServingError(Exception):
    """The server cannot start.

    Attributes:
        exit_code: exit status of the command line.
    """

    exit_code: ClassVar[int] = 2


class RequestError(HTTPException):
    """A rejected request. The response body is `{"error": detail}`.

    Args:
        status_code: HTTP status of the response.
        detail: `where: what is wrong, what was expected (what to do)`.
        reason: one word for metrics and the log. It never contains request data.
        headers: additional response headers.
    """

    def __init__(
        self, status_code: int, detail: str, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.reason = reason


def unprocessable(detail: str, reason: str = "request") -> RequestError:
    """Status 422: the body is JSON with an invalid value."""
    return RequestError(422, detail, reason)


def unavailable(detail: str, reason: str) -> RequestError:
    """Status 503 with `Retry-After`: the server is overloaded or stopping."""
    return RequestError(503, detail, reason, {"retry-after": "1"})
