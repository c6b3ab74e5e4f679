"""A run, its stages, and the record that marks a stage as done.

A stage is done, and is skipped, if its `stage.json` names the same inputs, the same results of the stages
before it, and files that are still as the stage left them. Otherwise it starts again; if its results are then
the same as before, the stages after it stay done. A stage that started with the same inputs resumes.
`stage.json` is written last, so a kill at any moment leaves a stage either done or resumable.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from distill.memory import peak_rss_bytes
from distill.storage import damaged, digests, files_in, json_digest, read_sealed, write_sealed

R = TypeVar("R", bound="Job")
LOG = logging.getLogger("tinyheads")
PACKAGES = ("tinyheads", "torch", "transformers", "datasets", "accelerate", "onnxruntime", "numpy")


def versions() -> dict[str, str]:
    """The installed versions of the packages that a run's results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def progress(total: int, title: str, unit: str, *, done: int = 0, hidden: bool = False) -> tqdm[Any]:
    """A progress bar on stderr, hidden where the logger `tinyheads` is set to warnings."""
    hidden = hidden or LOG.level > logging.INFO
    return tqdm(total=total, initial=done, desc=title, unit=unit, disable=hidden, mininterval=1.0)


class Job(Protocol):
    """The part of a recipe that a run reads."""

    @property
    def name(self) -> str:
        """The name of the run."""

    @property
    def seed(self) -> int:
        """The seed of the run."""


class StageRecord(TypedDict, total=False):
    """What `stage.json` holds; `peak_gpu_bytes` is there on a GPU alone.

    `inputs` are the digest of settings, data and weights, and the `results` of the stages before. `files` are
    the sha256 of what the stage left, by path in the run's folder. Later stages depend on `results`.
    """

    stage: str
    inputs: dict[str, Any]
    files: dict[str, str]
    results: str
    seed: int
    device: str
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int
    versions: dict[str, str]
    metrics: dict[str, Any]


def read_record(path: Path) -> StageRecord | None:
    """The record of a stage, None if it is missing or damaged."""
    return cast("StageRecord | None", read_sealed(path))


