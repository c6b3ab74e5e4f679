"""A comparison and a sweep with plausible values, for tests."""

from __future__ import annotations

import random
from typing import Any

# name, how, M parameters, fp32 MB, fit seconds, p50 ms, texts a second, quality
CANDIDATES = [
    ("distilbert-base-uncased", "fine-tuned", 66.4, 265.6, 2890.0, 59.1, 31, None),
    ("google/mobilebert-uncased", "fine-tuned", 24.6, 98.3, 3400.0, 47.9, 40, None),
    ("albert-base-v2", "fine-tuned", 11.7, 46.7, 5100.0, 98.0, 17, None),
    ("huawei-noah/TinyBERT_General_4L_312D", "fine-tuned", 14.4, 57.4, 410.0, 5.9, 340, None),
    ("bert-small", "fine-tuned", 28.8, 115.1, 690.0, 13.2, 150, 0.9021),
    ("bert-mini", "fine-tuned", 11.2, 44.7, 220.0, 4.6, 470, 0.8934),
    ("bert-tiny", "fine-tuned", 4.4, 17.5, 71.0, 1.1, 2600, 0.8712),
    ("MiniLM-L6", "fine-tuned", 22.7, 90.9, 1260.0, 13.9, 160, 0.9176),
    ("XtremeDistil-l6-h256", "fine-tuned", 12.8, 51.0, 530.0, 7.7, 290, 0.9068),
    ("ettin-17m", "fine-tuned", 16.8, 67.4, 640.0, 9.5, 240, None),
    ("tiny", "distilled", 4.4, 17.5, 480.0, 0.31, 5400, 0.9002),
    ("mini", "distilled", 11.2, 44.7, 900.0, 0.94, 1900, 0.9098),
    ("small", "distilled", 28.8, 115.1, 1900.0, 2.7, 640, 0.9141),
    ("TF-IDF + logistic regression", "floor", 0.4, 3.4, 6.2, 0.22, 11000, 0.8893),
]


def comparison(heads: int = 1, seeds: int = 1, name: str = "agnews") -> dict[str, Any]:
    generator = random.Random(1)
    names = ["topic", "urgent", "sentiment"][:heads]
    rows = []
    for candidate, how, millions, megabytes, seconds, ms, throughput, value in CANDIDATES:
        int8 = None if how == "floor" else megabytes / 4 * 1e6
        quality = {}
        for number, head in enumerate(names if value else []):
            values = [value - 0.03 * number + generator.gauss(0, 0.003) for _ in range(seeds)]
            mean = sum(values) / seeds
            quality[head] = {"value": mean, "low": mean - 0.006, "high": mean + 0.006, "seeds": values}
        rows.append(
            {
                "candidate": candidate,
                "how": how,
                "encoder": candidate,
                "seeds": list(range(1, seeds + 1)),
                "parameters": int(millions * 1e6),
                "bytes": {"fp32": int(megabytes * 1e6), "int8": int8},
                "fit_seconds": seconds,
                "fit_seconds_estimated": value is None,
                "train_rss_bytes": int(9e8 + 16e6 * millions),
                "inference_rss_bytes": int(9e7 + 1.2e6 * megabytes),
                "train_gpu_bytes": None,
                "latency_ms": {"p50": ms, "p99": 1.3 * ms, "fp32_p50": None if int8 is None else 1.5 * ms},
                "throughput": throughput,
                "batch_size": 64,
                "gpu_throughput": None,
                "gpu_batch_size": None,
                "quality": quality,
                "weights": value is not None,
                "fits": ms <= 5,
                "failed": None,
            }
        )
    nothing = {"quality": {}, "parameters": None, "bytes": {}, "fit_seconds": None, "latency_ms": {}}
    nothing |= dict.fromkeys(("train_rss_bytes", "inference_rss_bytes", "throughput", "batch_size"))
    reason = "killed by the system: out of memory (take a smaller batch: --set student.batch_size=16)"
    rows.append({**rows[0], **nothing, "candidate": "bert-large-uncased", "fits": None, "failed": reason})
    return {
        "name": name,
        "head_names": names,
        "metrics": dict(zip(names, ["accuracy", "f1", "macro_f1"], strict=False)),
        "texts": {"train": 26_933, "test": dict.fromkeys(names, 7600)},
        "machine": {"cpu": "Intel Xeon Platinum 8481C", "threads": 2, "gpu": None},
        "budget": {"ms": 5, "mb": None},
        "rows": rows,
    }


def sweep(keys: int = 2, seeds: int = 2) -> dict[str, Any]:
    generator = random.Random(2)
    names = ["distillation.temperature", "student.lr", "student.dropout"][:keys]
    rows: list[dict[str, Any]] = []
    for temperature in (1, 2, 4):
        for rate in (0.0003, 0.001) if keys > 1 else (0.001,):
            settings = dict(zip(names, [temperature, rate, 0.1], strict=False))
            mean = 0.90 + 0.004 * (temperature == 2) - 0.006 * (rate < 0.001)
            values = [mean + generator.gauss(0, 0.002) for _ in range(seeds)]
            mean = sum(values) / seeds
            sd = None
            if seeds > 1:
                sd = (sum((value - mean) ** 2 for value in values) / (seeds - 1)) ** 0.5
            rows.append({"settings": settings, "values": values, "mean": mean, "sd": sd, "epochs": 4.5,
                         "seconds": 61.3, "failed": None})  # fmt: skip
    rows[-1] |= {"values": [None] * seeds, "mean": None, "sd": None, "failed": "the loss is not finite"}
    best = max(range(len(rows)), key=lambda index: rows[index]["mean"] or 0)
    return {"name": "demo", "metric": "intent accuracy", "split": "validation", "texts": 3000, "keys": names,
            "seeds": list(range(seeds)), "rows": rows, "best": best}  # fmt: skip
