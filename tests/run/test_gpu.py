"""The small job on a GPU, in each of its precisions."""

import json

import numpy as np
import pytest
import torch

from distill.cli.main import main
from distill.models.base import on_device
from distill.training import loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA finds"),
]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_small_job_on_a_gpu(job, tmp_path, capfd, precision):
    words = ["--set", f"precision={precision}", "--to", "fit_student"]
    assert main(["run", str(job), "--out", str(tmp_path / "run"), "--json", *words]) == 0
    figures = json.loads(capfd.readouterr().out)["metrics"]
    assert figures["validation"]["intent.accuracy"] > 0.8
    record = json.loads((tmp_path / "run/stages/fit_student/stage.json").read_text("utf-8"))
    assert record["device"].startswith("cuda") and record["peak_gpu_bytes"] > 0


def test_graphs_compute_what_single_kernels_do(job, tmp_path, monkeypatch):
    losses = {}
    for graphs in (True, False):
        out = tmp_path / str(graphs)
        monkeypatch.setattr(loop, "graphs_fit", lambda *_, graphs=graphs: graphs)
        assert main(["run", str(job), "--out", str(out), "--to", "fit_student"]) == 0
        record = json.loads((out / "stages/fit_student/stage.json").read_text("utf-8"))
        losses[graphs] = record["metrics"]["losses"]["loss"]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


def test_a_batch_arrives_whole_while_the_gpu_is_busy():
    torch.cuda._sleep(1_000_000_000)  # cycles: the copies queue behind it
    arrays = {str(number): np.full((64, 128), number) for number in range(50)}
    moved = on_device(arrays, torch.device("cuda")).values()
    assert [int(tensor.min()) for tensor in moved] == [int(tensor.max()) for tensor in moved] == [*range(50)]
