"""Request bodies: reading within limits, and the checks that `/predict` and v2 share."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing
from difflib import get_close_matches
from reprlib import repr as short
from typing import Any

import orjson
from starlette.requests import Request

from export.serving.errors import RequestError, unprocessable
from export.serving.settings import Settings


async def read_json_object(request: Request, max_body: int) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises:
        RequestError: 400 for invalid JSON, 413 for more than `max_body` bytes, 415 for a compressed body or
            binary tensors, 422 for JSON that is not an object.
        ClientDisconnect: the client disconnected before the body was complete.
    """
    headers = request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "content-encoding: must be identity", "encoding")
    if "inference-header-content-length" in headers:
        raise RequestError(415, "body: binary tensors are not supported (send JSON)", "encoding")
    if int(headers.get("content-length", 0)) > max_body:
        raise _too_large(max_body)
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > max_body:
                raise _too_large(max_body)
    request.scope["record"].body_complete = True
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        detail = f"body: must be JSON in UTF-8: {error.msg} (position {error.pos})"
        raise RequestError(400, detail, "json") from None
    if not isinstance(data, dict):
        raise unprocessable(f"body: must be a JSON object, got {short(data)}")
    return data


def check_texts(texts: object, settings: Settings, where: str) -> list[str]:
    """The argument, if it is a list of strings within the limits.

    Raises:
        RequestError: 422 for another type, too many texts, or a text that is too long.
    """
    if not isinstance(texts, list):
        raise unprocessable(f"{where}: must be a list of strings, got {short(texts)}")
    if len(texts) > settings.queue:
        limit = f"at most {settings.queue} texts are allowed per request"
        raise unprocessable(f"{where}: {limit}, got {len(texts)} (split the request)")
    for position, text in enumerate(texts):
        place = where if where == "text" else f"{where}: position {position}"
        if not isinstance(text, str):
            raise unprocessable(f"{place}: must be a string, got {short(text)}")
        if len(text) > settings.max_text:
            problem = f"has {len(text)} characters, at most {settings.max_text} are allowed"
            raise unprocessable(f"{place}: {problem} (shorten the text)", "text")
    return texts


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


def _too_large(max_body: int) -> RequestError:
    return RequestError(413, f"body: at most {max_body} bytes are allowed (split the request)", "body")
