"""Trains one candidate of a comparison, in a process of its own.

    python -m distill.compare.worker JOB

JOB is a JSON file with `name`, `seed`, `recipe`, `base` (a run of the recipe that holds the prepared data,
and the soft labels where a student is distilled), `texts` (a JSON file of texts that the speed on a GPU is
measured on) and `folder`, which gets the bundle and, last, trained.json.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.compare.candidates import Candidate, parse
from distill.compare.floor import judged
from distill.compare.linked_runs import SHARED, link
from distill.compare.measure import best_throughput
from distill.compare.recipes import distillation, fine_tuning
from distill.evaluation.analysis import Answers
from distill.evaluation.calibration import Calibration, calibrate
from distill.evaluation.metrics import labelled
from distill.heads import columns
from distill.memory import peak_rss_bytes
from distill.models.base import on_device
from distill.models.predict import predict_logits
from distill.models.saved_networks import load_classifier, save_classifier
from distill.pipeline import run as run_recipe
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.stages.export_onnx import export_network, measured_texts
from distill.stages.fit_teacher import teacher_training
from distill.storage import read_json, write_json
from distill.training.devices import make_accelerator
from distill.training.speed import epoch_tokens, step_seconds
from export.bundle.files import read_bundle
from export.runtime.classifier import Classifier
from teachers.checkpoints import EncoderError
from teachers.encoders import load_encoder, load_tokenizer, untrained_encoder


def train(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train a candidate, export it and measure its quality; returns the content of trained.json."""
    recipe, folder = load_recipe(job["recipe"]), Path(job["folder"])
    [candidate] = parse([job["name"]])
    base = Run(recipe, Path(job["base"]), make_accelerator(recipe, folder))
    encoder, problem = _reachable(candidate)
    work = folder / "run"
    if problem and candidate.known:
        found = _untrained(candidate, base, folder)
        calibrations = {head.name: Calibration() for head in artifacts.heads(base)}
        source, tokens = folder / "network", found.pop("tokens")
        found |= {"weights": False, "problem": str(problem)}
        if candidate.how == "distilled":  # which these steps do not stand for
            found |= {"fit_seconds": None, "teacher_seconds": None}
    elif problem:
        raise problem
    else:
        if not work.exists():
            shared = [name for name in SHARED if (base.stage(name) / "stage.json").exists()]
            link(base.folder, work, shared)
        if candidate.how == "distilled":
            own = distillation(recipe, candidate, encoder, job["seed"])
            run_recipe(own, work, last="calibrate")
            done, stage = Run(own, work, base.accelerator), "fit_student"
            calibrations = artifacts.calibrations(done, "student")
            tokens = None
        else:
            own = fine_tuning(recipe, str(encoder), job["seed"])
            run_recipe(own, work, last="fit_teacher")
            done, stage = Run(own, work, base.accelerator), "fit_teacher"
            tokens = artifacts.max_length(done)
            calibrations = _calibrations(done, tokens)
        found = _training(done, stage) | {"weights": True, "encoder": encoder}
        source = done.stage(stage)
    (folder / "export").mkdir(exist_ok=True)
    texts = measured_texts(artifacts.split(base, "train"))
    sizes = export_network(recipe, source, calibrations, folder / "export", tokens, texts=texts)
    found["bytes"] = {name.removesuffix("_bytes"): size for name, size in sizes.items()}
    bundle = folder / "export" / "candidate"
    variants = read_bundle(bundle).variants
    found["variant"] = list(variants)[-1]
    if found["weights"]:
        found["quality"] = {name: _quality(base, bundle, name, calibrations) for name in variants}
    if base.accelerator.device.type == "cuda":
        found |= _gpu_throughput(base, source, tokens, read_json(Path(job["texts"])))
    return found


def _reachable(candidate: Candidate) -> tuple[str | None, EncoderError | None]:
    """The first encoder of the candidate that can be loaded, or why none can."""
    problem = None
    for name in candidate.encoders:
        try:
            load_encoder(name)
        except EncoderError as error:
            problem = error
        else:
            return name, None
    return None, problem


