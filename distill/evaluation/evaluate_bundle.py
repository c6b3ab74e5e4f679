"""The quality of a bundle on labelled data, read the way the bundle's recipe read its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.data.prepare import read_labelled
from distill.evaluation.metrics import quality, without_nan
from distill.heads import Head
from distill.recipe.load import parse_recipe
from export.runtime.classifier import Classifier


def evaluate_bundle(
    classifier: Classifier, data: str, *, text: str | None = None, heads: Sequence[str] | None = None
) -> dict[str, Any]:
    """Every metric of every head, `{"rows": n, "heads": {HEAD: {METRIC: x}}}`.

    Args:
        classifier: The bundle, loaded.
        data: A labelled source as a recipe names one, relative to the current folder.
        text: Column of the text; by default the one the recipe named.
        heads: Names of those to measure, the only ones whose columns the data needs; by default all.

    Raises:
        DataError: The data cannot be read, or lacks a column.
        ValueError: A head that the bundle does not have.
    """
    asked = {name: classifier.labels(name) for name in (classifier.heads if heads is None else heads)}
    reads = classifier.manifest.details["reads"]
    recipe = parse_recipe(
        {
            "name": classifier.manifest.name,
            "data": {"root": str(Path.cwd()), "text": text or reads["text"], "train": data},
            "heads": {name: reads["heads"][name] for name in asked},
        }
    )
    shipped = [head for head in classifier.manifest.heads if head.name in asked]
    measured = [
        Head(h.name, "single_label" if h.kind == "single_label" else "multi_label", h.labels) for h in shipped
    ]
    texts, labels = read_labelled(recipe, measured)
    logits = classifier.logits(texts, [*asked])
    return {
        "rows": len(texts),
        "variant": classifier.variant,
        "heads": {
            head.name: without_nan(
                quality(
                    head,
                    logits[head.name],
                    labels[head.name],
                    temperature=served.temperature,
                    thresholds=served.thresholds,
                )
            )
            for head, served in zip(measured, shipped, strict=True)
        },
    }
