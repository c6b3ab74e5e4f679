"""kill -9 in the middle of a stage, then the same command again: it ends as an unbroken run does."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.run.conftest import ENVIRONMENT, ROOT

pytestmark = pytest.mark.exporting

MOMENTS = {
    "fit_teacher": "stages/fit_teacher/scratch/checkpoint.safetensors",
    "label": "soft_labels/*/shard-*.safetensors",
    "fit_student": "stages/fit_student/scratch/checkpoint.safetensors",
    "export": "stages/export/onnx/model.onnx",
}


@pytest.mark.parametrize(("name", "own"), [("SIGINT", False), ("SIGTERM", True)])
def test_a_signal_ends_a_training_after_its_checkpoint_is_saved(
    job, finished, run_distill, start_distill, tmp_path, name, own
):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    words = ["run", str(job), "--out", str(run), "--from", "fit_student"]
    process = start_distill(*words)
    while not (run / "stages/fit_student/scratch/checkpoint.safetensors").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(getattr(signal, name))
    error = process.stderr.read().decode()
    assert process.wait() == 128 + getattr(signal, name), error
    last = error.splitlines()[-1]
    assert re.match(r"distill: student: stopped after step \d+ of \d+, whose checkpoint is saved", last), (
        error
    )
    assert "Traceback" not in error
    done = run_distill("run", run / "recipe.yaml" if own else job, "--out", run, "--json")
    assert "fit_student: resumes where it stopped" in done.stderr
    assert json.loads(done.stdout)["heads"] == finished["report"]["heads"]


def test_killed_in_every_long_stage_and_still_the_same(job, finished, kill_when, run_distill, tmp_path):
    run = tmp_path / "run"
    for stage, pattern in MOMENTS.items():
        assert kill_when(pattern, run, "run", job, "--out", run), f"never came to {stage}"
        assert not (run / "stages" / stage / "stage.json").exists()
    done = run_distill("run", job, "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["heads"] == finished["report"]["heads"]
    for stage in ("fit_teacher", "fit_student"):
        weights = [
            (f / "stages" / stage / "model.safetensors").read_bytes() for f in (run, finished["folder"])
        ]
        assert weights[0] == weights[1], stage
    assert not list(run.rglob("*.tmp")), "a temporary file was left"


# Runs the job in a fork that kills itself at a rename, then the same command again, and compares the bundles.
KILL_AT_RENAMES = """
import faulthandler, os, shutil, signal, sys
from pathlib import Path
import distill.pipeline, export.graph.quantize, export.graph.to_onnx  # once, for all forks
from distill.cli.main import main

recipe, folder, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


def run(out, kill_at=0):
    renames = []

    def hook(event, arguments):
        if event == "os.rename":
            renames.append(arguments)
            if len(renames) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    faulthandler.dump_traceback_later(120, exit=True)
    sys.addaudithook(hook)
    status = main(["run", recipe, "--out", str(out), "-q"])
    (folder / "renames").write_text(str(len(renames)))
    os._exit(status)


def bundle(out):
    files = (path for path in (out / "bundle").rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


assert run(folder / "whole") == 0
expected, count, killed = bundle(folder / "whole"), int((folder / "renames").read_text()), 0
for number in range(1, count + 1, step):
    out = folder / str(number)
    assert run(out, number) == signal.SIGKILL, f"rename {number} of {count}: not killed"
    assert run(out) == 0, f"rename {number} of {count}: the second run failed"
    found = bundle(out)
    assert found.keys() == expected.keys(), found.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, f"rename {number} of {count}: {different} differ"
    left = [*out.rglob(".*.tmp"), *out.rglob(".*.tmp-*"), *out.rglob(".*.old-*"), *out.rglob("scratch")]
    assert not left, f"rename {number} of {count}: {left} are left"
    shutil.rmtree(out)
    killed += 1
print(f"killed at {killed} of {count} renames")
"""


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"])
def test_killed_at_renames_and_still_the_same_bundle(tiny_job, tmp_path, step):
    command = [sys.executable, "-W", "ignore", "-c", KILL_AT_RENAMES, tiny_job, tmp_path, str(step)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
