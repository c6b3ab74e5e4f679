"""Fits and measures the floor of a comparison, TF-IDF with logistic regression, in processes of its own.

    python -m distill.compare.floor JOB

JOB is a JSON file with `base`, the run that holds the prepared data, and `result`, the file to write: with
`texts` the speed on them, otherwise the quality. The floor is fitted for each, as it has no file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from distill.compare.measure import best_throughput, latency
from distill.data.dataset import hard_labels, load_heads, load_split
from distill.evaluation.analysis import Answers
from distill.evaluation.floor import TfIdf
from distill.evaluation.metrics import Array, labelled, without_nan
from distill.memory import peak_rss_bytes
from distill.storage import read_json, write_json


def train(prepared: Path) -> dict[str, Any]:
    """Fit the floor on prepared data; returns the content of trained.json."""
    heads, began = load_heads(prepared), time.perf_counter()
    model = _fitted(prepared)
    seconds, memory = time.perf_counter() - began, peak_rss_bytes()
    splits = {name: load_split(prepared, name) for name in ("validation", "test")}
    labels = {name: hard_labels(split, heads) for name, split in splits.items()}
    answers = model.answers(heads, {name: list(split["text"]) for name, split in splits.items()}, labels)
    found = {
        head.name: judged(answers[head.name]["test"], labels["test"][head.name])
        for head in heads
        if head.name in answers and labelled(labels["test"][head.name], head).any()
    }
    return {
        "fit_seconds": seconds,
        "teacher_seconds": 0.0,
        "fit_seconds_estimated": False,
        "train_rss_bytes": memory,
        "train_gpu_bytes": None,
        "parameters": model.parameters,
        "bytes": {"fp32": model.size_bytes},
        "weights": True,
        "variant": "fp32",
        "quality": {"fp32": found},
    }


def measure(prepared: Path, texts: list[str]) -> dict[str, Any]:
    """Fit the floor, then measure its speed on texts; returns the content of measured.json."""
    model = _fitted(prepared)

    def classify(some: list[str], size: int) -> None:
        for first in range(0, len(some), size):
            model.logits(some[first : first + size])

    return {
        "latency_ms": latency(classify, texts),
        "rss_bytes": peak_rss_bytes(),
        **best_throughput(classify, texts),
    }


def judged(answers: Answers, labels: Array) -> dict[str, Any]:
    """The first metric of a head with its interval, and all metrics."""
    metrics = without_nan(answers.quality(labels))
    low, high = answers.interval(labels) or (None, None)
    return {"value": metrics[answers.head.first_metric], "low": low, "high": high, "metrics": metrics}


def _fitted(prepared: Path) -> TfIdf:
    heads, split = load_heads(prepared), load_split(prepared, "train")
    return TfIdf(heads, list(split["text"]), hard_labels(split, heads))


def main(path: Path) -> None:
    """Carry out a job."""
    job = read_json(path)
    prepared = Path(job["base"]) / "stages" / "prepare"
    found = measure(prepared, read_json(Path(job["texts"]))) if "texts" in job else train(prepared)
    write_json(Path(job["result"]), found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
