"""A run, its stages, and the record that says a stage is done.

A stage's inputs are known by one digest. A folder whose `stage.json` bears that digest is done and is
skipped; one begun with the same inputs goes on where it was; any other is begun anew. `stage.json` is
written last, so a kill at any moment leaves a stage either done or to be gone on with.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

PACKAGES = ("tinyheads", "torch", "transformers", "datasets", "accelerate", "onnxruntime", "numpy")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write; renamed to it at the end, removed on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def versions() -> dict[str, str]:
    """The installed versions of what decides a run's figures."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_rss_bytes() -> int:
    """The most memory this process has held so far; 0 where the platform does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Run:
    """A recipe being run in a folder, and the devices it runs on."""

    recipe: Any  # a Recipe, or a Pretraining
    folder: Path
    accelerator: Any

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.folder / "stages" / name

    def done(self, name: str) -> bool:
        """Whether a stage was finished, of whatever inputs."""
        return (self.stage(name) / "stage.json").exists()

    def figures(self, name: str) -> dict[str, Any]:
        """The figures of a finished stage."""
        return dict(read_json(self.stage(name) / "stage.json")["figures"])

    def say(self, line: str) -> None:
        """Print a line for people."""
        if self.accelerator.is_main_process:
            print(line, file=sys.stderr, flush=True)

    def progress(self, total: int, what: str, unit: str) -> Any:
        """A progress bar for people."""
        hidden = not self.accelerator.is_main_process
        return tqdm(total=total, desc=what, unit=unit, disable=hidden, mininterval=1.0)

    @contextmanager
    def tracked(self, name: str) -> Iterator[None]:
        """Trackers of a training of their own: some refuse steps that begin again at 1."""
        self.accelerator.init_trackers(f"{self.recipe.name}-{name}")
        try:
            yield
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []

    def seed_of(self, training: Any) -> int:
        """The seed of the recipe's `teacher` or `student`: its own, or the recipe's."""
        return int(self.recipe.seed if training.seed is None else training.seed)

    def seed_everything(self, training: Any) -> None:
        """Seed what draws a training's initial weights."""
        set_seed(self.seed_of(training))

    def do(
        self, name: str, digest: str, work: Callable[[Run, Path], Mapping[str, Any]], *, long: bool = False
    ) -> None:
        """Do a stage unless it is done.

        Args:
            name: Of the stage.
            digest: Of its inputs.
            work: Called with the run and the stage's folder; returns the figures, JSON values. What it
                keeps in `scratch` there goes when the stage is done.
            long: Go on in the folder of a stage that was stopped, and wait for other processes.
        """
        folder, main = self.stage(name), self.accelerator.is_main_process
        done = read_json(folder / "stage.json")
        if done and done["digest"] == digest:
            shutil.rmtree(folder / "scratch", ignore_errors=True)  # a kill may have left it
            self.say(f"{name}: done before, in {done['seconds']:.1f} s")
            return
        if main:
            if long and read_json(folder / "begun.json") == {"digest": digest}:
                self.say(f"{name}: goes on where it was stopped")
            else:
                (folder / "stage.json").unlink(missing_ok=True)  # first: what is half gone is not done
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_json(folder / "begun.json", {"digest": digest})
        if long:
            self.accelerator.wait_for_everyone()
        start = time.perf_counter()
        figures = work(self, folder)
        seconds = time.perf_counter() - start
        if main:
            record = {
                "stage": name,
                "digest": digest,
                "seed": self.recipe.seed,
                "device": str(self.accelerator.device),
                "seconds": round(seconds, 2),
                "peak_rss_bytes": peak_rss_bytes(),
                "versions": versions(),
                "figures": figures,
            }
            if self.accelerator.device.type == "cuda":
                record["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
            write_json(folder / "stage.json", record)
            shutil.rmtree(folder / "scratch", ignore_errors=True)
        self.say(f"{name}: {seconds:.1f} s")
