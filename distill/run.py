"""A run, its stages, and the record that marks a stage as done.

One digest identifies a stage's inputs. A stage whose `stage.json` holds that digest is done and is skipped.
A stage that started with the same inputs resumes; any other starts again from nothing. `stage.json` is
written last, so a kill at any moment leaves a stage either done or resumable.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar, cast

import torch
from accelerate import Accelerator
from tqdm import tqdm

R = TypeVar("R", bound="Job")
LOG = logging.getLogger("tinyheads")
PACKAGES = ("tinyheads", "torch", "transformers", "datasets", "accelerate", "onnxruntime", "numpy")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, complete or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def versions() -> dict[str, str]:
    """The installed versions of the packages that a run's results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_rss_bytes() -> int:
    """The peak resident memory of this process so far, 0 where the platform does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
    """What `stage.json` holds; `peak_gpu_bytes` is there on a GPU alone."""

    stage: str
    digest: str
    seed: int
    device: str
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int
    versions: dict[str, str]
    metrics: dict[str, Any]


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
        leaves: A path in the run's folder without which the stage is not done.
    """

    name: str
    function: Callable[[Run[Any], Path], Mapping[str, Any]]
    inputs: tuple[str, ...]
    version: int = 1
    resumes: bool = False
    leaves: str | None = None


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
        return cast("StageRecord | None", read_json(self.stage(name) / "stage.json"))

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

    def do(self, stage: Stage, digest: str, dependents: Sequence[Stage] = ()) -> None:
        """Carry out a stage unless it is done with inputs of this digest.

        Args:
            stage: What to do.
            digest: Of its inputs.
            dependents: Later stages that read what this one leaves. They are removed when it starts again:
                with the same inputs a training may end with other weights, on another number of threads.
        """
        folder, main = self.stage(stage.name), self.accelerator.is_main_process
        record = self.record(stage.name)
        if record and record["digest"] == digest and self._left(stage):
            shutil.rmtree(folder / "scratch", ignore_errors=True)  # a kill may have left it
            self.info(f"{stage.name}: done before, in {record['seconds']:.1f} s")
            return
        if main:
            if stage.resumes and not record and read_json(folder / "begun.json") == {"digest": digest}:
                self.info(f"{stage.name}: resumes where it stopped")
            else:
                (folder / "stage.json").unlink(missing_ok=True)  # first: a half-deleted stage is not done
                shutil.rmtree(folder, ignore_errors=True)
                for dependent in dependents:
                    shutil.rmtree(self.stage(dependent.name), ignore_errors=True)
                folder.mkdir(parents=True)
                write_json(folder / "begun.json", {"digest": digest})
        if stage.resumes:
            self.accelerator.wait_for_everyone()
        start = time.perf_counter()
        metrics = stage.function(self, folder)
        seconds = time.perf_counter() - start
        if main:
            write_json(folder / "stage.json", self._record(stage.name, digest, seconds, metrics))
            shutil.rmtree(folder / "scratch", ignore_errors=True)
        self.info(f"{stage.name}: {seconds:.1f} s")

    def _left(self, stage: Stage) -> bool:
        return stage.leaves is None or (self.folder / stage.leaves).exists()

    def _record(self, name: str, digest: str, seconds: float, metrics: Mapping[str, Any]) -> StageRecord:
        record: StageRecord = {
            "stage": name,
            "digest": digest,
            "seed": self.recipe.seed,
            "device": str(self.accelerator.device),
            "seconds": round(seconds, 2),
            "peak_rss_bytes": peak_rss_bytes(),
            "versions": versions(),
            "metrics": dict(metrics),
        }
        if self.accelerator.device.type == "cuda":
            record["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        return record
