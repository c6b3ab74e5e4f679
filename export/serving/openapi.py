"""What the server answers, as an OpenAPI document, and a page that shows it without any outside request."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import orjson

from export.serving.settings import Settings
from export.serving.v2_api import INPUT

Json = dict[str, Any]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "pre,textarea{background:#f4f4f4;color:#111;padding:.7rem;overflow:auto;width:100%;box-sizing:border-box}"
    "code{font-size:.9rem}summary{cursor:pointer;margin:.6rem 0}b{display:inline-block;min-width:4rem}"
)
_SCRIPT = """
document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("predict", {method: "POST", body: document.querySelector("textarea").value});
  const told = answer.status + "\\n" + JSON.stringify(await answer.json(), null, 2);
  document.querySelector("output").textContent = told;
});
"""
_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
PAGE_HEADERS = [(b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", _POLICY)]


def document(models: Sequence[str], settings: Settings, version: str) -> Json:
    """The OpenAPI 3.1 document of a server of these models."""
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": [*models]},
    }
    ready = _object({"ready": {"type": "boolean"}}, ["ready"])
    named = _object({"name": {"type": "string"}, "ready": {"type": "boolean"}}, ["name", "ready"])
    about = _object(
        {"name": {"type": "string"}, "version": {"type": "string"}, "extensions": {"type": "array"}}
    )
    paths: Json = {
        "/predict": {"post": _asking("Classify texts", _predict(models, settings), _answers(), [])},
        "/v2/models/{model}/infer": {
            "post": _asking("Classify texts, as tensors", _infer(settings), _inference(), [name])
        },
        "/v2/models/{model}": {"get": _telling("Inputs, outputs and labels", _metadata(), [name], 404)},
        "/v2/models/{model}/ready": {"get": _telling("Whether a model answers", named, [name], 404, 503)},
        "/v2/health/live": {
            "get": _telling("Whether the process runs", _object({"live": {"type": "boolean"}}))
        },
        "/v2/health/ready": {"get": _telling("Whether texts are taken", ready, [], 503)},
        "/v2": {"get": _telling("The server", about)},
        "/metrics": {"get": _page("Figures for Prometheus", "text/plain")},
        "/openapi.json": {"get": _telling("This document", {"type": "object"})},
        "/docs": {"get": _page("This document to read", "text/html")},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "tinyheads", "version": version, "description": f"Serves {', '.join(models)}."},
        "paths": paths,
        "components": {
            "schemas": {"Error": _object({"error": {"type": "string"}}, ["error"])},
        },
    }


def page(told: Json) -> str:
    """The document as HTML, with a form that asks `/predict`."""
    parts = []
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            shown = orjson.dumps(operation, option=orjson.OPT_INDENT_2).decode()
            about = f"<b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}"
            parts.append(f"<details><summary>{about}</summary><pre>{escape(shown)}</pre></details>")
    example = escape('{"text": "where is my parcel?"}')
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>tinyheads</title><style>{_STYLE}</style>"
        f"<h1>tinyheads</h1><p>{escape(told['info']['description'])} "
        '<a href="openapi.json">OpenAPI document</a></p>'
        f"<form><textarea rows=3>{example}</textarea><p><button>POST /predict</button></p></form>"
        f"<pre><output></output></pre>{''.join(parts)}<script>{_SCRIPT}</script></html>"
    )


def _object(properties: Json, required: Sequence[str] = ()) -> Json:
    return {"type": "object", "properties": properties, "required": [*required]}


def _predict(models: Sequence[str], settings: Settings) -> Json:
    text = {"type": "string", "maxLength": settings.max_text}
    options = {
        "heads": {"type": ["array", "null"], "items": {"type": "string"}, "minItems": 1},
        "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**64 - 1},
        "scores": {"type": "boolean", "default": False},
        "model": {"type": ["string", "null"], "enum": [*models, *([None] if len(models) == 1 else [])]},
    }
    needs = ["model"] if len(models) > 1 else []
    kinds = []
    for key, schema in (
        ("text", text),
        ("texts", {"type": "array", "items": text, "maxItems": settings.queue}),
    ):
        kinds.append({**_object({key: schema, **options}, [key, *needs]), "additionalProperties": False})
    return {"oneOf": kinds}


def _answers() -> Json:
    label = _object({"label": {"type": "string"}, "score": {"type": "number"}}, ["label", "score"])
    head = {"oneOf": [label, {"type": "array", "items": label}]}
    answer = {"type": "object", "additionalProperties": head, "description": "By head."}
    return {"oneOf": [answer, {"type": "array", "items": answer}]}


def _tensor(datatypes: Sequence[str], elements: Json) -> Json:
    return {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": [*datatypes]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}},
        "data": elements,
    }


def _infer(settings: Settings) -> Json:
    texts = {
        "type": "array",
        "items": {"type": "string", "maxLength": settings.max_text},
        "maxItems": settings.queue,
    }
    tensor = _tensor(["BYTES"], texts)
    tensor["name"] = {"const": INPUT}
    tensor["shape"] = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "minItems": 1,
        "maxItems": 2,
        "description": "[n] or [n, 1]",
    }
    wanted = _object({"name": {"type": "string"}}, ["name"])
    return _object(
        {
            "id": {"type": ["string", "null"]},
            "inputs": {"type": "array", "items": _object(tensor, [*tensor]), "minItems": 1, "maxItems": 1},
            "outputs": {"type": ["array", "null"], "items": wanted},
        },
        ["inputs"],
    )


def _inference() -> Json:
    tensor = _tensor(["BYTES", "FP32"], {"type": "array", "items": {"type": ["string", "number"]}})
    named = {key: {"type": "string"} for key in ("model_name", "model_version", "id")}
    outputs = {"type": "array", "items": _object(tensor, [*tensor])}
    return _object({**named, "outputs": outputs}, ["model_name", "outputs"])


def _metadata() -> Json:
    tensor = {key: value for key, value in _tensor(["BYTES", "FP32"], {}).items() if key != "data"}
    tensors = {"type": "array", "items": _object(tensor, [*tensor])}
    versions = {"type": "array", "items": {"type": "string"}}
    told = {"name": {"type": "string"}, "versions": versions, "platform": {"type": "string"}}
    return _object({**told, "inputs": tensors, "outputs": tensors}, ["name", "platform", "inputs", "outputs"])


_REFUSALS = {
    400: "The body is not JSON in UTF-8.",
    404: "No such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is compressed, or has binary tensors.",
    422: "The request is not as it must be; the line says where.",
    503: "Busy or stopping.",
    504: "Not answered in time.",
}


def _refusals(codes: Sequence[int]) -> Json:
    schema = {"$ref": "#/components/schemas/Error"}
    responses: Json = {}
    for code in codes:
        responses[str(code)] = {
            "description": _REFUSALS[code],
            "content": {"application/json": {"schema": schema}},
        }
        if code == 503:
            responses["503"]["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
    return responses


def _asking(summary: str, body: Json, answer: Json, parameters: list[Json]) -> Json:
    return {
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": _content("Answered.", "application/json", answer), **_refusals([*_REFUSALS])},
    }


def _telling(summary: str, answer: Json, parameters: Sequence[Json] = (), *codes: int) -> Json:
    told = _content("As asked.", "application/json", answer)
    others = {str(code): _content("Not so.", "application/json", {"type": "object"}) for code in codes}
    return {"summary": summary, "parameters": [*parameters], "responses": {"200": told, **others}}


def _page(summary: str, kind: str) -> Json:
    return {"summary": summary, "responses": {"200": _content("As asked.", kind, {"type": "string"})}}


def _content(description: str, kind: str, schema: Json) -> Json:
    return {"description": description, "content": {kind: {"schema": schema}}}
