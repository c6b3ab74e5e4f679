"""What every method of benchmarks/quality.py is measured by; needs numpy alone.

A job is a folder: job.json (head, encoder, threads, where the run is) and train.json, validation.json,
test.json, each `{"texts": [...], "labels": [...]}` of the rows that are labelled for the head: a class index
a text, or 0/1 a label. Training a method leaves `NAME/trained.json` and `NAME/scores.npz` there; measuring
its speed, which needs the machine for itself, leaves `NAME/measured.json`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

SPLITS = ("train", "validation", "test")
SIZES = (8, 32, 128, 1024)  # texts a batch, of which each method's fastest counts
LONG = 20.0  # seconds after which a batch size is not timed again
ROUNDS = 200  # calls with one text, after a tenth as many that warm up
TINY = 1e-7  # probabilities nearer to 0 or 1 than this have no finite logit worth telling apart


class Split(NamedTuple):
    """Texts and their labels: class indices `[texts]`, or 0/1 `[texts, labels]`."""

    texts: list[str]
    labels: list[Any]


@dataclass(frozen=True)
class Job:
    """What a method is asked to do, as it lies in a folder."""

    folder: Path
    head: str
    kind: str
    labels: list[str]
    encoder: str  # the teacher's, as it was before it was a teacher
    run: str  # of ours
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
        """The folder of a method, made if missing."""
        folder = self.folder / method
        folder.mkdir(exist_ok=True)
        return folder


class Model(Protocol):
    """A trained method, loaded from the files that it ships."""

    files: Sequence[Path]  # or folders

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts, as a user would ask for them."""

    def scores(self, texts: list[str]) -> Any:
        """Logits `[texts, labels]`, or what stands for them."""


class Trained(NamedTuple):
    """How long a method took to train, and how it was set.

    `seconds` by part, in order: `teacher` and `label` are what a teacher costs, the rest is its own.
    """

    seconds: Mapping[str, float]
    settings: str
    packages: Sequence[str] = ()


class Method(NamedTuple):
    """How a method is trained, leaving files in its folder, and how it is loaded from them."""

    train: Callable[[Job], Trained]
    load: Callable[[Job], Model]


def load_job(folder: Path) -> Job:
    """The job in a folder."""
    return Job(folder=folder, **json.loads((folder / "job.json").read_text(encoding="utf-8")))


def as_logits(probabilities: Any, *, single: bool) -> Any:
    """Logits that softmax, or a sigmoid a label, turns into these probabilities `[texts, labels]`."""
    p = np.clip(np.asarray(probabilities, np.float64), TINY, 1 - TINY)
    return np.log(p) if single else np.log(p) - np.log1p(-p)


def in_order(scores: Any, classes: Iterable[int], labels: int) -> Any:
    """Columns of the classes a method knows as columns of all labels; the others' probability is 0."""
    scores = np.asarray(scores, np.float64)
    whole = np.zeros((len(scores), labels))
    whole[:, list(classes)] = scores
    return whole


def bytes_of(paths: Iterable[Path]) -> int:
    """The size of files, and of all files in folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files if file.is_file())


def seconds_of(job: Job, method: str) -> float:
    """What a method took on which another one builds; it must be done."""
    file = job.folder / method / "trained.json"
    if not file.exists():
        raise SystemExit(f"{method} comes first: it is not done in {job.folder}")
    return float(sum(json.loads(file.read_text(encoding="utf-8"))["seconds"].values()))


def chunked(call: Callable[[list[str]], Any], texts: list[str], size: int) -> list[Any]:
    """The answers of a call that takes its texts as they come, `size` at a time."""
    return [answer for i in range(0, len(texts), size) for answer in call(texts[i : i + size])]


def speed(model: Model, texts: list[str]) -> dict[str, float]:
    """Texts a second of one call with all texts, at the best batch size, and milliseconds of one text."""
    model.classify(texts[: max(SIZES)], min(SIZES))  # warms up
    rates: dict[int, float] = {}
    for size in SIZES:
        for _ in range(3):
            start = time.perf_counter()
            model.classify(texts, size)
            seconds = time.perf_counter() - start
            rates[size] = max(rates.get(size, 0.0), len(texts) / seconds)
            if seconds > LONG:
                break
    taken = []
    for turn in range(ROUNDS + ROUNDS // 10):
        text = texts[turn % len(texts)]
        start = time.perf_counter()
        model.classify([text], 1)
        taken.append(time.perf_counter() - start)
    best = max(rates, key=rates.__getitem__)
    p50, p99 = np.percentile(taken[ROUNDS // 10 :], (50, 99)) * 1000
    return {"texts_a_second": rates[best], "batch_size": best, "p50_ms": float(p50), "p99_ms": float(p99)}


def train(job: Job, name: str, method: Method) -> None:
    """Train a method and let it answer; leaves NAME/scores.npz and NAME/trained.json."""
    trained, folder = method.train(job), job.place(name)
    model = method.load(job)
    scores = {split: model.scores(job.split(split).texts) for split in SPLITS[1:]}
    np.savez(folder / "scores.npz", **{split: np.asarray(x, np.float32) for split, x in scores.items()})
    record = {
        "seconds": {part: round(seconds, 1) for part, seconds in trained.seconds.items()},
        "threads": job.threads,
        "bytes": bytes_of(model.files),
        "settings": trained.settings,
        "versions": {package: importlib.metadata.version(package) for package in trained.packages},
    }
    _write(folder / "trained.json", record)


def measure(job: Job, name: str, method: Method) -> None:
    """Measure a trained method's speed; leaves NAME/measured.json."""
    _write(job.place(name) / "measured.json", speed(method.load(job), job.split("test").texts))


def main(methods: Mapping[str, Method]) -> None:
    """Train or measure one method of a job, as quality.py asks."""
    steps = {"train": train, "measure": measure}
    if len(sys.argv) != 5 or sys.argv[2] not in methods or sys.argv[3] not in steps:
        words = f"JOB METHOD train|measure THREADS, METHOD of {', '.join(methods)}"
        raise SystemExit(f"usage: {Path(sys.argv[0]).name} {words}")
    folder, name, step, threads = sys.argv[1:]
    job = replace(load_job(Path(folder).resolve()), threads=int(threads))
    steps[step](job, name, methods[name])


def _write(file: Path, record: Mapping[str, Any]) -> None:
    written = file.with_name(f".{file.name}.tmp")
    written.write_text(json.dumps(record, indent=1), encoding="utf-8")
    written.replace(file)
