"""The OpenAPI document of a server, and a page that shows it without loading anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import orjson

from export.serving.predict_api import MAX_LABELS
from export.serving.settings import VERSION, Settings
from export.serving.systemone_api import CHOICE, LEVELS, MAX_OPTIONS, MAX_QUESTIONS, NOUL, SCORE
from export.serving.v2_api import INPUT

Json = dict[str, Any]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
DOCS_HEADERS = {"content-security-policy": f"{_POLICY}; frame-ancestors 'none'", "vary": "accept"}
_ERRORS = {
    "400": "The body is not JSON in UTF-8, or the host is not allowed.",
    "404": "There is no such model.",
    "408": "The body was not complete before the timeout.",
    "413": "The body is too large.",
    "415": "The body is compressed or has binary tensors.",
    "422": "A value is invalid. The error says which one.",
    "503": "The queue is full, or the server is stopping.",
    "504": "The response was not ready before the timeout.",
}


def openapi_document(models: Sequence[str], settings: Settings) -> Json:
    """The OpenAPI 3.1 document of a server with these models."""
    string, flag = {"type": "string"}, {"type": "boolean"}
    text = {"type": "string", "maxLength": settings.max_text}
    texts = {**_array(text), "maxItems": settings.queue}
    number: Json = {"type": "number"}
    threshold = {**number, "minimum": 0, "maximum": 1}
    options: Json = {
        "heads": {"type": ["array", "null"], "items": string, "minItems": 1},
        "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**64 - 1},
        "scores": flag,
        "labels": {
            "type": ["array", "object", "null"],
            "items": string,
            "additionalProperties": {"type": ["string", "null"]},
            **dict.fromkeys(("minItems", "minProperties"), 1),
            **dict.fromkeys(("maxItems", "maxProperties"), MAX_LABELS),
        },
        "thresholds": {
            "type": ["object", "null"],
            "additionalProperties": {
                # of a single_label head, a number of the range of its score
                "oneOf": [number, {"type": "object", "additionalProperties": threshold}]
            },
        },
        "abstain": flag,
        "model": {"enum": [*models] if len(models) > 1 else [*models, None]},
    }
    required = ["model"] if len(models) > 1 else []
    one = {**_object([*required, "text"], text=text, **options), "additionalProperties": False}
    many = {**_object([*required, "texts"], texts=texts, **options), "additionalProperties": False}
    label = _object(label={"type": ["string", "integer"]}, score=number)
    # null where the head abstains
    answer = _object(label={"type": ["string", "integer", "null"]}, score=number)
    prediction = {"type": "object", "additionalProperties": {"oneOf": [answer, _array(label)]}}

    shape = {**_array({"type": "integer", "minimum": 0}), "minItems": 1, "maxItems": 2}
    input_tensor = _object(name={"const": INPUT}, datatype={"const": "BYTES"}, shape=shape, data=texts)
    infer_request = _object(
        ["inputs"],
        id={"type": ["string", "null"]},
        inputs={**_array(input_tensor), "minItems": 1, "maxItems": 1},
        outputs={"type": ["array", "null"], "items": _object(name=string)},
    )
    description: Json = {"name": string, "datatype": string, "shape": _array({"type": "integer"})}
    output_tensor = _object(**description, data=_array({"type": ["string", "number"]}))
    names = dict.fromkeys(("model_name", "model_version", "id"), string)
    infer_response = _object(["model_name", "outputs"], outputs=_array(output_tensor), **names)
    tensors = _array(_object(**description))
    metadata = _object(name=string, versions=_array(string), platform=string, inputs=tensors, outputs=tensors)
    operations = {
        "/predict": _post(
            "Classify texts", {"oneOf": [one, many]}, {"oneOf": [prediction, _array(prediction)]}
        ),
        "/v1/systemone": _post(
            "Answer typed questions about a state", *_systemone(options["model"], required, settings)
        ),
        "/v2/models/{model}/infer": _post("Classify an input tensor", infer_request, infer_response),
        "/v2/models/{model}": _get("Inputs, outputs and labels of a model", metadata, "404"),
        "/v2/models": _get("The names of the models", _object(models=_array(string))),
        "/v2/models/{model}/ready": _get("Whether a model accepts texts", _object(ready=flag), "404", "503"),
        "/v2/health/ready": _get("Whether the server accepts texts", _object(ready=flag), "503"),
        "/health": _get("The same as /v2/health/ready", _object(ready=flag), "503"),
        "/v2/health/live": _get("Whether the process runs", _object(live=flag)),
        "/v2": _get("The server", _object(name=string, version=string, extensions=_array(string))),
        "/metrics": _get("Metrics for Prometheus", string, media_type="text/plain"),
        "/openapi.json": _get("OpenAPI description", {"type": "object"}),
        "/docs": _get("This page", string, media_type="text/html"),
        "/": _get(
            "The server; this page for browsers",
            _object(name=string, version=string, models=_array(string), docs=string),
        ),
    }
    model = {"name": "model", "in": "path", "required": True, "schema": {"enum": [*models]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tinyheads", "version": VERSION},
        "paths": {
            path: {**operation, "parameters": [model] if "{model}" in path else []}
            for path, operation in operations.items()
        },
        "components": {"schemas": {"Error": _object(error=string)}},
    }


def _systemone(model: Json, required: Sequence[str], settings: Settings) -> tuple[Json, Json]:
    """The schemas of a request of typed questions and of its response."""
    number: Json = {"type": "number"}
    content: Json = {"type": ["string", "object", "array"]}
    optional = {"type": [*content["type"], "null"]}
    options = {"type": "object", "additionalProperties": optional}
    outcomes: Json = {"type": ["object", "null"], "additionalProperties": False}
    criteria: dict[str, Json] = {
        CHOICE: {**options, "minProperties": 1, "maxProperties": MAX_OPTIONS},
        NOUL: {**outcomes, "properties": dict.fromkeys(("true", "false"), optional)},
        SCORE: {**_array(content), "minItems": LEVELS[0], "maxItems": LEVELS[1]},
    }
    questions = [
        {
            **_object(
                ["type"] if kind == NOUL else ["type", "criteria"],
                type={"const": kind},
                instructions=optional,
                criteria=schema,
            ),
            "additionalProperties": False,
        }
        for kind, schema in criteria.items()
    ]
    most = min(MAX_QUESTIONS, settings.queue)
    request = _object(
        [*required, "state", "questions"],
        model=model,
        state=content | {"maxLength": settings.max_text},
        questions={
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": {"oneOf": questions},
            "minProperties": 1,
            "maxProperties": most,
        },
    )
    shares: Json = {"type": "object", "additionalProperties": number}
    legend = {"type": "object", "additionalProperties": content}
    given: Json = {"probabilities": shares, "confidence": number}
    answers = [
        _object(type={"const": CHOICE}, choice={"type": "string"}, **given),
        _object(type={"const": NOUL}, noul=number),
        _object(type={"const": SCORE}, score=number, legend=legend, **given),
    ]
    diagnostics = _object(label_mass=number, argmax_is_label={"type": "boolean"})
    response = _object(
        model={"type": "string"},
        answers={"type": "object", "additionalProperties": {"oneOf": answers}},
        usage=_object(input_tokens={"type": "integer"}, output_tokens={"type": "integer"}),
        diagnostics={"type": "object", "additionalProperties": diagnostics},
    )
    return {**request, "additionalProperties": False}, response


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
table { border-collapse: collapse } td { padding: .2rem 1.2rem .2rem 0 }
pre { overflow-x: auto; padding: .7rem 1rem; border: 1px solid #8886; border-radius: 8px; font-size: 13px }
"""
_EXAMPLE = """curl -s localhost:8000/predict -d '{"texts": ["where is my parcel?"]}'"""


