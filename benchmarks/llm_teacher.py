"""A language model as a teacher behind a server that answers one request in five badly.

Asks about 500 texts and two heads by each route; asks again; and asks with a process that is killed midway.

    python -m benchmarks.llm_teacher > /tmp/llm_teacher.md
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from teachers.llm.settings import AskedHead, LlmSettings
from teachers.llm.teacher import LlmTeacher
from tests.teachers.llm.server import FakeServer, one_in_five

HEADS = (
    AskedHead("intent", "single_label", ("refund", "track", "thank")),
    AskedHead("flags", "multi_label", ("urgent", "polite")),
)
FLAGS = ("", "urgent", "polite", "urgent polite")
TEXTS = [f"{HEADS[0].labels[i % 3]} of order {i} {FLAGS[i % 4]} now" for i in range(500)]
SERVERS = {
    "systemone": FakeServer(systemone=True),
    "logprobs": FakeServer(),
    "samples": FakeServer(logprobs=False),
}
SILENT = 0.01  # seconds that the server takes to answer, so that a killed process has requests in flight


def teacher(url: str, cache: str) -> LlmTeacher:
    """The teacher of a server, with a cache."""
    return LlmTeacher(LlmSettings(url, "open-model", cache=Path(cache)), HEADS, backoff=0.01)


def measure(name: str, fake: FakeServer) -> list[str]:
    """The row of a route."""
    fake.fault, fake.delay = one_in_five(), SILENT
    with (
        fake.running() as url,
        tempfile.TemporaryDirectory() as cache,
        tempfile.TemporaryDirectory() as other,
    ):
        asked = teacher(url, cache).ask(TEXTS)
        logits = teacher(url, cache).logits(TEXTS)
        known = np.all([~np.isnan(part).any(1) for part in logits.values()], 0)
        wrong = known & (
            np.array([HEADS[0].labels[i] for i in logits["intent"].argmax(1)])
            != [text.split()[0] for text in TEXTS]
        )
        again = teacher(url, cache).ask(TEXTS)
        before, answered = len(fake.bodies), len(fake.answered)
        killed = subprocess.Popen([sys.executable, "-m", "benchmarks.llm_teacher", url, other])
        while len(fake.bodies) - before < (asked.requests // 2):
            time.sleep(0.005)
        killed.kill()
        killed.wait()
        time.sleep(1)
        first = {_asked(body) for body in fake.answered[answered:]}
        cached = teacher(url, other).estimate(TEXTS).cached
        start = len(fake.bodies)
        rest = teacher(url, other).ask(TEXTS)
        resent = first & {_asked(body) for body in fake.bodies[start:]}
    assert rest.answered == len(TEXTS) and not asked.failed
    return [
        name, f"{asked.answered}", f"{asked.dropped}", f"{wrong.sum()}", f"{asked.requests}",
        f"{asked.bad_answers}", f"{asked.retries}", f"{again.requests}", f"{cached} texts",
        f"{rest.requests}", f"{len(resent)}",
    ]  # fmt: skip


def _asked(body: dict[str, object]) -> str:
    return json.dumps({key: value for key, value in body.items() if key != "n"})


def main(arguments: Sequence[str]) -> None:
    """Print the table, or ask in the process that is killed."""
    if arguments:
        teacher(*arguments).ask(TEXTS)
        return
    columns = ["route", "answered", "dropped", "outside the choice", "requests", "bad answers", "repeated"]
    columns += ["a rerun sends", "done when killed", "then sent", "of them sent again"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name, fake in SERVERS.items():
        print("| " + " | ".join(measure(name, fake)) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
