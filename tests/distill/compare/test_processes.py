"""Processes of a comparison: one whose parent was killed ends before its work begins again."""

import subprocess
import sys

import pytest

from distill.compare.processes import Processes

fcntl = pytest.importorskip("fcntl")


def test_a_process_waits_for_one_whose_parent_was_killed(tmp_path):
    log = tmp_path / "train.log"
    with log.open("ab") as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        code = "import sys, time; print('old', file=sys.stderr, flush=True); time.sleep(1.5)"
        orphan = subprocess.Popen([sys.executable, "-c", code], stderr=output)
    with Processes() as processes:
        reason = processes.module("this", ["x"], log, threads=1, folder=tmp_path / "run")
    assert reason is None and orphan.poll() == 0
    assert log.read_text("utf-8") == ""
