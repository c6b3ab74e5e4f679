"""The metrics of a bundle on labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from distill.data.prepare import read_labelled
from distill.evaluation.metrics import quality, without_nan
from distill.heads import Head, Kind
from distill.recipe.load import parse_recipe
from export.runtime.classifier import Classifier


def evaluate_bundle(
    classifier: Classifier, data: str, *, text: str | None = None, heads: Sequence[str] | None = None
) -> dict[str, Any]:
    """The metrics of the heads, `{"rows": n, "variant": name, "heads": {HEAD: {METRIC: x}}}`.

    The labels are read with the settings of the recipe that made the bundle.

    Args:
        classifier: The bundle.
        data: A labelled source as in a recipe, relative to the current folder.
        text: Column of the texts; by default that of the recipe.
        heads: Heads to measure, whose columns the data must have; by default all.

    Raises:
        DataError: The data cannot be read, or has no such column.
        ValueError: The bundle has no such head.
    """
    names = list(classifier.heads if heads is None else heads)
    for name in names:
        classifier.labels(name)  # raises ValueError for an unknown head
    settings = classifier.manifest.details["reads"]
    recipe = parse_recipe(
        {
            "name": classifier.manifest.name,
            "data": {"root": str(Path.cwd()), "text": text or settings["text"], "train": data},
            "heads": {name: settings["heads"][name] for name in names},
        }
    )
    served = [head for head in classifier.manifest.heads if head.name in names]
    measured = [Head(head.name, cast("Kind", head.kind), head.labels) for head in served]
    texts, labels = read_labelled(recipe, measured)
    logits = classifier.logits(texts, names)
    metrics: dict[str, Any] = {}
    for head, fitted in zip(measured, served, strict=True):
        values = quality(
            head,
            logits[head.name],
            labels[head.name],
            temperature=fitted.temperature,
            thresholds=fitted.thresholds,
        )
        metrics[head.name] = without_nan(values)
    return {"rows": len(texts), "variant": classifier.variant, "heads": metrics}
