"""A list is classified wherever Python code runs, also where no thread can be started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETUP = """
import atexit, os, sys, threading
from export import Classifier
texts = ["where is my parcel", "thanks", "cancel the order now"] * 10
path = sys.argv[1]
expected = Classifier.load(path, threads=1)(texts, batch_size=4)
classifier = Classifier.load(path, threads=3)

def classify():
    print(classifier(texts, batch_size=4) == expected, flush=True)

def late():
    threading.main_thread().join()
    classify()

def fork():
    child = os.fork()
    if not child:
        classify()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def refuse(self):
    raise RuntimeError("can't start new thread")
"""
CASES = {
    "a thread that outlives main": "classify(); threading.Thread(target=late).start()",
    "its first list": "threading.Thread(target=late).start()",
    "atexit": "classify(); atexit.register(classify)",
    "the first list in atexit": "atexit.register(classify)",
    "loaded in atexit": "atexit.register(lambda: print(Classifier.load(path, threads=3)(texts) == expected))",
    "after fork": "classify(); fork()",
    "the first list after fork": "fork()",
    "fork in a thread": "threading.Thread(target=fork).start()",
    "fork in atexit": "classify(); atexit.register(fork)",
    "no threads": "threading.Thread.start = refuse; classify()",
    "no threads after the first list": "classify(); threading.Thread.start = refuse; classify()",
}


@pytest.mark.parametrize("case", CASES)
def test_a_list_is_classified(bundle: Path, case: str):
    command = [sys.executable, "-W", "ignore", "-c", SETUP + CASES[case], str(bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert {*done.stdout.split()} == {"True"}
