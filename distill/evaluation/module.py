"""The metrics of a head as a module of the library evaluate, which `evaluate.combine` and others take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from distill.evaluation.metrics import quality
from distill.heads import Head


class HeadQuality(evaluate.Metric):  # type: ignore[misc]
    """`metrics.quality` of logits `[texts, labels]` against hard labels.

    `compute` takes `predictions`, `references`, and the `temperature` and `thresholds` of a calibration.

    Args:
        head: A single_label or multi_label head.
        folder: Where evaluate may write; by default it would be the home folder.
    """

    def __init__(self, head: Head, folder: Path) -> None:
        self.head = head
        super().__init__(keep_in_memory=True, cache_dir=str(folder))

    def _info(self) -> Any:
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=f"The metrics of the head {self.head.name}.",
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": label if self.head.kind == "single_label" else datasets.Sequence(label),
                }
            ),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        temperature: float = 1.0,
        thresholds: Sequence[float] | None = None,
    ) -> dict[str, float]:
        logits, labels = np.asarray(predictions, np.float32), np.asarray(references)
        return quality(self.head, logits, labels, temperature=temperature, thresholds=thresholds)
