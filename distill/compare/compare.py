"""`distill compare`: candidates trained and measured on a recipe's data, in one table.

Each candidate is trained in a process of its own and measured in others, so that their peak memory is theirs
and a crash costs one row. All are trained first; then each is measured alone. OUT/candidates/NAME/seed-N
holds what a candidate left: trained.json, measured.json, its bundle, its logs. What is there is not done
again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.compare.candidates import Candidate
from distill.compare.folder import claimed, interruptible
from distill.compare.page import write_page
from distill.compare.processes import Processes
from distill.data.dataset import hard_labels, load_heads, load_split
from distill.evaluation.metrics import labelled
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Recipe
from distill.run import LOG
from distill.storage import read_json, write_json
from distill.training.interrupts import Interrupted
from export.runtime.cpus import available_cores
from export.runtime.doctor import cpu

TEXTS = 2000  # test texts that speed is measured on, in random order
UNMEASURED = -1  # in place of a seed: trained, but not measured


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        recipe: The data, the teacher of distilled candidates, and the settings of every training.
        folder: Of everything that the comparison writes.
        candidates: In the order of the table.
        seeds: Of every training; each is a run.
        jobs: Candidates that are trained at once, on shares of the processors.
        budget_ms: Milliseconds that one text may take, median.
        budget_mb: Megabytes that the served model file may have.
    """

    recipe: Recipe
    folder: Path
    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    jobs: int = 1
    budget_ms: float | None = None
    budget_mb: float | None = None

    @property
    def base(self) -> Path:
        """The run that prepares the data and teaches the distilled candidates."""
        return self.folder / "base"

    def place(self, candidate: Candidate, seed: int) -> Path:
        """The folder of one training of a candidate."""
        return self.folder / "candidates" / candidate.slug / f"seed-{seed}"


def compare(comparison: Comparison) -> dict[str, Any]:
    """Train and measure what is not done; returns the table, which is also written with its pages.

    Raises:
        RecipeError: The recipe has no labelled training texts, or the folder holds another comparison.
    """
    recipe, folder = comparison.recipe, comparison.folder
    if recipe.data.train is None:
        raise RecipeError("compare: data.train: is required, as candidates are fine-tuned on labelled texts")
    with claimed(folder, "comparison", "candidates", recipe), interruptible(), Processes() as processes:
        try:
            failed = _run_all(comparison, processes)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"{folder}: interrupted (run the same command to continue)",
                getattr(error, "exit_code", 128 + signal.SIGINT),
            ) from None
        table = _table(comparison, failed)
        write_json(folder / "table.json", table)
        write_page(table, folder)
    return table


def _run_all(comparison: Comparison, processes: Processes) -> dict[tuple[str, int], str]:
    """Train and measure what is not done; returns why a seed of a candidate failed."""
    _choose_hub(comparison)
    distils = any(candidate.how == "distilled" for candidate in comparison.candidates)
    # adopted networks lend their tokenizer to candidates without weights
    adopts = bool(comparison.recipe.teacher.networks)
    last, cores = "label" if distils else "fit_teacher" if adopts else "prepare", available_cores()
    LOG.info(f"{comparison.base}: {last}, log in {comparison.base}.log")
    if reason := processes.run(comparison.recipe, comparison.base, last, threads=cores):
        raise RecipeError(reason)
    _write_texts(comparison)
    # students first and the largest of them first, as they take longest
    order = sorted(comparison.candidates, key=lambda one: -one.layer_weights)
    pairs = [(one, seed) for seed in comparison.seeds for one in order]
    with ThreadPoolExecutor(comparison.jobs) as executor:
        try:
            found = [executor.submit(_train, comparison, *pair, processes) for pair in pairs]
            reasons = [one.result() for one in found]
        except BaseException:
            processes.stop()
            raise
    failed = {(one.name, seed): reason for (one, seed), reason in zip(pairs, reasons, strict=True) if reason}
    for one in comparison.candidates:
        seed = next((seed for seed in comparison.seeds if (one.name, seed) not in failed), None)
        # one seed stands for all
        if seed is not None and (reason := _measure(comparison, one, seed, processes)):
            failed[one.name, UNMEASURED] = reason
    return failed


