"""A fault of the server's own: the client is told 500, the log where it was, and neither what was asked."""

from __future__ import annotations

import asyncio
import io
import json

from export.serving.app import Application
from export.serving.model_registry import Host
from export.serving.settings import Settings
from export.serving.telemetry import Observer


def test_a_fault_is_told_without_what_was_asked(bundle, monkeypatch):
    log, sent = io.BytesIO(), []
    settings = Settings(bundles=(str(bundle),), watch_s=0)
    observer = Observer(log)
    host = Host(settings, observer)

    async def receive():
        return {"type": "http.request", "body": b'{"text": "secretword"}'}

    async def send(message):
        sent.append(message)

    async def main():
        await host.start()

        def broken(texts, batch_size):
            raise RuntimeError(f"cannot do {texts}")

        monkeypatch.setattr(host.model("tiny").batcher._classifier, "logits", broken)
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        await Application(host, settings, observer)(scope, receive, send)
        await host.close()

    asyncio.run(main())
    observer.flush()
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {"error": "a fault of the server (its log tells more)"}
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (failure,) = [line for line in lines if line["event"] == "failure"]
    assert failure["error"] == "RuntimeError" and "broken" in failure["at"][-1]
    assert lines[-1]["code"] == 500 and lines[-1]["reason"] == "fault"
    assert b"secretword" not in log.getvalue()
