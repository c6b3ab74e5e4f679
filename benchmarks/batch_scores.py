"""How far the scores of a text depend on the texts that are computed with it.

    python benchmarks/batch_scores.py BUNDLE TEXTS.csv

Compares the probabilities of every text alone with those in random batches of 16 and of 64 texts. `changed`
counts the labels of single_label heads, and the labels of multi_label heads at their thresholds, that differ.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np

from export import Classifier


def main(bundle: str, file: str) -> None:
    """Print one JSON object for each variant, size of batch and head."""
    with Path(file).open(encoding="utf-8", newline="") as lines:
        texts = [row["text"] for row in csv.DictReader(lines)]
    for variant in Classifier.load(bundle).manifest.variants:
        classifier = Classifier.load(bundle, variant=variant)
        alone = classifier.logits(texts, batch_size=1)
        for size in (16, 64):
            order = np.random.default_rng(0).permutation(len(texts))
            parts = [order[at : at + size] for at in range(0, len(order), size)]
            found = {head: np.empty_like(logits) for head, logits in alone.items()}
            for part in parts:
                for head, logits in classifier.logits([texts[i] for i in part], batch_size=size).items():
                    found[head][part] = logits
            for head in classifier.manifest.heads:
                one, other = (classifier.probabilities(x[head.name], head.name) for x in (alone, found))
                difference = np.abs(one - other)
                if head.kind == "single_label":
                    changed = one.argmax(-1) != other.argmax(-1)
                else:
                    thresholds = np.array(head.thresholds or [0.5] * len(head.labels))
                    changed = (one >= thresholds) != (other >= thresholds)
                result = {"largest": float(difference.max()), "mean": float(difference.mean())}
                result |= {"changed": int(changed.sum()), "of": changed.size}
                print(json.dumps({"variant": variant, "batch": size, "head": head.name, **result}))


if __name__ == "__main__":
    main(*sys.argv[1:])
