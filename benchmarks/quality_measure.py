"""Measure the methods of benchmarks/quality.py. Needs only numpy, and the project's sources.

A job is a folder with job.json (head, encoder, threads, the run), train.json, validation.json and test.json.
Each split is `{"texts": [...], "labels": [...]}` of the rows with labels for the head: one class index per
text, or 0/1 per label. Training a method writes `NAME/trained.json` and `NAME/scores.npz`. Measuring its
speed, on an otherwise idle machine, writes `NAME/measured.json`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from distill.compare.measure import best_throughput, latency

SPLITS = ("train", "validation", "test")
TINY = 1e-7  # probabilities are clipped to [TINY, 1 - TINY], which keeps logits finite


class Split(NamedTuple):
    """Texts and their labels: class indices `[texts]`, or 0/1 `[texts, labels]`."""

    texts: list[str]
    labels: list[Any]


@dataclass(frozen=True)
class Job:
    """The task of all methods, stored in a folder."""

    folder: Path
    head: str
    kind: str
    labels: list[str]
    encoder: str  # the teacher's before fine-tuning
    run: str  # folder of the `distill run`
    data_root: str
    threads: int
    seed: int

    @property
    def single(self) -> bool:
        """Whether a text has one label."""
        return self.kind == "single_label"

    def split(self, name: str) -> Split:
        """Train, validation or test."""
        return Split(**json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))

    def place(self, method: str) -> Path:
        """The folder of a method, created if missing."""
        folder = self.folder / method
        folder.mkdir(exist_ok=True)
        return folder


class Model(Protocol):
    """A trained method, loaded from the files that a deployment needs."""

    @property
    def files(self) -> Sequence[Path]:
        """The files or folders."""

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts, through the API that users call."""

    def scores(self, texts: list[str]) -> Any:
        """Logits `[texts, labels]`, or equivalent scores."""


class Trained(NamedTuple):
    """The training time and the settings of a method.

    `seconds` has one entry per part, in order. `teacher` and `label` are the teacher's share.
    """

    seconds: Mapping[str, float]
    settings: str
    packages: Sequence[str] = ()


class Method(NamedTuple):
    """A function that trains a method into its folder, and one that loads it from there."""

    train: Callable[[Job], Trained]
    load: Callable[[Job], Model]


def load_job(folder: Path) -> Job:
    """The job in a folder."""
    return Job(folder=folder, **json.loads((folder / "job.json").read_text(encoding="utf-8")))


def as_logits(probabilities: Any, *, single: bool) -> Any:
    """Logits whose softmax, or sigmoid for multi_label, gives these probabilities `[texts, labels]`."""
    p = np.clip(np.asarray(probabilities, np.float64), TINY, 1 - TINY)
    return np.log(p) if single else np.log(p) - np.log1p(-p)


def in_order(scores: Any, classes: Iterable[int], labels: int) -> Any:
    """Scores with one column per label; labels that are not in `classes` get 0."""
    scores = np.asarray(scores, np.float64)
    ordered = np.zeros((len(scores), labels))
    ordered[:, list(classes)] = scores
    return ordered


def bytes_of(paths: Iterable[Path]) -> int:
    """The total size of files and of all files in folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files if file.is_file())


def seconds_of(job: Job, method: str) -> float:
    """The training seconds of a method that another method builds on."""
    file = job.folder / method / "trained.json"
    if not file.exists():
        raise SystemExit(f"{method}: not trained in {job.folder} (train it first)")
    return float(sum(json.loads(file.read_text(encoding="utf-8"))["seconds"].values()))


def chunked(call: Callable[[list[str]], Any], texts: list[str], size: int) -> list[Any]:
    """The results of calls with `size` texts each, in order."""
    return [answer for i in range(0, len(texts), size) for answer in call(texts[i : i + size])]


def speed(model: Model, texts: list[str]) -> dict[str, float]:
    """Texts per second at the best batch size, and milliseconds for one text."""
    found, best = latency(model.classify, texts), best_throughput(model.classify, texts)
    return {
        "texts_a_second": best["throughput"],
        "batch_size": best["batch_size"],
        "p50_ms": found["p50"],
        "p99_ms": found["p99"],
    }


def train(job: Job, name: str, method: Method) -> None:
    """Train a method and compute its scores; writes NAME/scores.npz and NAME/trained.json."""
    trained, folder = method.train(job), job.place(name)
    model = method.load(job)
    scores = {split: model.scores(job.split(split).texts) for split in SPLITS[1:]}
    arrays: dict[str, Any] = {split: np.asarray(x, np.float32) for split, x in scores.items()}
    np.savez(folder / "scores.npz", **arrays)
    record = {
        "seconds": {part: round(seconds, 1) for part, seconds in trained.seconds.items()},
        "threads": job.threads,
        "bytes": bytes_of(model.files),
        "settings": trained.settings,
        "versions": {package: importlib.metadata.version(package) for package in trained.packages},
    }
    _write(folder / "trained.json", record)


def measure(job: Job, name: str, method: Method) -> None:
    """Measure the speed of a trained method; writes NAME/measured.json."""
    _write(job.place(name) / "measured.json", speed(method.load(job), job.split("test").texts))


def main(methods: Mapping[str, Method]) -> None:
    """Train or measure one method of a job; the command line that quality.py calls."""
    steps = {"train": train, "measure": measure}
    if len(sys.argv) != 5 or sys.argv[2] not in methods or sys.argv[3] not in steps:
        usage = f"JOB METHOD train|measure THREADS (METHOD is one of {', '.join(methods)})"
        raise SystemExit(f"usage: {Path(sys.argv[0]).name} {usage}")
    folder, name, step, threads = sys.argv[1:]
    job = replace(load_job(Path(folder).resolve()), threads=int(threads))
    steps[step](job, name, methods[name])


def _write(file: Path, record: Mapping[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(file)
