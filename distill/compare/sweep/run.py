"""A sweep: a recipe run with every setting of a grid, compared on validation.

The folder of a sweep:

    begun.json           digests of the recipe and the data that the sweep is of
    study.jsonl          the optuna study: a trial a setting
    base/KEY/            a run up to label, one for each teacher and transfer set
    trials/NAME/seed-N/  a run up to fit_student, which shares the stages of its base
    sweep.json           the result, written after each setting

A setting is finished when the study says so, and a run when its records do. So a sweep that was killed
continues, and one of more values or seeds runs what is new.
"""

from __future__ import annotations

import math
import signal
import statistics
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.compare.folder import claimed, interruptible
from distill.compare.linked_runs import SHARED, LinkError, link
from distill.compare.processes import Processes
from distill.compare.sweep.grid import Setting
from distill.compare.sweep.study import Row, Study
from distill.heads import METRICS
from distill.pipeline import LABEL, TEACHER
from distill.recipe.schema import Recipe
from distill.run import LOG, read_record
from distill.storage import json_digest, write_json
from distill.training.interrupts import Interrupted
from export.runtime.cpus import available_cores

UNLABELLED = (
    "a head has no labels in validation, and the agreement with different teachers cannot be compared (label "
    "validation texts, or set student.metric)"
)


class SweepError(Exception):
    """No setting of a sweep could be run."""

    exit_code = 2


@dataclass(frozen=True)
class Sweep:
    """What to run.

    Attributes:
        recipe: What the values of the settings are set in.
        settings: All settings.
        folder: Of the sweep.
        trials: The number of settings to run; of more, optuna chooses which.
        jobs: The number of settings that run at a time.
    """

    recipe: Recipe
    settings: Sequence[Setting]
    folder: Path
    trials: int
    jobs: int = 1


def run_sweep(about: Sweep) -> dict[str, Any]:
    """Run a sweep, or what is left of it; returns the content of sweep.json.

    Raises:
        RecipeError: The folder holds something else.
        DataError: The data cannot be read.
        RunLockedError: Another sweep works in the folder.
        SweepError: Every setting failed.
        Interrupted: A signal; the sweep continues when it is run again.
    """
    with claimed(about.folder, "sweep", "trials", about.recipe), interruptible():
        study = Study(about.folder / "study.jsonl", about.settings, about.trials, about.recipe.seed)
        if study.rows:
            LOG.info(f"{about.folder}: {len(study.rows)} of {study.total} settings are finished")
        try:
            _run_all(about, study)
        except KeyboardInterrupt as error:
            finished = f"{len(study.rows)} of {study.total} settings are finished"
            raise Interrupted(
                f"{about.folder}: interrupted; {finished} (run the same command to continue)",
                getattr(error, "exit_code", 128 + signal.SIGINT),
            ) from None
        result = _summary(about, study.rows)
        write_json(about.folder / "sweep.json", result)
        if result["best"] is None:
            raise SweepError(f"{about.folder}: every setting failed: {result['rows'][0]['failed']}")
        return result


def best_folder(about: Sweep, result: dict[str, Any]) -> Path:
    """The run of the best setting with the recipe's own seed, which `distill run` completes."""
    values = result["rows"][result["best"]]["settings"]
    setting = next(setting for setting in about.settings if setting.values == values)
    return _place(about, setting, result["seeds"][0])


def _run_all(about: Sweep, study: Study) -> None:
    """Run the settings that are not finished."""
    runner, running = _Runner(about), dict[Future[Row], Any]()
    with ThreadPoolExecutor(about.jobs) as pool:
        try:
            while True:
                while len(running) < about.jobs and (asked := study.ask()):
                    running[pool.submit(runner.measure, about.settings[asked[1]])] = asked
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    trial, number = running.pop(done)
                    row = done.result()
                    study.tell(trial, number, row)
                    LOG.info(f"{len(study.rows)} of {study.total}: {about.settings[number]}: {_found(row)}")
                    write_json(about.folder / "sweep.json", _summary(about, study.rows))
        finally:
            runner.processes.stop()


def _found(row: Row) -> str:
    if row["failed"]:
        return f"failed: {row['failed']}"
    spread = "" if row["sd"] is None else f" ± {row['sd']:.4f}"
    return f"{row['mean']:.4f}{spread}, {row['seconds']:.0f} s"


