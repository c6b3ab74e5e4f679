"""Training and inference on a GPU: seconds, texts per second, peak memory, and the share of time it computes.

    python -m benchmarks.gpu OUT --encoder FOLDER --data CLINC150

Measures, one after another, each in its own process:

* the job recipes/clinc150.yaml on the data set in CLINC150, with the encoder in FOLDER as the teacher;
* a made-up data set of the size of Jigsaw, 127,656 texts of 200 tokens and six labels, on BERT-tiny in three
  epochs without a teacher;
* texts per second that the teacher labels and the student classifies in torch, alone on the GPU.

Prints a Markdown table. OUT is the folder of the run and of `gpu.json`, which holds the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

JIGSAW = {"texts": 127_656, "tokens": 200, "labels": 6, "epochs": 3}
COUNTS = ("steps", "epochs", "texts", "labelled_texts")
STAGES = ("fit_teacher", "label", "fit_student")


def main() -> None:
    """Measure, print and write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("jigsaw", "inference"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(jigsaw() if given.part == "jigsaw" else inference(given.out, given.data)))
        return
    found = {"clinc150": clinc150(given.out, given.encoder, given.data)}
    for part in ("jigsaw", "inference"):
        command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--part", part]
        done, busy = watched(command)
        found[part] = json.loads(done.splitlines()[-1]) | {"busy": busy}
    (given.out / "gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))


def clinc150(out: Path, encoder: str, data: Path) -> dict[str, Any]:
    """Run the job in a process of its own; returns its accuracies and each stage's record."""
    command = [sys.executable, "-m", "distill.cli.main", "run", "recipes/clinc150.yaml", "--out", str(out)]
    command += ["--data-root", str(data), "--set", f"teacher.encoder={encoder}"]
    began = perf_counter()
    _, busy = watched(command)
    found: dict[str, Any] = {"seconds": perf_counter() - began, "busy": busy, "stages": {}}
    for folder in sorted((out / "stages").iterdir()):
        record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        metrics = record["metrics"]
        found["device"] = record.get("device")
        found["stages"][folder.name] = {
            "seconds": record["seconds"],
            "peak_gpu_bytes": record.get("peak_gpu_bytes"),
            **{name: metrics[name] for name in COUNTS if name in metrics},
        }
    heads = json.loads((out / "report.json").read_text(encoding="utf-8"))["heads"]
    found["accuracy"] = {
        name: {form: row.get("accuracy") for form, row in head["test"].items() if isinstance(row, dict)}
        for name, head in heads.items()
    }
    return found


def jigsaw() -> dict[str, Any]:
    """Train BERT-tiny on made-up texts of 200 tokens, with hard labels alone."""
    import numpy as np
    import torch
    from accelerate import Accelerator

    from distill.data.tokens import Tokens
    from distill.heads import Head
    from distill.models.classifier import MultiHeadClassifier
    from distill.recipe.schema import Student
    from distill.training.loop import Examples, TrainingJob, fit
    from students.shapes import SIZES, build_encoder

    texts, tokens, labels, epochs = JIGSAW.values()
    draw = np.random.default_rng(0)
    head = Head("toxic", "multi_label", tuple(f"label {number}" for number in range(labels)))
    ids = draw.integers(1000, 30_000, texts * tokens, dtype=np.int32)
    encoded = Tokens(ids, np.arange(texts + 1, dtype=np.int64) * tokens, pad=0)
    hard = {head.name: (draw.random((texts, labels)) < 0.1).astype(np.float32)}
    some = Tokens(ids[: 2000 * tokens], encoded.offsets[:2001], pad=0)
    network = MultiHeadClassifier(
        build_encoder(SIZES["tiny"], vocabulary=30_522, positions=512, pad=0), [head]
    )
    accelerator = Accelerator(mixed_precision="bf16")
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(
            "student",
            Examples(encoded, hard),
            Examples(some, {head.name: hard[head.name][:2000]}),
            Student(epochs=epochs, lr=1e-3),
            seed=0,
            folder=Path(folder),
        )
        began = perf_counter()
        metrics = fit(network, job, accelerator)
        seconds = perf_counter() - began
    return {
        "seconds": seconds,
        "steps": metrics["steps"],
        "tokens_per_second": texts * tokens * epochs / seconds,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated(),
    }


def inference(run: Path, data: Path) -> dict[str, float]:
    """Texts per second of teacher and student of a run, on the texts of its test split ten times over."""
    import csv

    import numpy as np
    from accelerate import Accelerator

    from distill.models.predict import predict_logits
    from distill.models.saved_networks import load_classifier

    with (data / "test.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)] * 10
    found = {}
    for name, stage in (("labels", "fit_teacher"), ("classifies", "fit_student")):
        network, tokenizer = load_classifier(run / "stages" / stage)
        encoded = network.text_encoder(tokenizer, network.usable_length(128))(texts)
        accelerator = Accelerator(mixed_precision="bf16")
        predict_logits(network, encoded, accelerator)
        times = []
        for _ in range(3):
            began = perf_counter()
            predict_logits(network, encoded, accelerator)
            times.append(perf_counter() - began)
        found[f"{name}_per_second"] = len(texts) / float(np.median(times))
    return found


def watched(command: list[str]) -> tuple[bytes, float]:
    """What a command prints, and the mean share of the time in which the GPU ran a kernel meanwhile."""
    import torch

    shares: list[int] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        reading = threading.Thread(target=lambda: printed.append(process.communicate()[0]))
        printed: list[bytes] = []
        reading.start()
        while reading.is_alive():
            shares.append(torch.cuda.utilization())
            reading.join(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    return printed[0], 0.01 * sum(shares) / len(shares)


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    job, made, speed = found["clinc150"], found["jigsaw"], found["inference"]
    rows = [("whole job, clinc150", f"{job['seconds']:.0f} s", f"GPU busy {job['busy']:.0%}")]
    for name in STAGES:
        stage = job["stages"][name]
        texts = stage.get("labelled_texts") or stage["texts"] * stage["epochs"]
        gpu = f", {stage['peak_gpu_bytes'] / 1e6:,.0f} MB" if stage["peak_gpu_bytes"] else ""
        rows.append((name, f"{stage['seconds']:.1f} s", f"{texts / stage['seconds']:,.0f} texts/s{gpu}"))
    rows += [
        (f"intent, {form}", f"{value:.4f}", "")
        for form, value in job["accuracy"]["intent"].items()
        if value is not None
    ]
    rows += [
        (
            "made-up Jigsaw, BERT-tiny, 3 epochs",
            f"{made['seconds']:.1f} s",
            f"{made['tokens_per_second']:,.0f} tokens/s, GPU busy {made['busy']:.0%}, "
            f"{made['peak_gpu_bytes'] / 1e6:,.0f} MB",
        ),
        ("teacher labels", f"{speed['labels_per_second']:,.0f} texts/s", ""),
        ("student classifies in torch", f"{speed['classifies_per_second']:,.0f} texts/s", ""),
    ]
    lines = [
        f"| {job['device']} | figure | |",
        "|---|---|---|",
        *(f"| {a} | {b} | {c} |" for a, b, c in rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
