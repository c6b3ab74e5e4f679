"""An internal error: the client gets status 500, the log the stack, and neither contains the text."""

from __future__ import annotations

import asyncio
import io
import json

from export.runtime.classifier import Classifier
from export.serving.app import create_app
from export.serving.model_registry import ModelRegistry
from export.serving.settings import Settings
from export.serving.telemetry import Log


def test_an_internal_error_is_reported_without_the_text(bundle, monkeypatch):
    stream, sent = io.BytesIO(), []
    settings, log = Settings(bundles=(str(bundle),), watch_s=0), Log(stream)
    registry = ModelRegistry(settings, log)
    app = create_app(registry, settings, log)

    def broken(classifier, texts, batch_size):
        raise RuntimeError(f"cannot do {texts}")

    async def receive():
        return {"type": "http.request", "body": b'{"text": "secretword"}'}

    async def send(message):
        sent.append(message)

    async def main():
        async with registry.lifespan(app):
            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
            await app(scope, receive, send)

    monkeypatch.setattr(Classifier, "logits", broken)
    asyncio.run(main())
    log.flush()
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {"error": "server: internal error (see the server log)"}
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (failure,) = [line for line in lines if line["event"] == "failure"]
    assert failure["error"] == "RuntimeError" and "broken" in failure["at"][-1]
    assert lines[-1]["code"] == 500 and lines[-1]["reason"] == "internal"
    assert b"secretword" not in stream.getvalue()
