"""FastAPI around the transformers pipeline, or around the batcher of `distill serve`, to compare with.

    python benchmarks/serving_peer.py --student RUN/stages/fit_student --port 8001 [--threaded]
    python benchmarks/serving_peer.py --bundle BUNDLE --port 8001

The pipeline gets the encoder and the first head of the student. It uses the first token where the student
uses the mean of all tokens, so it does the same amount of work and returns other labels. Requires fastapi
and, for the pipeline, the train extra.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    """The body of a request."""

    text: str


def load_pipeline(folder: Path) -> Callable[..., list[dict[str, Any]]]:
    """The transformers pipeline with the weights of the student in `folder`."""
    from transformers import AutoModelForSequenceClassification, pipeline

    from distill.models.base import load_classifier
    from distill.models.classifier import MultiHeadClassifier

    network, tokenizer = load_classifier(folder)
    if not isinstance(network, MultiHeadClassifier):
        raise SystemExit(f"{folder}: holds a network of the family {network.family!r}, expected 'heads'")
    head = network.heads[0]
    config = network.config
    config.id2label = dict(enumerate(head.labels))
    model = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(network.encoder.state_dict(), strict=False)
    model.classifier.load_state_dict(network.linear[f"logits_{head.name}"].state_dict())
    classify: Callable[..., list[dict[str, Any]]] = pipeline(
        "text-classification", model=model.eval(), tokenizer=tokenizer, device="cpu"
    )
    return classify


def pipeline_app(student: Path, threaded: bool) -> FastAPI:
    """FastAPI around the transformers pipeline, in the event loop or in FastAPI's thread pool."""
    classify, app = load_pipeline(student), FastAPI()

    def predict(body: Body) -> dict[str, Any]:
        return classify(body.text, truncation=True)[0]

    async def predict_in_event_loop(body: Body) -> dict[str, Any]:
        return predict(body)

    app.post("/predict")(predict if threaded else predict_in_event_loop)
    return app


def batcher_app(bundle: Path) -> FastAPI:
    """FastAPI around the batcher of `distill serve`, without its timeout, metrics and log."""
    from export.serving.model_registry import ModelRegistry
    from export.serving.settings import Settings
    from export.serving.telemetry import Log

    registry = ModelRegistry(Settings(bundles=(str(bundle),)), Log())
    app = FastAPI(lifespan=registry.lifespan)

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, Any]:
        (result,) = await registry.model(None).classify([body.text])
        return result.prediction

    return app


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--student", type=Path, help="serve the pipeline of this student")
    source.add_argument("--bundle", type=Path, help="serve this bundle")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threaded", action="store_true", help="run the pipeline in the thread pool")
    options = parser.parse_args()
    app = batcher_app(options.bundle) if options.bundle else pipeline_app(options.student, options.threaded)
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
