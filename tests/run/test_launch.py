"""Two processes, as torchrun and `accelerate launch` start them: each takes its share of a long stage."""

import json

import pytest

pytestmark = pytest.mark.exporting


def test_two_processes_share_one_run(job, run_distill, finished, tmp_path):
    run = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    match = ["--set", "match.hidden=1"]  # whose projections both must share
    done = run_distill("run", job, "--out", run, *match, "--json", launcher=launcher)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, "only the first process prints the report"
    for head, figures in json.loads(lines[0])["heads"].items():
        for form, quality in figures["test"].items():
            assert next(iter(quality.values())) > 0.9, (head, form, quality)
    steps = [
        json.loads((folder / "stages/fit_student/stage.json").read_text("utf-8"))["metrics"]["steps"]
        for folder in (run, finished["folder"])
    ]
    assert steps[0] < 0.6 * steps[1], "each step takes a batch of either process"
