"""The Starlette application: routes, error responses, and the middleware around every request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.serving.model_registry import Model, ModelRegistry
from export.serving.openapi import DOCS_HEADERS, docs_page, openapi_document
from export.serving.predict_api import parse_predict
from export.serving.request import BodyReader, RequestError, check_name, check_size, unavailable
from export.serving.settings import VERSION, Settings
from export.serving.systemone_api import parse_systemone, scoring_head, systemone_response
from export.serving.telemetry import Log, RequestRecord
from export.serving.v2_api import model_metadata, parse_infer

_VARY = {"vary": "accept"}
_UNKNOWN_HOST = RequestError(400, "host: must be one of --allowed-hosts (add it there)", "host")


class _ModelName(StringConvertor):
    """A model name in a path. It may contain slashes, but no trailing `/infer` or `/ready`."""

    regex = ".+(?<!/infer)(?<!/ready)"


register_url_convertor("model_name", _ModelName())


class _JSON(JSONResponse):
    """JSON written by orjson."""

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def create_app(registry: ModelRegistry, settings: Settings, log: Log) -> Starlette:
    """The application that serves the models of a registry."""
    endpoints = _Endpoints(registry, settings)
    document = openapi_document(registry.names, settings)
    page = HTMLResponse(docs_page(document), headers=DOCS_HEADERS)
    routes = [
        Route("/predict", endpoints.predict, methods=["POST"]),
        Route("/v1/systemone", endpoints.systemone, methods=["POST"]),
        Route("/v2/models/{model:model_name}/infer", endpoints.infer, methods=["POST"]),
        Route("/v2/models/{model:model_name}/ready", endpoints.ready),
        Route("/v2/models/{model:model_name}", endpoints.metadata),
        Route("/v2/models", _constant(_JSON({"models": registry.names}))),
        Route("/v2/health/ready", endpoints.ready),
        Route("/health", endpoints.ready),
        Route("/v2/health/live", _constant(_JSON({"live": True}))),
        Route("/v2", _constant(_JSON({"name": "tinyheads", "version": VERSION, "extensions": []}))),
        Route("/metrics", _metrics),
        Route("/openapi.json", _constant(_JSON(document))),
        Route("/docs", _constant(page)),
        Route("/", _index(page, registry.names)),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_RequestMiddleware, registry=registry, settings=settings, log=log)],
        exception_handlers={HTTPException: _error_response},
        lifespan=registry.lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """The functions behind the routes."""

    def __init__(self, registry: ModelRegistry, settings: Settings) -> None:
        self._registry, self._settings = registry, settings
        self._bodies = BodyReader(settings.max_body)

    async def predict(self, request: Request) -> Response:
        body = parse_predict(await self._json(request), self._settings)
        model = self._registry.model(body.model)
        for head in body.heads or []:
            check_name("heads", "head", head, model.heads)
        given = None
        if body.labels is not None:
            given = model.labels(body.labels, body.heads[0] if body.heads and len(body.heads) == 1 else None)
            check_size(len(body.texts), len(given.labels))
        elif body.own_answers:
            check_size(len(body.texts), model.scores(body.heads, body.top_k))
        heads = model.answering(body, given)
        _record(request, model, body.texts)
        results = await model.classify(body.texts, given and [given] * len(body.texts))
        predictions = model.predictions(results, body, heads)
        return _JSON(predictions[0] if body.single else predictions)

    async def systemone(self, request: Request) -> Response:
        body = parse_systemone(await self._json(request), self._settings)
        model = self._registry.model(body.model)
        head = scoring_head(model.manifest)
        where = [f"{question.where}: " for question in body.questions]
        given = [
            model.labels(question.labels, head.name, question.hypothesis, place)
            for question, place in zip(body.questions, where, strict=True)
        ]
        _record(request, model, [body.text])
        results = await model.classify([body.text] * len(given), given, where)
        logits = [result.logits / head.temperature for result in results]
        tokens = sum(result.tokens for result in results)
        return _JSON(systemone_response(model.name, body.questions, logits, tokens))

    async def infer(self, request: Request) -> Response:
        data = await self._json(request)
        model = self._model(request)
        body = parse_infer(data, self._settings)
        for output in body.outputs or []:
            check_name("outputs", "output", output, model.outputs)
        check_size(len(body.texts), model.values(body.outputs))
        _record(request, model, body.texts)
        tensors = model.tensors(await model.classify(body.texts), body.outputs)
        response_id = {} if body.id is None else {"id": body.id}
        return _JSON(
            {"model_name": model.name, "model_version": model.version, **response_id, "outputs": tensors}
        )

    async def metadata(self, request: Request) -> Response:
        model = self._model(request)
        return _JSON(model_metadata(model.name, model.version, [*model.outputs.values()]))

    async def ready(self, request: Request) -> Response:
        model = self._model(request) if request.path_params else None
        ready = self._registry.ready(model)
        name = {} if model is None else {"name": model.name}
        return _JSON({**name, "ready": ready}, 200 if ready else 503)

    async def _json(self, request: Request) -> dict[str, Any]:
        data = await self._bodies.read_json_object(request)
        if self._registry.draining:
            raise unavailable("server: is stopping (retry later)", "stopping")
        return data

    def _model(self, request: Request) -> Model:
        model = self._registry.model(request.path_params["model"])
        _record(request, model)
        return model


async def _metrics(request: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _constant(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return response

    return endpoint


def _index(page: Response, names: Sequence[str]) -> Callable[[Request], Awaitable[Response]]:
    """The page for a browser; what the server is and where to go next for other clients."""
    index = _JSON({"name": "tinyheads", "version": VERSION, "models": names, "docs": "/docs"}, 200, _VARY)

    async def endpoint(request: Request) -> Response:
        return page if "text/html" in request.headers.get("accept", "") else index

    return endpoint


def _record(request: Request, model: Model, texts: Sequence[str] = ()) -> None:
    """Note the model and the texts of a request for the log."""
    request.scope["record"].model, request.scope["record"].texts = model.name, texts


async def _error_response(request: Request, error: Exception) -> Response:
    """`{"error": detail}` for a `RequestError`, and for the 404 and 405 that Starlette raises."""
    assert isinstance(error, HTTPException)
    detail, reason = error.detail, getattr(error, "reason", "")
    if not reason and error.status_code == 404:
        detail, reason = "path: unknown (GET /docs lists all paths)", "path"
    elif not reason:
        allowed = " or ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        detail, reason = f"method: {request.method} is not allowed here, expected {allowed}", "method"
    request.scope["record"].reason = reason
    return _JSON({"error": detail}, error.status_code, error.headers)


class _RequestMiddleware:
    """Enforces the timeout, responds to internal errors with 500, and logs every request."""

    def __init__(self, app: ASGIApp, registry: ModelRegistry, settings: Settings, log: Log) -> None:
        self._app, self._registry, self._settings, self._log = app, registry, settings, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope["record"] = RequestRecord()
        headers, status = Headers(scope=scope), 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                timeout.cancel()
                status = message["status"]
                if self._registry.draining or ("expect" in headers and not record.body_complete):
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        timeout = asyncio.get_running_loop().call_later(self._settings.timeout_s, task.cancel)
        try:
            if self._allows_host(headers.get("host", "")):
                await self._app(scope, receive, send_and_note_status)
            else:
                response = await _error_response(Request(scope), _UNKNOWN_HOST)
                await response(scope, receive, send_and_note_status)
        except ClientDisconnect:
            status = 499  # as nginx logs it
        except (Exception, asyncio.CancelledError) as error:
            if status:  # the response has started
                raise
            response = await _error_response(Request(scope), self._request_error(scope, error))
            await response(scope, receive, send_and_note_status)
        finally:
            timeout.cancel()
        self._log.request(_route(scope), scope["method"], status, record)

    def _allows_host(self, host: str) -> bool:
        """Whether a `Host` header, with or without a port, is allowed."""
        name = re.sub(r":\d*$", "", host).lower()
        allowed = self._settings.allowed_hosts
        return not allowed or any(
            name == pattern or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in map(str.lower, allowed)
        )

    def _request_error(self, scope: Scope, error: BaseException) -> RequestError:
        seconds = self._settings.timeout_s
        if not isinstance(error, asyncio.CancelledError):
            self._log.failure(_route(scope), error)
            return RequestError(500, "server: internal error (see the server log)", "internal")
        if scope["record"].body_complete:
            detail = f"server: no response within {seconds:g} s (send fewer texts per request)"
            return RequestError(504, detail, "timeout")
        detail = f"body: incomplete after {seconds:g} s (send it faster)"
        return RequestError(408, detail, "timeout", {"connection": "close"})


def _route(scope: Scope) -> str:
    """The path of the matching route, with the placeholder for the model name, or "other"."""
    return scope["route"].path_format if "route" in scope else "other"
