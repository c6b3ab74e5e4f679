"""Latency, throughput and memory of a classifier, in numpy alone.

    python -m distill.compare.measure JOB

measures a bundle in a process of its own, without torch, so that its peak memory is what serving needs. JOB
is a JSON file with `bundle`, `variant`, `threads`, `texts`, `latency_only`, and `result`, the file
to write. Other load on the machine is not controlled, so compare only what was measured on one idle machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.memory import peak_rss_bytes

MAX_BATCH = 4096
ROUNDS, WARM_UP = 200, 20  # calls with one text
LATENCY_SECONDS = 10.0  # after which a slow classifier is called no more, but at least MIN_ROUNDS times
MIN_ROUNDS = 30
BATCH_SECONDS = 2.0  # that one batch size is timed for
GAIN = 1.03  # a larger batch must be faster by this factor
BATCH_OF_MEMORY = 32  # texts a batch while the peak memory is measured
PATIENCE = 2  # larger batches in a row that are not

Classify = Callable[[list[str], int], Any]  # of texts, in batches of a size


def latency(classify: Classify, texts: Sequence[str]) -> dict[str, float]:
    """The percentiles of the milliseconds that one text takes, over many texts one at a time."""
    seconds: list[float] = []
    started = time.perf_counter()
    for turn in range(WARM_UP + ROUNDS):
        begin = time.perf_counter()
        classify([texts[turn % len(texts)]], 1)
        seconds.append(time.perf_counter() - begin)
        if turn >= MIN_ROUNDS and time.perf_counter() - started > LATENCY_SECONDS:
            break
    p50, p99 = np.percentile(seconds[WARM_UP // 2 :], (50, 99)) * 1000
    return {"p50": float(p50), "p99": float(p99)}


def best_throughput(
    classify: Classify, texts: Sequence[str], out_of_memory: tuple[type[BaseException], ...] = (MemoryError,)
) -> dict[str, Any]:
    """Texts per second at the fastest batch size: `{"throughput": x, "batch_size": n}`.

    The batch size doubles until memory runs out, two sizes in a row gain less than 3 %, or a batch holds all
    texts. Each size is timed on as many texts as take about two seconds, its first batch left out.

    Args:
        classify: Answers texts in batches of a size.
        texts: In random order, so that a part of them stands for all.
        out_of_memory: What `classify` raises if a batch does not fit into memory.
    """
    texts = list(texts)
    best, chosen, size, since = 0.0, 1, 1, 0
    rate = 0.0
    while size <= min(MAX_BATCH, len(texts)) and since < PATIENCE:
        count = min(len(texts), max(size, int((rate or 32) * BATCH_SECONDS)))
        try:
            classify(texts[: min(count, size)], size)  # warm-up at this size
            seconds = float("inf")
            for _ in range(2):
                begin = time.perf_counter()
                classify(texts[:count], size)
                seconds = min(seconds, time.perf_counter() - begin)
                if seconds > BATCH_SECONDS:
                    break
        except out_of_memory:
            if not best:
                raise
            break
        rate = count / seconds
        since = 0 if rate > best * GAIN else since + 1
        if rate > best:
            best, chosen = rate, size
        size *= 2
    return {"throughput": best, "batch_size": chosen}


def measure_bundle(job: dict[str, Any]) -> dict[str, Any]:
    """Latency, throughput and peak memory of one variant of a bundle; `job` as in the module's docstring."""
    from export import BundleError, Classifier

    classifier = Classifier.load(job["bundle"], variant=job["variant"], threads=job["threads"])
    texts = json.loads(Path(job["texts"]).read_text("utf-8"))

    def classify(some: list[str], size: int) -> Any:
        return classifier(some, batch_size=size)

    found: dict[str, Any] = {"latency_ms": latency(classify, texts)}
    classify(texts[: 8 * BATCH_OF_MEMORY], BATCH_OF_MEMORY)
    found["rss_bytes"] = peak_rss_bytes()  # before larger batches are tried
    return found if job["latency_only"] else found | best_throughput(classify, texts, (BundleError,))


def main(path: Path) -> None:
    """Carry out a job."""
    from distill.storage import read_json, write_json  # the rest of the module is for numpy alone

    job = read_json(path)
    write_json(Path(job["result"]), measure_bundle(job))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
