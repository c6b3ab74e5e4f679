"""The run's bundle, its teacher, and the same student trained in other ways, for benchmarks/quality.py.

    python benchmarks/quality_own.py JOB METHOD train|measure THREADS

All methods use one complete run. All students are exported, quantised and served in the same way.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_measure import Job, Method, Trained, main
from quality_textbrewer import EPOCHS, TEMPERATURE, brew

from distill.cli.main import main as distill
from distill.compare.linked_runs import link
from distill.data.tokens import length_sorted_batches
from distill.models.base import on_device
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.stages.calibrate import calibrate_heads
from distill.stages.export_onnx import export_onnx
from distill.training.devices import make_accelerator
from export import Classifier

SERVED = ("tokenizer.json", "tokenizer_config.json", "config.json", "manifest.json")
PACKAGES = ("torch", "transformers", "onnxruntime")


class Bundle:
    """A bundle, loaded with the runtime that users load it with."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.model, self.job = Classifier.load(folder, threads=job.threads), job
        manifest = _manifest(folder)
        file = manifest["variants"][manifest["default_variant"]]
        self.files = [folder / name for name in (file, *SERVED)]

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts."""
        return self.model(texts, heads=[self.job.head], batch_size=batch_size)

    def scores(self, texts: list[str]) -> Any:
        """Logits of texts."""
        return self.model.logits(texts)[self.job.head]


class Teacher:
    """The run's teacher in torch, float32, in batches of similar lengths."""

    def __init__(self, job: Job) -> None:
        run = _run(job, Path(job.run))
        folder = run.stage("fit_teacher")
        self.files = [folder / name for name in ("model.safetensors", "tokenizer.json", "config.json")]
        self.model, tokenizer = artifacts.teacher_network(run)
        self.encode = self.model.text_encoder(tokenizer, artifacts.max_length(run))
        self.head, self.labels, self.single = job.head, np.array(job.labels), job.single

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts; for multi_label those with a probability over 0.5."""
        logits = self._logits(texts, batch_size)
        if self.single:
            return self.labels[logits.argmax(-1)]
        return [self.labels[row] for row in logits > 0]

    def scores(self, texts: list[str]) -> Any:
        """Logits of texts."""
        return self._logits(texts, 32)

    def _logits(self, texts: list[str], batch_size: int) -> Any:
        tokens = self.encode(texts)
        collected = np.empty((len(texts), len(self.labels)), np.float32)
        order = np.concatenate(length_sorted_batches(tokens.lengths, 1))
        with torch.inference_mode():
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                logits = self.model(on_device(tokens.batch(rows), torch.device("cpu")))
                collected[rows] = self.model.split(logits)[self.head].numpy()
        return collected


def ours(job: Job) -> Trained:
    """The bundle of the run."""
    run = Path(job.run)
    student = _record(run, "fit_student")["metrics"]
    description = (
        f"the recipe as it is: transfer set of {student['texts']:,} texts, {student['epochs']} epochs; "
        f"{_sizes(run / 'bundle')}"
    )
    return _trained(run / "bundle", _seconds(run), description)


def teacher(job: Job) -> Trained:
    """The teacher of the run."""
    seconds = {"teacher": _seconds(Path(job.run))["teacher"]}
    return Trained(seconds, "the teacher of ours; torch, float32", PACKAGES)


def plain(job: Job) -> Trained:
    """The run's student trained on hard labels only, without augmented texts."""
    run = _linked(job, "plain")
    heads = ", ".join(load_recipe(Path(job.run) / "recipe.yaml").heads)
    settings = ["distillation.soft_weight=0", "augment.copies=0", f"gates.allow=[{heads}]"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    command = ["run", str(Path(job.run) / "recipe.yaml"), "--data-root", job.data_root, "--out", str(run)]
    if status := distill([*command, *overrides]):
        raise SystemExit(status)
    epochs = _record(run, "fit_student")["metrics"]["epochs"]
    description = (
        f"the same student, fine-tuned: hard labels only, no augmented texts, {epochs} epochs, the best on "
        "validation; same initialisation as ours, which uses the teacher's embeddings, so its training counts"
    )
    seconds = {part: value for part, value in _seconds(run).items() if part != "label"}
    return _trained(run / "bundle", seconds, description)


def textbrewer(job: Job) -> Trained:
    """The run's student trained by TextBrewer on the teacher's soft labels of the training texts."""
    run = _run(job, _linked(job, "textbrewer"))
    ours = Path(job.run)
    texts, student = artifacts.rows(run)["train"], _record(ours, "fit_student")["metrics"]
    epochs = max(1, min(EPOCHS, student["texts"] * student["epochs"] // texts))
    start = time.perf_counter()
    for stage, work in (
        ("fit_student", lambda run, place: brew(run, place, epochs)),
        ("calibrate", calibrate_heads),
        ("export", export_onnx),
    ):
        run.stage(stage).mkdir(parents=True, exist_ok=True)
        work(run, run.stage(stage))
    before = _seconds(ours)
    # the share of the labelling that the training texts take
    share = texts / max(1, _record(ours, "label")["metrics"]["labelled_texts"])
    seconds = {
        "teacher": before["teacher"],
        "label": before["label"] * min(1.0, share),
        "training": time.perf_counter() - start,
    }
    description = (
        f"the same student and teacher, trained by the package: GeneralDistiller, temperature {TEMPERATURE}, "
        "soft labels with weight 1, hard labels with weight 0 (both by default), no T^2, training texts "
        f"only, {epochs} epochs (at most {EPOCHS}, no more texts read than ours), the best on validation; "
        "learning rate and batch size as in ours; a multi_label head is two classes per label"
    )
    return _trained(run.stage("export") / "candidate", seconds, description)


def _run(job: Job, folder: Path) -> Run[Recipe]:
    """The run in a folder, with the recipe of the job's run."""
    recipe = load_recipe(Path(job.run) / "recipe.yaml", data_root=job.data_root)
    return Run(recipe, folder, make_accelerator(recipe, folder))


def _linked(job: Job, name: str) -> Path:
    """A run folder that shares the data, teacher and soft labels of the job's run."""
    folder = job.place(name) / "run"
    link(Path(job.run), folder, ("prepare", "fit_teacher", "label"))
    return folder


def _trained(bundle: Path, seconds: dict[str, float], description: str) -> Trained:
    return Trained(seconds, f"{description}; {_manifest(bundle)['default_variant']}", PACKAGES)


def _manifest(bundle: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def _sizes(bundle: Path) -> str:
    total = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    return f"MB of the files of the served variant; the complete bundle with fp32 has {total / 1e6:.1f} MB"


def _record(run: Path, stage: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "stages" / stage / "stage.json").read_text(encoding="utf-8"))
    return record


def _seconds(run: Path) -> dict[str, float]:
    """Seconds of a run: teacher, labelling, and all other stages as training."""
    names = {"fit_teacher": "teacher", "label": "label"}
    seconds = {"teacher": 0.0, "label": 0.0, "training": 0.0}
    for file in (run / "stages").glob("*/stage.json"):
        seconds[names.get(file.parent.name, "training")] += _record(run, file.parent.name)["seconds"]
    return seconds


METHODS = {
    "teacher": Method(teacher, Teacher),
    "plain": Method(plain, lambda job: Bundle(job.place("plain") / "run" / "bundle", job)),
    "textbrewer": Method(
        textbrewer, lambda job: Bundle(job.place("textbrewer") / "run/stages/export/candidate", job)
    ),
    "ours": Method(ours, lambda job: Bundle(Path(job.run) / "bundle", job)),
}

if __name__ == "__main__":
    main(METHODS)
