"""The routes, as a bare ASGI application: a request is read, answered or refused, counted and logged.

No framework stands on this path: parsing, batching and the classifier take a fraction of a millisecond.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

import orjson

from export.serving.batcher import BadText, QueueFull
from export.serving.errors import Refusal, busy, wrong
from export.serving.model_registry import Host
from export.serving.openapi import PAGE_HEADERS, document, page
from export.serving.predict_api import read_predict
from export.serving.request import Call, Disconnected, read_body
from export.serving.settings import VERSION, Settings
from export.serving.telemetry import Observer
from export.serving.v2_api import metadata, read_infer

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]
Answer = tuple[int, bytes]
Handler = Callable[[Call], Awaitable[Answer]]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_JSON: Header = (b"content-type", b"application/json")
_TYPES: dict[str, list[Header]] = {
    "/metrics": [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")],
    "/docs": PAGE_HEADERS,
}


class Application:
    """Answers the requests of one server.

    Attributes:
        draining: set when the server stops: not ready, and new texts are refused with 503.
    """

    def __init__(self, host: Host, settings: Settings, observer: Observer) -> None:
        self._host, self._settings, self._observer = host, settings, observer
        self.draining = False
        told = document(host.names, settings, VERSION)
        fixed = {
            "/v2": orjson.dumps({"name": "tinyheads", "version": VERSION, "extensions": []}),
            "/v2/health/live": b'{"live":true}',
            "/openapi.json": orjson.dumps(told),
            "/docs": page(told).encode(),
        }
        self._routes: dict[str, tuple[str, Handler]] = {
            "/predict": ("POST", self._predict),
            "/v2/models/{model}/infer": ("POST", self._infer),
            "/v2/models/{model}": ("GET", self._metadata),
            "/v2/models/{model}/ready": ("GET", self._model_ready),
            "/v2/health/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            **{route: ("GET", _always(body)) for route, body in fixed.items()},
        }

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """One HTTP request, ended by the timeout if by nothing else."""
        start = perf_counter()
        call = Call(scope, receive)
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(self._settings.timeout_s, task.cancel)
        try:
            code, body = await self._handler(call)(call)
            headers = [*_TYPES.get(call.route, (_JSON,)), (b"content-length", b"%d" % len(body))]
        except Disconnected:
            self._tell(call, 499, start)  # as nginx counts those who went away
            return
        except (Exception, asyncio.CancelledError) as error:
            code, body, headers = self._refused(call, error)
        finally:
            timer.cancel()
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._tell(call, code, start)

    def _handler(self, call: Call) -> Handler:
        if call.route not in self._routes:
            call.route = "other"  # a path may say anything, so it is neither counted nor logged
            raise Refusal(404, "path: unknown (GET /docs tells them all)", "path")
        method, handler = self._routes[call.route]
        if call.method != method and (call.method, method) != ("HEAD", "GET"):
            call.method = call.method if call.method in _METHODS else "other"
            allowed = "GET, HEAD" if method == "GET" else method
            raise Refusal(405, f"method: must be one of {allowed}", "method", allow=allowed)
        return handler

    async def _predict(self, call: Call) -> Answer:
        asked = read_predict(await self._body(call), self._settings)
        model = self._host.only() if asked.model is None else self._host.model(asked.model)
        call.model, call.texts = model.name, asked.texts
        answers = await model.batcher.ask(asked.texts, model.plain(asked))
        return 200, orjson.dumps(answers[0] if asked.single else answers)

    async def _infer(self, call: Call) -> Answer:
        body = await self._body(call)
        model = self._host.model(call.name)
        call.model = model.name
        asked = read_infer(body, self._settings)
        call.texts = asked.texts
        form = model.tensors(asked.outputs)
        answers = await model.batcher.ask(asked.texts, form)
        told = {"model_name": model.name, "model_version": model.version}
        if asked.id is not None:
            told["id"] = asked.id
        return 200, orjson.dumps({**told, "outputs": form.document(answers)})

    async def _body(self, call: Call) -> bytes:
        if self.draining:
            raise busy("the server is stopping (try again)", "stopping")
        body = await read_body(call, self._settings.max_body)
        if self.draining:
            raise busy("the server is stopping (try again)", "stopping")
        return body

    async def _metadata(self, call: Call) -> Answer:
        model = self._host.model(call.name)
        call.model = model.name
        return 200, orjson.dumps(metadata(model.name, model.version, [*model.heads.values()]))

    async def _model_ready(self, call: Call) -> Answer:
        call.model = self._host.model(call.name).name
        return self._readiness({"name": call.model, "ready": not self.draining})

    async def _ready(self, call: Call) -> Answer:
        return self._readiness({"ready": not self.draining})

    def _readiness(self, told: dict[str, Any]) -> Answer:
        return (503 if self.draining else 200), orjson.dumps(told)

    async def _metrics(self, call: Call) -> Answer:
        return 200, self._observer.metrics()

    def _refused(self, call: Call, error: BaseException) -> tuple[int, bytes, list[Header]]:
        if isinstance(error, asyncio.CancelledError):
            error = _late(call, self._settings.timeout_s)
        elif isinstance(error, QueueFull):
            error = busy("too many texts are waiting (try again)", "queue")
        elif isinstance(error, BadText):
            error = wrong(str(error), "text")
        elif not isinstance(error, Refusal):
            self._observer.failure(call.route, error)
            error = Refusal(500, "a fault of the server (its log tells more)", "fault")
        call.reason = error.reason
        body = orjson.dumps({"error": error.line})
        return error.status, body, [_JSON, (b"content-length", b"%d" % len(body)), *error.headers]

    def _tell(self, call: Call, code: int, start: float) -> None:
        self._observer.request(
            call.route,
            call.method,
            code,
            perf_counter() - start,
            model=call.model,
            reason=call.reason,
            texts=call.texts,
        )


def _late(call: Call, seconds: float) -> Refusal:
    if not call.whole:
        return Refusal(408, f"body: not whole within {seconds:g} s", "timeout", connection="close")
    return Refusal(504, f"not answered within {seconds:g} s (ask less at once)", "timeout")


def _always(body: bytes) -> Handler:
    async def answer(call: Call) -> Answer:
        return 200, body

    return answer
