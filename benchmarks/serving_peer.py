"""What most people serve a classifier with: FastAPI around the transformers pipeline, in torch.

    python benchmarks/serving_peer.py STUDENT --port 8001 [--threaded]

STUDENT is a network that `distill run` left, RUN/stages/fit_student. The pipeline gets its encoder and its
first head; it pools the first token where the student takes the mean, so it does the same work and its
answers differ. Needs the train extra and fastapi.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Ask(BaseModel):
    """The body of a request."""

    text: str


def pipeline_of(folder: Path) -> Any:
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
    return pipeline("text-classification", model=model.eval(), tokenizer=tokenizer, device="cpu")


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("student", type=Path)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threaded", action="store_true", help="a plain `def`: FastAPI calls it in threads")
    options = parser.parse_args()
    classify = pipeline_of(options.student)
    app = FastAPI()

    def predict(ask: Ask) -> dict[str, Any]:
        found: dict[str, Any] = classify(ask.text, truncation=True)[0]
        return found

    async def predict_in_the_loop(ask: Ask) -> dict[str, Any]:
        return predict(ask)

    app.post("/predict")(predict if options.threaded else predict_in_the_loop)
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
