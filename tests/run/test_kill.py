"""kill -9 in the middle of a stage, then the same command again: it ends as an unbroken run does."""

import json
import re
import signal
import subprocess
import time

import pytest

from tests.run.conftest import COMMAND, ENVIRONMENT, ROOT

pytestmark = pytest.mark.exporting

MOMENTS = {
    "fit_teacher": "stages/fit_teacher/scratch/checkpoint.safetensors",
    "label": "soft_labels/*/shard-*.safetensors",
    "fit_student": "stages/fit_student/scratch/checkpoint.safetensors",
    "export": "stages/export/onnx/model.onnx",
}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_training_after_its_checkpoint_is_saved(job, finished, run_distill, tmp_path, name):
    run = tmp_path / "run"
    words = ["run", str(job), "--out", str(run)]
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
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
    done = run_distill("run", job, "--out", run, "--json")
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