def _training(run: Run[Recipe], stage: str) -> dict[str, Any]:
    """Seconds and peak memory of a training, that of a student with its teacher and its soft labels."""
    record, before = run.record(stage), 0.0
    assert record is not None
    if stage == "fit_student":
        for name in ("fit_teacher", "label"):
            before += (run.record(name) or {"seconds": 0.0})["seconds"]
    return {
        "fit_seconds": record["seconds"] + before,
        "teacher_seconds": before,
        "fit_seconds_estimated": False,
        "train_rss_bytes": record["peak_rss_bytes"],
        "train_gpu_bytes": record.get("peak_gpu_bytes"),
        "parameters": record["metrics"]["parameters"],
    }


def _calibrations(run: Run[Recipe], tokens: int) -> dict[str, Calibration]:
    """The calibration of a fine-tuned encoder on validation."""
    network, tokenizer = artifacts.teacher_network(run)
    texts = network.text_encoder(tokenizer, tokens)(artifacts.texts(run, "validation"))
    logits = predict_logits(network, texts, run.accelerator, exact=True)
    labels = artifacts.labels(run, "validation")
    return {
        head.name: calibrate(head, logits[:, part], labels[head.name])
        for head, part in columns(network.heads)
    }


def _quality(
    run: Run[Recipe], bundle: Path, variant: str, calibrations: Mapping[str, Calibration]
) -> dict[str, Any]:
    """The metrics of each head that has labelled test texts, and the interval of the first."""
    logits = Classifier.load(bundle, variant=variant).logits(artifacts.texts(run, "test"))
    labels, found = artifacts.labels(run, "test"), {}
    for head in artifacts.heads(run):
        known = labels[head.name]
        if not labelled(known, head).any():
            continue
        fitted = calibrations[head.name]
        answers = Answers(head, logits[head.name], fitted.temperature, fitted.thresholds)
        found[head.name] = judged(answers, known)
    return found


def _untrained(candidate: Candidate, base: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Build a candidate from its configuration, with random weights, and time a few steps of its training."""
    known, given, name = candidate.known, base.recipe.teacher, candidate.encoders[0]
    assert known is not None
    if given.networks:
        _, tokenizer = artifacts.teacher_network(base)
    else:
        tokenizer = load_tokenizer(given.encoder, given.sha256)
    own = Run(fine_tuning(base.recipe, name, base.recipe.seed), base.folder, base.accelerator)
    rates = {"dropout": given.dropout, "attention_dropout": given.attention_dropout}
    encoder = untrained_encoder(known.model_type, known.config, tokenizer, **rates)
    (place := folder / "network").mkdir(exist_ok=True)
    network, _, job, about, _ = teacher_training(own, place, (encoder, tokenizer))
    job.folder.mkdir(exist_ok=True)
    seconds = step_seconds(network, job, base.accelerator) * epoch_tokens(job) * (job.settings.epochs or 1)
    save_classifier(network, tokenizer, place)
    return {
        "fit_seconds": seconds,
        "teacher_seconds": 0.0,
        "fit_seconds_estimated": True,
        "train_rss_bytes": peak_rss_bytes(),
        "train_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "parameters": about["parameters"],
        "tokens": about["max_length"],
        "encoder": name,
    }


def _gpu_throughput(run: Run[Recipe], source: Path, tokens: int | None, texts: list[str]) -> dict[str, Any]:
    """Texts per second of the network in torch on the GPU, at the best batch size."""
    network, tokenizer = load_classifier(source)
    encode = network.text_encoder(tokenizer, int(tokens or tokenizer.model_max_length))

    def classify(texts: list[str], size: int) -> None:
        encoded = encode(texts)
        order = np.argsort(encoded.lengths)
        with torch.inference_mode(), run.accelerator.autocast():
            for first in range(0, len(order), size):
                network(on_device(encoded.batch(order[first : first + size]), run.accelerator.device))
        torch.cuda.synchronize()

    network.to(run.accelerator.device)
    best = best_throughput(classify, texts, (torch.cuda.OutOfMemoryError,))
    return {"gpu_throughput": best["throughput"], "gpu_batch_size": best["batch_size"]}


def main(path: Path) -> None:
    """Carry out a job; the last line of stderr says why it failed."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tinyheads").setLevel(logging.INFO)
    job = read_json(path)
    try:
        write_json(Path(job["folder"]) / "trained.json", train(job))
    except Exception as error:
        if (code := getattr(error, "exit_code", None)) is None:
            raise
        print(error, file=sys.stderr)
        raise SystemExit(code) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
