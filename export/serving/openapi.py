"""The OpenAPI document of a server, and a page that shows it without loading anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import orjson

from export.serving.settings import VERSION, Settings
from export.serving.v2_api import INPUT

Json = dict[str, Any]

_ERRORS = {
    "400": "The body is not JSON in UTF-8.",
    "404": "There is no such model.",
    "408": "The body was not complete before the timeout.",
    "413": "The body is too large.",
    "415": "The body is compressed or has binary tensors.",
    "422": "A value is invalid. The error says which one.",
    "503": "The queue is full, or the server is stopping. The response has a Retry-After header.",
    "504": "The response was not ready before the timeout.",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
DOCS_HEADERS = {"content-security-policy": _POLICY}
_PAGE = """<!doctype html><html lang=en><meta charset=utf-8><title>tinyheads</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto}
textarea{width:100%%}pre{overflow:auto}</style>
<h1>tinyheads</h1><ul>%s</ul>
<form><textarea rows=3>{"text": "where is my parcel?"}</textarea><button>POST /predict</button></form>
<pre><output></output></pre><h2><a href="openapi.json">OpenAPI document</a></h2><pre>%s</pre>
<script>document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const response = await fetch("predict", {method: "POST", body: document.querySelector("textarea").value});
  const text = response.status + "\\n" + JSON.stringify(await response.json(), null, 2);
  document.querySelector("output").textContent = text;
});</script></html>"""


def openapi_document(models: Sequence[str], settings: Settings) -> Json:
    """The OpenAPI 3.1 document of a server with these models."""
    model = {"name": "model", "in": "path", "required": True, "schema": {"enum": [*models]}}
    ready, string = _object(ready={"type": "boolean"}), {"type": "string"}
    text = {"type": "string", "maxLength": settings.max_text}
    texts = {**_array(text), "maxItems": settings.queue}
    options: Json = {
        "heads": {"type": ["array", "null"], "items": string, "minItems": 1},
        "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**64 - 1},
        "scores": {"type": "boolean", "default": False},
        "model": {"enum": [*models] if len(models) > 1 else [*models, None]},
    }
    required = ["model"] if len(models) > 1 else []
    bodies = [
        {**_object(required=[name, *required], **{name: schema}, **options), "additionalProperties": False}
        for name, schema in (("text", text), ("texts", texts))
    ]
    label = _object(label=string, score={"type": "number"})
    prediction = {"type": "object", "additionalProperties": {"oneOf": [label, _array(label)]}}
    shape = {**_array({"type": "integer", "minimum": 0}), "minItems": 1, "maxItems": 2}
    input_tensor = _object(name={"const": INPUT}, datatype={"const": "BYTES"}, shape=shape, data=texts)
    described: Json = {
        "name": string,
        "datatype": {"enum": ["BYTES", "FP32"]},
        "shape": _array({"type": "integer"}),
    }
    data = _array({"type": ["string", "number"]})
    inference = _object(
        required=["inputs"],
        id={"type": ["string", "null"]},
        inputs={**_array(input_tensor), "minItems": 1, "maxItems": 1},
        outputs={"type": ["array", "null"], "items": _object(name=string)},
    )
    outputs = _array(_object(**described, data=data))
    tensors = _array(_object(**described))
    metadata = _object(name=string, versions=_array(string), platform=string, inputs=tensors, outputs=tensors)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tinyheads", "version": VERSION},
        "paths": {
            "/predict": _post(
                "Classify texts", {"oneOf": bodies}, {"oneOf": [prediction, _array(prediction)]}
            ),
            "/v2/models/{model}/infer": _post(
                "Classify texts, as tensors",
                inference,
                _object(
                    required=["model_name", "outputs"],
                    **dict.fromkeys(("model_name", "model_version", "id"), string),
                    outputs=outputs,
                ),
                model,
            ),
            "/v2/models/{model}": _get("Inputs, outputs and labels of a model", metadata, model),
            "/v2/models/{model}/ready": _get("Whether a model accepts texts", ready, model, unready=True),
            "/v2/health/live": _get("Whether the process runs", _object(live={"type": "boolean"})),
            "/v2/health/ready": _get("Whether the server accepts texts", ready, unready=True),
            "/v2": _get("The server", _object(name=string, version=string, extensions=_array(string))),
            "/metrics": _get("Metrics for Prometheus", string, kind="text/plain"),
            "/openapi.json": _get("This document", {"type": "object"}),
            "/docs": _get("This document as a page", string, kind="text/html"),
        },
        "components": {"schemas": {"Error": _object(error=string)}},
    }


def docs_page(document: Json) -> str:
    """An HTML page with the document and a form that sends a `/predict` request."""
    paths = "".join(
        f"<li><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return _PAGE % (paths, escape(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()))


def _object(*, required: Sequence[str] | None = None, **properties: Json) -> Json:
    """An object schema. All properties are required by default."""
    return {"type": "object", "properties": properties, "required": [*(required or properties)]}


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


def _content(description: str, schema: Json, kind: str = "application/json") -> Json:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _get(
    summary: str, schema: Json, *parameters: Json, kind: str = "application/json", unready: bool = False
) -> Json:
    responses = {"200": _content("Success.", schema, kind)}
    if parameters:
        responses["404"] = _content(_ERRORS["404"], {"$ref": "#/components/schemas/Error"})
    if unready:
        responses["503"] = _content("The server is stopping.", schema)
    return {"get": {"summary": summary, "parameters": [*parameters], "responses": responses}}


def _post(summary: str, body: Json, schema: Json, *parameters: Json) -> Json:
    error = {"$ref": "#/components/schemas/Error"}
    errors = {code: _content(description, error) for code, description in _ERRORS.items()}
    return {
        "post": {
            "summary": summary,
            "parameters": [*parameters],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"200": _content("Success.", schema), **errors},
        }
    }