def docs_page(document: Json) -> str:
    """A self-contained HTML page: an example request, the paths, and the document."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code><td>{escape(operations[method]['summary'])}"
        for path, operations in document["paths"].items()
        for method in operations.keys() & {"get", "post"}
    )
    content = escape(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>tinyheads</title><style>{_STYLE}</style>"
        f"<meta name=viewport content='width=device-width'><h1>tinyheads</h1><pre>{escape(_EXAMPLE)}</pre>"
        f"<table>{rows}</table><p><a href=openapi.json>OpenAPI description (JSON)</a>"
        f"<details><summary>Show it here</summary><pre>{content}</pre></details>"
    )


def _object(required: Sequence[str] | None = None, **properties: Json) -> Json:
    """An object schema. All properties are required by default."""
    return {"type": "object", "properties": properties, "required": [*(required or properties)]}


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


def _content(description: str, schema: Json, media_type: str = "application/json") -> Json:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _get(summary: str, schema: Json, *errors: str, media_type: str = "application/json") -> Json:
    responses = {"200": _content("Success.", schema, media_type)}
    responses.update({code: {"description": _ERRORS[code]} for code in errors})
    return {"get": {"summary": summary, "responses": responses}}


def _post(summary: str, body: Json, schema: Json) -> Json:
    error = {"$ref": "#/components/schemas/Error"}
    errors = {code: _content(description, error) for code, description in _ERRORS.items()}
    operation = {"summary": summary, "responses": {"200": _content("Success.", schema), **errors}}
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return {"post": operation}
