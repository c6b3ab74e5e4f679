"""Request bodies: reading within limits, the checks that all paths share, and why a request is rejected."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import aclosing
from difflib import get_close_matches
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request

from export.serving.settings import Settings

_MAX_INCOMPLETE = 64  # bodies of the largest size
_MAX_SHOWN = 40  # characters of a value in a message
_MAX_VALUES = 500_000  # of a response; about 30 MB and half a second


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


def as_json(value: object) -> str:
    """A value of a request as the client wrote it, in JSON, without the end of a long one."""
    text = to_json(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def to_json(value: object) -> str:
    """A value of a request in JSON, without spaces, its keys in their order.

    Raises:
        RequestError: 422 for a value that is nested too deeply.
    """
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # orjson reads deeper JSON than it writes
        raise unprocessable("body: is nested too deeply, expected at most 250 levels") from None


class BodyReader:
    """Reads the bodies of requests. The bodies that are incomplete at one time share a limit of 64 bodies.

    Args:
        max_body: maximum size of a body in bytes.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body, self._incomplete = max_body, 0

    async def read_json_object(self, request: Request) -> dict[str, Any]:
        """The JSON object in the body of a request.

        Raises:
            RequestError: 400 for invalid JSON, 413 for more than `max_body` bytes, 415 for a compressed body
                or binary tensors, 422 for JSON that is not an object, 503 for too many incomplete bodies.
            ClientDisconnect: the client disconnected before the body was complete.
        """
        headers = request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "content-encoding: must be identity", "encoding")
        if "inference-header-content-length" in headers:
            raise RequestError(415, "body: binary tensors are not supported (send JSON)", "encoding")
        if int(headers.get("content-length", 0)) > self._max_body:
            raise self._too_large()
        body = await self._read(request)
        request.scope["record"].body_complete = True
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            detail = f"body: must be JSON in UTF-8: {error.msg} (position {error.pos})"
            raise RequestError(400, detail, "json") from None
        if not isinstance(data, dict):
            raise unprocessable(f"body: must be a JSON object, got {as_json(data)}")
        return data

    async def _read(self, request: Request) -> bytearray:
        body = bytearray()
        try:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    self._incomplete += len(chunk)
                    if len(body) > self._max_body:
                        raise self._too_large()
                    if self._incomplete > _MAX_INCOMPLETE * self._max_body:
                        raise unavailable("body: too many bodies are incomplete (retry later)", "bodies")
        finally:
            self._incomplete -= len(body)
        return body

    def _too_large(self) -> RequestError:
        detail = f"body: at most {self._max_body} bytes are allowed (split the request)"
        return RequestError(413, detail, "body")


def check_texts(texts: object, settings: Settings, where: str) -> list[str]:
    """The argument, if it is a list of strings within the limits.

    Raises:
        RequestError: 422 for another type, too many texts, or a text that is too long.
    """
    if not isinstance(texts, list):
        raise unprocessable(f"{where}: must be a list of strings, got {as_json(texts)}")
    if len(texts) > settings.queue:
        limit = f"at most {settings.queue} texts are allowed per request"
        raise unprocessable(f"{where}: {limit}, got {len(texts)} (split the request)")
    for position, text in enumerate(texts):
        place = where if where == "text" else f"{where}: position {position}"
        if not isinstance(text, str):
            raise unprocessable(f"{place}: must be a string, got {as_json(text)}")
        check_length(place, len(text), settings)
    return texts


def check_length(where: str, characters: int, settings: Settings) -> None:
    """Reject a text, or labels, of too many characters.

    Raises:
        RequestError: 422.
    """
    if characters > settings.max_text:
        problem = f"has {characters} characters, at most {settings.max_text} are allowed"
        raise unprocessable(f"{where}: {problem} (shorten the text)", "text")


def check_labels(where: str, labels: object, most: int, settings: Settings) -> dict[str, Any] | list[str]:
    """The argument, if it is an object of descriptions or a list of strings within the limits.

    Raises:
        RequestError: 422.
    """
    if isinstance(labels, dict):
        texts = [*labels, *(text for text in labels.values() if text is not None)]
    elif isinstance(labels, list):
        texts = labels
    else:
        expected = "must be a list of strings, or an object of descriptions"
        raise unprocessable(f"{where}: {expected}, got {as_json(labels)}", "labels")
    for text in texts:
        if not isinstance(text, str):
            raise unprocessable(f"{where}: each must be a string, got {as_json(text)}", "labels")
    if len(labels) > most:
        raise unprocessable(f"{where}: at most {most} are allowed, got {len(labels)}", "labels")
    check_length(where, sum(map(len, texts)), settings)
    return labels


def check_size(texts: int, values: int) -> None:
    """Reject a request whose response would be too large.

    Args:
        texts: number of texts.
        values: number of labels or scores for each text.

    Raises:
        RequestError: 422.
    """
    if texts * values > _MAX_VALUES:
        limit = f"at most {_MAX_VALUES // values} texts are allowed for {values} scores each"
        raise unprocessable(f"texts: {limit}, got {texts} (split the request)", "size")


def check_name(where: str, kind: str, name: str, known: Collection[str], status: int = 422) -> None:
    """Reject a name that is not known, with the nearest known name as a hint.

    Raises:
        RequestError: the name is unknown.
    """
    if name in known:
        return
    nearest = get_close_matches(name[:100], known, 1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    detail = f"{where}: unknown {kind} {name[:100]!r}, expected one of {[*known]}{hint}"
    raise RequestError(status, detail, kind)
