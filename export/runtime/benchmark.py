"""Measures the latency and throughput of a classifier.

The measured time includes tokenisation. Other load on the machine is not controlled, so compare only results
that were measured together.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from export.runtime.classifier import Classifier

TOKENS = 27  # text length of the latency, special tokens included


def bench(
    classifier: Classifier,
    texts: Sequence[str],
    *,
    rounds: int = 200,
    warmup: int = 20,
    heads: Sequence[str] | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Latency percentiles of single texts, in milliseconds, and throughput, in texts per second.

    The latency is that of the first text whose length is nearest to 27 tokens; its length is returned too.
    The throughput is that of one call with all texts; with few texts it includes the warm-up.

    Raises:
        ValueError: No texts, no rounds, or a text or head that the classifier rejects.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds: must be >= 1 and warmup >= 0, got {rounds} and {warmup}")
    lengths = classifier.tokens(texts)
    if isinstance(texts, str) or not lengths:
        raise ValueError("texts: must be a list of at least one text")
    chosen = min(range(len(lengths)), key=lambda position: abs(lengths[position] - TOKENS))
    seconds = []
    for _ in range(warmup + rounds):
        start = perf_counter()
        classifier(texts[chosen], heads=heads)
        seconds.append(perf_counter() - start)
    start = perf_counter()
    classifier(texts, heads=heads, batch_size=batch_size)
    elapsed = perf_counter() - start
    p50, p99 = (float(1000 * value) for value in np.percentile(seconds[warmup:], (50, 99)))
    return {
        # a single text runs on one thread
        "latency_ms": {"p50": p50, "p99": p99, "tokens": lengths[chosen], "threads": 1},
        "throughput": len(texts) / elapsed,
        "threads": classifier.threads,  # of the throughput
        "variant": classifier.variant,
    }