def is_current(record: StageRecord, records: Mapping[str, StageRecord]) -> bool:
    """Whether a stage was made from the results that the stages before it have now."""
    after: dict[str, str] = record["inputs"]["after"]
    return all(name in records and records[name]["results"] == results for name, results in after.items())


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: The folder of the stage, `stages/NAME`.
        function: Called with the run and the stage's folder; returns its metrics, JSON values. It may keep
            temporary files in `scratch`, which is removed when the stage is done.
        inputs: The names of everything that the result depends on. A change of one redoes the stage.
        version: Raised when the function's results change in meaning; redoes the stage and those after it.
        resumes: Whether a stopped stage continues in its folder and every process takes part.
        leaves: The paths of what it leaves outside its folder, and what no other stage reads.
    """

    name: str
    function: Callable[[Run[Any], Path], Mapping[str, Any]]
    inputs: tuple[str, ...]
    version: int = 1
    resumes: bool = False
    leaves: Callable[[Run[Any]], Sequence[Path]] = lambda run: ()


@dataclass(frozen=True)
class Run(Generic[R]):
    """A recipe that runs in a folder, and the devices it runs on."""

    recipe: R
    folder: Path
    accelerator: Accelerator

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.folder / "stages" / name

    def record(self, name: str) -> StageRecord | None:
        """The record of a finished stage, whatever its inputs were; None if it is not finished."""
        return read_record(self.stage(name) / "stage.json")

    def metrics(self, name: str) -> dict[str, Any]:
        """The metrics of a finished stage."""
        record = self.record(name)
        assert record is not None, f"stage {name} is not finished"
        return record["metrics"]

    def info(self, line: str) -> None:
        """Log a line, once for all processes."""
        if self.accelerator.is_main_process:
            LOG.info(line)

    def progress(self, total: int, title: str, unit: str) -> tqdm[Any]:
        """A progress bar on stderr, for all processes together."""
        return progress(total, title, unit, hidden=not self.accelerator.is_main_process)

    @contextmanager
    def tracked(self, name: str) -> Iterator[None]:
        """Trackers of one training: some refuse steps that begin again at 1."""
        self.accelerator.init_trackers(f"{self.recipe.name}-{name}")
        try:
            yield
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []

    def chosen(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The values that finished stages chose for settings that the recipe left open, by section."""
        values: dict[str, dict[str, Any]] = {}
        for name in names:
            record = self.record(name)
            for section, settings in (record["metrics"].get("chosen", {}) if record else {}).items():
                values.setdefault(section, {}).update(settings)
        return values

    def do(
        self, stage: Stage, digest: str, after: Sequence[str] = (), equal_digest: str | None = None
    ) -> None:
        """Carry out a stage unless it is done with these inputs.

        Args:
            stage: What to do.
            digest: Of its settings, data and weights.
            after: The names of the earlier stages whose results it reads. With the same inputs a training may
                end with other weights, on another number of threads.
            equal_digest: Of other settings that describe the same run.
        """
        folder, main = self.stage(stage.name), self.accelerator.is_main_process
        inputs = {"digest": digest, "after": {name: self._results(name) for name in after}}
        either = inputs, {**inputs, "digest": equal_digest or digest}
        done = main and self._is_done(stage, either)
        if stage.resumes:
            (done,) = broadcast_object_list([done])  # files of one process may be newer than another's
        if done:
            return
        old = self.folder / "stages" / ".old" / stage.name
        if main:
            shutil.rmtree(old.parent, ignore_errors=True)  # of a killed process
            if not stage.resumes and folder.exists():
                old.parent.mkdir()
                folder.rename(old)
            inputs = self._begin(stage, either)
        if stage.resumes:
            self.accelerator.wait_for_everyone()
        start = time.perf_counter()
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            metrics = dict(stage.function(self, folder))
        except BaseException:
            if main and old.exists():  # what an earlier command made stays, whatever is wrong with this one
                shutil.rmtree(folder)
                old.rename(folder)
                old.parent.rmdir()
            raise
        # what a training that was stopped had taken before
        seconds = time.perf_counter() - start + metrics.pop("earlier_seconds", 0.0)
        if main:
            write_sealed(folder / "stage.json", self._record(stage, inputs, seconds, metrics))
            shutil.rmtree(folder / "scratch", ignore_errors=True)
            shutil.rmtree(old.parent, ignore_errors=True)
        self.info(f"{stage.name}: {seconds:.1f} s")

    def keep(self, path: Path) -> None:
        """Keep a file of a stage that is not done yet for when the stage is stopped and resumes."""
        begun = self.stage(path.relative_to(self.folder / "stages").parts[0]) / "begun.json"
        content = read_sealed(begun)
        assert content is not None, f"{begun} is not of this process"
        content["files"] |= digests(self.folder, [path])
        write_sealed(begun, content)

    def _is_done(self, stage: Stage, either: Sequence[dict[str, Any]]) -> bool:
        folder = self.stage(stage.name)
        record = self.record(stage.name)
        if record is None:
            if (folder / "stage.json").exists():
                self.info(
                    f"{folder / 'stage.json'}: is damaged or of another version, so {stage.name} is run again"
                )
            return False
        if record["inputs"] not in either:
            return False
        if wrong := damaged(self.folder, record["files"]):
            (name, what), more = next(iter(wrong.items())), len(wrong) - 1
            others = f" ({more} more files too)" if more else ""
            self.info(f"{self.folder / name}: {what}{others}, so {stage.name} is run again")
            return False
        for leftover in (folder / "scratch", folder.parent / ".old"):  # of a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        self.info(f"{stage.name}: done before, in {record['seconds']:.1f} s")
        return True

    def _begin(self, stage: Stage, either: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Empty the folder of a stage, but for what a stopped stage of the same inputs goes on with.

        Returns the inputs that the stage has begun with.
        """
        folder = self.stage(stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        stopped = not (folder / "stage.json").exists()
        (folder / "stage.json").unlink(missing_ok=True)  # first: a half-deleted stage is not done
        begun = read_sealed(folder / "begun.json")
        if begun is None and (folder / "begun.json").exists():
            self.info(
                f"{folder / 'begun.json'}: is damaged or of another version, so {stage.name} starts from "
                "the beginning"
            )
        resumes, kept, inputs = False, {}, either[0]
        if stage.resumes and begun and begun["inputs"] in either:
            resumes, inputs = True, begun["inputs"]
            wrong = damaged(self.folder, begun["files"])
            for name, what in wrong.items():
                self.info(f"{self.folder / name}: {what}, so it is made again")
            kept = {name: digest for name, digest in begun["files"].items() if name not in wrong}
            if stopped:
                self.info(f"{stage.name}: resumes where it stopped")
        write_sealed(folder / "begun.json", {"inputs": inputs, "files": kept})
        stay = {folder / "begun.json", *(self.folder / name for name in kept)}
        for path in {*folder.iterdir()} - (stay | {folder / "scratch"} if resumes else stay):
            if path.is_dir() and not any(path in file.parents for file in stay):
                shutil.rmtree(path)
            else:
                for file in {*files_in(path)} - stay:
                    file.unlink()
        return inputs

    def _results(self, name: str) -> str:
        record = self.record(name)
        assert record is not None, f"stage {name} is not finished"
        return record["results"]

    def _record(
        self, stage: Stage, inputs: dict[str, Any], seconds: float, metrics: dict[str, Any]
    ) -> StageRecord:
        own = digests(self.folder, files_in(self.stage(stage.name)))
        others = (file for path in stage.leaves(self) for file in files_in(path))
        record: StageRecord = {
            "stage": stage.name,
            "inputs": inputs,
            "files": own | digests(self.folder, others),
            "results": json_digest(own or metrics),
            "seed": self.recipe.seed,
            "device": str(self.accelerator.device),
            "seconds": round(seconds, 2),
            "peak_rss_bytes": peak_rss_bytes(),
            "versions": versions(),
            "metrics": metrics,
        }
        if self.accelerator.device.type == "cuda":
            record["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        return record