class _Runner:
    """Runs settings, each in processes of its own."""

    def __init__(self, about: Sweep) -> None:
        self.about, self.processes = about, Processes()
        self.teachers = len({_teacher(setting.recipe) for setting in about.settings})
        self.bases: dict[str, Path | str] = {}
        self.lock = threading.Lock()

    def measure(self, setting: Setting) -> Row:
        """The row of a setting, from a run for each seed."""
        row: Row = {"settings": setting.values, "values": [None] * len(setting.recipes), "failed": None}
        row |= dict.fromkeys(("mean", "sd", "epochs", "seconds", "metric", "texts"))
        base = self._base(setting)
        if isinstance(base, str):
            return row | {"failed": base}
        if (done := read_record(base / "stages/prepare/stage.json")) is None:
            raise LinkError(f"{base}: holds no finished prepare (run the same command again)")
        prepared = done["metrics"]
        labelled = {head: counts["validation"] for head, counts in prepared["labelled"].items()}
        head = (setting.recipe.student.metric or "").partition(".")[0]
        compared = {head: labelled[head]} if head else labelled
        row["texts"] = max(texts or prepared["rows"]["validation"] for texts in compared.values())
        if self.teachers > 1 and not all(compared.values()):
            return row | {"failed": UNLABELLED}
        records = []
        for number, (seed, recipe) in enumerate(setting.recipes.items()):
            folder = _place(self.about, setting, seed)
            if not folder.exists():
                link(base, folder, SHARED)
            if reason := self._run(recipe, folder, "fit_student"):
                return row | {"failed": reason}
            record = read_record(folder / "stages/fit_student/stage.json")
            assert record, f"{folder} has lost its records"
            records.append(record)
            row["metric"] = record["metrics"]["metric"]
            row["values"][number] = record["metrics"]["validation"][row["metric"]]
            if row["values"][number] is None:
                return row | {"failed": "no validation text has a label, so settings cannot be compared"}
        return row | {
            "mean": statistics.fmean(row["values"]),
            "sd": statistics.stdev(row["values"]) if len(records) > 1 else None,
            "epochs": statistics.fmean(record["metrics"]["best_epoch"] for record in records),
            "seconds": round(sum(record["seconds"] for record in records), 1),
        }

    def _base(self, setting: Setting) -> Path | str:
        """The run up to label whose stages a setting's runs share, or why it failed."""
        with self.lock:
            key = _digest(setting.recipe, LABEL)
            if key not in self.bases:
                folder = self._base_folder(setting)
                teacher = _teacher(setting.recipe)
                for other in self.about.settings:
                    if not folder.exists() and _teacher(other.recipe) == teacher:
                        with suppress(LinkError):
                            link(self._base_folder(other), folder, SHARED)
                self.bases[key] = self._run(setting.recipe, folder, "label") or folder
            return self.bases[key]

    def _base_folder(self, setting: Setting) -> Path:
        return self.about.folder / "base" / _digest(setting.recipe, LABEL)[:12]

    def _run(self, recipe: Recipe, folder: Path, last: str) -> str | None:
        threads = max(1, available_cores() // self.about.jobs)
        return self.processes.run(recipe, folder, last, threads=threads)


def _place(about: Sweep, setting: Setting, seed: int) -> Path:
    return about.folder / "trials" / setting.name / f"seed-{seed}"


def _digest(recipe: Recipe, names: Sequence[str]) -> str:
    """The digest of the sections that a stage depends on."""
    return json_digest(recipe.model_dump(mode="json", include={*names}))


def _teacher(recipe: Recipe) -> str:
    """The digest of the sections that the teacher depends on."""
    values = recipe.model_dump(mode="json", include={*TEACHER})
    return json_digest({**values, "data": {**values["data"], "unlabeled": None}})


def _summary(about: Sweep, rows: dict[int, Row]) -> dict[str, Any]:
    """The content of sweep.json: the rows of settings by their number, and which is best on validation.

    A row is `tied` if its mean is within two standard errors of the best one's. The standard error is that of
    a difference of two means over the seeds, from the variance over the seeds, averaged over the settings.
    """
    ordered = [dict(row) for _, row in sorted(rows.items())]
    whole = [row for row in ordered if not row["failed"]]
    seeds = [*about.settings[0].recipes]
    best = max(whole, key=lambda row: float(row["mean"]), default=None)
    error = None
    if best and len(seeds) > 1:
        error = math.sqrt(2 / len(seeds) * statistics.fmean(row["sd"] ** 2 for row in whole))
        least = best["mean"] - 2 * error
    for row in ordered:
        row["tied"] = error is not None and row["mean"] is not None and row["mean"] >= least
    compared = next(((row["metric"], row["texts"]) for row in whole), ("mean", 0))
    for row in ordered:
        del row["metric"], row["texts"]
    return {
        "name": about.recipe.name,
        "metric": _metric_name(about.recipe, compared[0]),
        "split": "validation",
        "texts": compared[1],
        "keys": [*about.settings[0].values],
        "seeds": seeds,
        "standard_error": error,
        "rows": ordered,
        "best": ordered.index(best) if best else None,
    }


def _metric_name(recipe: Recipe, metric: str) -> str:
    if metric == "mean" and len(recipe.heads) > 1:
        return "mean of the heads' first metrics"
    name, head = next(iter(recipe.heads.items()))
    return metric.replace(".", " ") if metric != "mean" else f"{name} {METRICS[head.kind][0]}"
