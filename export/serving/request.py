"""A request as it comes in: its route, and its body within bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from export.serving.errors import Refusal

_MODELS = "/v2/models/"
_PATIENCE = 8  # times the largest body: what is read and dropped so that the client sees the answer


class Disconnected(Exception):
    """The client went away before its request was whole."""


class Call:
    """One request while it is answered.

    Attributes:
        route: its path as it is written in the document, such as /v2/models/{model}.
        name: the model's name in the path.
        whole: whether the body was read to its end.
        model: the model that answers; `texts`, what it is asked; `reason`, why it is not answered.
    """

    __slots__ = ("method", "model", "name", "reason", "receive", "route", "scope", "texts", "whole")

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    ) -> None:
        self.scope, self.receive = scope, receive
        self.method: str = scope["method"]
        self.route, self.name = _route(scope["path"])
        self.whole = False
        self.model: str | None = None
        self.reason: str | None = None
        self.texts: list[str] = []


def _route(path: str) -> tuple[str, str]:
    if not path.startswith(_MODELS):
        return path, ""
    name = path[len(_MODELS) :]
    for last in ("/infer", "/ready"):
        if name.endswith(last):
            return f"{_MODELS}{{model}}{last}", name[: -len(last)]
    return f"{_MODELS}{{model}}", name


async def read_body(call: Call, most: int) -> bytes:
    """The body, of at most `most` bytes.

    Raises:
        Refusal: 413, larger; 415, compressed or with binary tensors.
        Disconnected: the client went away.
    """
    told, expects = 0, False
    for name, value in call.scope["headers"]:
        if name == b"content-length":
            told = int(value)
        elif name == b"expect":  # waits for a word before it sends
            expects = True
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(415, "content-encoding: must be identity", "encoding", connection="close")
        elif name == b"inference-header-content-length":
            raise Refusal(
                415, "body: binary tensors are not taken (send JSON)", "encoding", connection="close"
            )
    if told > most * (1 if expects else _PATIENCE):
        raise _too_large(most, connection="close")
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await call.receive()
        if message["type"] != "http.request":
            raise Disconnected
        part, more = message["body"], message.get("more_body", False)
        size += len(part)
        if size <= most:
            parts.append(part)
        else:
            parts.clear()
            if size > most * _PATIENCE:
                raise _too_large(most, connection="close")
    call.whole = True
    if size > most:
        raise _too_large(most)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int, **headers: str) -> Refusal:
    return Refusal(413, f"body: at most {most} bytes are taken (ask less at once)", "body", **headers)
