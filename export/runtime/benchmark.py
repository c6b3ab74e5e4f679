"""How fast a classifier answers: the latency of one text, the throughput of many.

Times only what a caller waits for, tokenising included, with one clock (`time.perf_counter`). What
else the machine does is not controlled: compare figures that were taken side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from export.runtime.classifier import Classifier

TOKENS = 27  # the length at which latencies are compared, special tokens included


def bench(
    classifier: Classifier,
    texts: Sequence[str],
    *,
    rounds: int = 200,
    warmup: int = 20,
    heads: Sequence[str] | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """The percentiles of `rounds` calls with one text, in milliseconds, and texts a second.

    The one text is the first of those nearest to 27 tokens; its tokens are told. The throughput
    is that of one call with all the texts, which loses a share to warming up if they are few.

    Raises:
        ValueError: no texts, no rounds, or a text or head the classifier refuses.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds: must be >= 1 and warmup >= 0, got {rounds} and {warmup}")
    lengths = classifier.tokens(texts)
    if isinstance(texts, str) or not lengths:
        raise ValueError("texts: must be a list of at least one text")
    chosen = min(range(len(lengths)), key=lambda position: abs(lengths[position] - TOKENS))
    text = texts[chosen]
    seconds = []
    for turn in range(warmup + rounds):
        start = perf_counter()
        classifier(text, heads=heads)
        if turn >= warmup:
            seconds.append(perf_counter() - start)
    start = perf_counter()
    classifier(texts, heads=heads, batch_size=batch_size)
    elapsed = perf_counter() - start
    p50, p99 = (float(1000 * value) for value in np.percentile(seconds, (50, 99)))
    return {
        "latency_ms": {
            "p50": p50,
            "p99": p99,
            "tokens": lengths[chosen],
            "threads": 1,  # a text alone is never parted
        },
        "throughput": len(texts) / elapsed,
        "threads": classifier.threads,  # of the throughput
        "variant": classifier.variant,
    }
