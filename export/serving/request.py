"""Request bodies: reading within limits, and the checks that `/predict` and v2 share."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing
from difflib import get_close_matches
from typing import Any

import orjson
from starlette.requests import Request

from export.serving.errors import RequestError, unavailable, unprocessable
from export.serving.settings import Settings

_MAX_INCOMPLETE = 64  # bodies of the largest size
_MAX_SHOWN = 40  # characters of a value in a message
_MAX_VALUES = 500_000  # of a response; about 30 MB and half a second


def as_json(value: object) -> str:
    """A value of a request as the client wrote it, in JSON, without the end of a long one."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


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
        if len(text) > settings.max_text:
            problem = f"has {len(text)} characters, at most {settings.max_text} are allowed"
            raise unprocessable(f"{place}: {problem} (shorten the text)", "text")
    return texts


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
