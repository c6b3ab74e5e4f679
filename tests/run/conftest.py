"""One small job, run once by the real command; the tests of this folder read what it left."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.recipe.load import dump_yaml

ROOT = Path(__file__).parents[2]
MODULE = ["-m", "distill.cli.main"]
COMMAND = [sys.executable, *MODULE]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def toy_recipe(teacher: Path) -> dict:
    shape = {"layers": 1, "hidden": 16, "attention_heads": 2}
    return {
        "name": "toy",
        "data": {
            "train": "train.csv",
            "validation": {"from": "train", "fraction": 0.2},
            "test": "test.csv",
            "unlabeled": ["inbox.txt"],
        },
        "heads": {
            "intent": {"column": "intent"},
            "flags": {"column": "flags", "kind": "multi_label", "none": "none"},
        },
        "teacher": {"encoder": str(teacher), "epochs": 10, "lr": 5e-3},
        "augment": {"copies": 2},
        "student": {
            **shape,
            "epochs": 8,
            "lr": 1e-2,
            "batch_size": 32,
            "dropout": 0.1,
        },
        "export": {"max_length": 32},
        "gates": {"int8_drop": 0.05},
        "precision": "no",
        "checkpoint_every": 7,
        "trackers": [],
    }


@pytest.fixture(scope="session")
def write_csv(toy_corpus, toy_heads):
    """A function (path, rows, seed) that writes the toy corpus, a tenth of it without an intent."""

    def write(path: Path, rows: int, seed: int) -> None:
        corpus = toy_corpus(rows, seed)
        intents, flags = (head.labels for head in toy_heads)
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["text", "intent", "flags"])
            for number, text in enumerate(corpus.texts):
                said = [f for f, yes in zip(flags, corpus.labels["flags"][number], strict=True) if yes]
                intent = "" if number % 10 == 0 else intents[corpus.labels["intent"][number]]
                out.writerow([text, intent, "|".join(said) or "none"])

    return write


@pytest.fixture(scope="session")
def job(tmp_path_factory, write_csv, tiny_encoder_folder) -> Path:
    """The recipe of the small job, beside its data."""
    folder = tmp_path_factory.mktemp("job")
    teacher = tiny_encoder_folder(folder, hidden=32, layers=2)
    write_csv(folder / "train.csv", 600, 1)
    write_csv(folder / "test.csv", 90, 2)
    (folder / "inbox.txt").write_text("the box is late please\nwe love the box\nrefund my order\n", "utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_yaml(toy_recipe(teacher)), "utf-8")
    return recipe


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory, write_csv, tiny_encoder_folder) -> Path:
    """The recipe of a job that runs in two seconds, beside its data."""
    folder = tmp_path_factory.mktemp("tiny-job")
    write_csv(folder / "train.csv", 60, 1)
    write_csv(folder / "test.csv", 24, 2)
    (folder / "inbox.txt").write_text("the box is late please\nwe love the box\nrefund my order\n", "utf-8")
    recipe = toy_recipe(tiny_encoder_folder(folder))
    recipe["teacher"]["epochs"] = recipe["student"]["epochs"] = 2
    recipe["gates"] = {"parity": 0.01, "allow": ["intent", "flags"]}
    recipe |= {"augment": {"copies": 1}, "checkpoint_every": 2}
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(recipe), "utf-8")
    return path


@pytest.fixture(scope="session")
def run_distill():
    """A function that runs the command in a process of its own: `run_distill("predict", bundle)`."""

    def run(*arguments, launcher=(), environment=None) -> subprocess.CompletedProcess:
        command = [sys.executable, *launcher, *MODULE, *map(str, arguments)]
        quiet = {"capture_output": True, "text": True, "encoding": "utf-8"}
        environment = {**ENVIRONMENT, **(environment or {})}
        return subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=900, **quiet)

    return run


@pytest.fixture(scope="session")
def finished(job, run_distill) -> dict:
    """The small job, run: the folder of the run, what was printed, the report."""
    run = job.parent / "run"
    done = run_distill("run", job, "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    return {"folder": run, "stdout": done.stdout, "stderr": done.stderr, "report": report}


@pytest.fixture(scope="session")
def start_distill():
    """A function that starts the command, which Ctrl-C can interrupt; returns the process."""

    def start(*arguments) -> subprocess.Popen:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
        )

    return start


@pytest.fixture
def kill_when():
    """A function that runs the command and kills it (kill -9) once a file matching a pattern is there."""

    def start_and_kill(pattern: str, folder: Path, *arguments) -> bool:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, **quiet)
        while process.poll() is None:
            if any(folder.glob(pattern)):
                process.kill()
                process.wait()
                return True
            time.sleep(0.001)
        return False

    return start_and_kill