def _choose_hub(comparison: Comparison) -> None:
    """Work offline where the hub cannot be reached, as each encoder would wait for it again."""
    names = [name for one in comparison.candidates for name in one.encoders]
    local = all(name.startswith("package:") or Path(name).is_dir() for name in names)
    if not local and "HF_HUB_OFFLINE" not in os.environ and not _hub_answers():
        LOG.warning("the hub cannot be reached: encoders that are not on this machine have no weights")
        os.environ["HF_HUB_OFFLINE"] = "1"


def _hub_answers() -> bool:
    """Whether the hub answers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # requests and httpx have no common base
        return False
    return True


def _write_texts(comparison: Comparison) -> None:
    texts = load_split(comparison.base / "stages" / "prepare", "test")["text"]
    order = np.random.default_rng(0).permutation(len(texts))[:TEXTS]
    write_json(comparison.folder / "texts.json", [texts[int(i)] for i in order])


def _train(comparison: Comparison, candidate: Candidate, seed: int, processes: Processes) -> str | None:
    """Train a candidate unless it is trained; returns why it failed."""
    place = comparison.place(candidate, seed)
    place.mkdir(parents=True, exist_ok=True)
    if read_json(place / "trained.json") is not None:
        LOG.info(f"{candidate.name}, seed {seed}: trained before")
        return None
    job = {
        "name": candidate.name,
        "seed": seed,
        "recipe": f"{comparison.base}.yaml",
        "base": str(comparison.base),
        "folder": str(place),
        "result": str(place / "trained.json"),
    }
    if candidate.how != "floor":
        job["texts"] = str(comparison.folder / "texts.json")
    write_json(place / "job.json", job)
    log, threads = place / "train.log", max(1, available_cores() // comparison.jobs)
    LOG.info(f"{candidate.name}, seed {seed}: training, log in {log}")
    module = "distill.compare.floor" if candidate.how == "floor" else "distill.compare.worker"
    reason = processes.module(module, [place / "job.json"], log, threads=threads, folder=place / "run")
    LOG.info(f"{candidate.name}, seed {seed}: {f'failed: {reason}' if reason else 'trained'}")
    return reason


def _measure(comparison: Comparison, candidate: Candidate, seed: int, processes: Processes) -> str | None:
    """Measure the speed and memory of a trained candidate unless it is measured; returns why it failed."""
    place = comparison.place(candidate, seed)
    if read_json(place / "measured.json") is not None:
        return None
    trained = read_json(place / "trained.json")
    LOG.info(f"{candidate.name}: measuring")
    if candidate.how == "floor":
        job: dict[str, Any] = {
            "base": str(comparison.base),
            "texts": str(comparison.folder / "texts.json"),
            "result": str(place / "measured.json"),
        }
        write_json(place / "measure.json", job)
        return processes.module(
            "distill.compare.floor",
            [place / "measure.json"],
            place / "measure.log",
            threads=available_cores(),
            folder=place,
        )
    found: dict[str, Any] = {}
    for variant in dict.fromkeys((trained["variant"], "fp32")):
        result, cores = place / f"measured-{variant}.json", available_cores()
        job = {
            "bundle": str(place / "export" / "candidate"),
            "variant": variant,
            "threads": cores,
            "texts": str(comparison.folder / "texts.json"),
            "latency_only": bool(found),
            "result": str(result),
        }
        write_json(place / "measure.json", job)
        log = place / "measure.log"
        if reason := processes.module(
            "distill.compare.measure", [place / "measure.json"], log, threads=cores, folder=place
        ):
            return reason
        found[variant] = read_json(result)
    served = found[trained["variant"]]
    latency = {**served["latency_ms"], "fp32_p50": found["fp32"]["latency_ms"]["p50"]}
    write_json(place / "measured.json", {**served, "latency_ms": latency})
    return None


def _table(comparison: Comparison, failed: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    """The table, as table.json holds it."""
    prepared = comparison.base / "stages" / "prepare"
    heads = load_heads(prepared)
    test = load_split(prepared, "test")
    labels = hard_labels(test, heads)
    rows = [_row(comparison, one, failed) for one in comparison.candidates]
    return {
        "name": comparison.recipe.name,
        "head_names": [head.name for head in heads],
        "metrics": {head.name: head.first_metric for head in heads},
        "texts": {
            "train": len(load_split(prepared, "train")),
            "test": {head.name: int(labelled(labels[head.name], head).sum()) for head in heads},
        },
        "machine": {
            "cpu": cpu()["model"],
            "threads": available_cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "budget": {"ms": comparison.budget_ms, "mb": comparison.budget_mb},
        "rows": rows,
    }


def _row(
    comparison: Comparison, candidate: Candidate, failed: Mapping[tuple[str, int], str]
) -> dict[str, Any]:
    """The row of a candidate over its seeds."""
    places = {seed: comparison.place(candidate, seed) for seed in comparison.seeds}
    trained = {
        seed: found
        for seed, place in places.items()
        if (candidate.name, seed) not in failed and (found := read_json(place / "trained.json"))
    }
    reasons = [reason for (name, _), reason in failed.items() if name == candidate.name]
    row: dict[str, Any] = {
        "candidate": candidate.name,
        "how": candidate.how,
        "seeds": list(trained),
        "failed": reasons[0] if reasons else None,
    }
    first: dict[str, Any] = next(iter(trained.values()), {})
    measured = read_json(places[next(iter(trained))] / "measured.json") if trained else None
    measured = measured or {}
    known = [one for one in trained.values() if one["weights"]]
    latency, size = measured.get("latency_ms"), first.get("bytes", {})
    row |= {
        "encoder": first.get("encoder"),
        "parameters": first.get("parameters"),
        "bytes": {"fp32": size.get("fp32"), "int8": size.get("int8")},
        "fit_seconds": _mean([one["fit_seconds"] for one in trained.values()]),
        "teacher_seconds": _mean([one["teacher_seconds"] for one in trained.values()]),
        "fit_seconds_estimated": first.get("fit_seconds_estimated", False),
        "train_rss_bytes": max((one["train_rss_bytes"] for one in trained.values()), default=None),
        "train_gpu_bytes": first.get("train_gpu_bytes"),
        "inference_rss_bytes": measured.get("rss_bytes"),
        "latency_ms": {"p50": None, "p99": None, "fp32_p50": None, **(latency or {})},
        "throughput": measured.get("throughput"),
        "batch_size": measured.get("batch_size"),
        "gpu_throughput": first.get("gpu_throughput"),
        "gpu_batch_size": first.get("gpu_batch_size"),
        "weights": bool(first.get("weights")),
        "quality": _over_seeds([one["quality"][one["variant"]] for one in known]),
        "quality_fp32": _over_seeds([one["quality"]["fp32"] for one in known]),
    }
    served = size.get("int8") or size.get("fp32")
    row["fits"] = _fits(comparison, latency, served)
    return row


def _over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The quality of each head: the mean over seeds, each seed's value, and the mean interval over texts."""
    return {
        head: {
            "value": _mean([one[head]["value"] for one in found]),
            "low": _mean([one[head]["low"] for one in found]),
            "high": _mean([one[head]["high"] for one in found]),
            "seeds": [one[head]["value"] for one in found],
        }
        for head in (found[0] if found else ())
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _fits(comparison: Comparison, latency: Mapping[str, float] | None, served: int | None) -> bool | None:
    """Whether a candidate fits all budgets; None without budgets, or if what decides was not measured."""
    pairs = (
        (comparison.budget_ms, latency["p50"] if latency else None),
        (comparison.budget_mb, served / 1e6 if served else None),
    )
    fits = [None if found is None else found <= limit for limit, found in pairs if limit is not None]
    return None if not fits or (None in fits and False not in fits) else all(fits)
