"""Four ways to choose the thresholds of a multi_label head, on the teacher of a run.

    python benchmarks/thresholds.py RUN HEAD

RUN is the folder of a `distill run`, or of one `--to label`. Thresholds are fitted on validation, at the
temperature that is fitted there; micro and macro F1 are of test. Prints a markdown table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from distill.calibration import best_threshold, calibrate
from distill.heads import columns, width
from distill.metrics import probabilities, quality
from distill.prepared import hard_labels, load_heads, load_split
from teachers.soft_labels import SoftLabels, text_digests


def main() -> None:
    """Print the table."""
    run, name = Path(sys.argv[1]), sys.argv[2]
    prepared = run / "stages" / "prepare"
    heads = load_heads(prepared)
    head, part = next((head, part) for head, part in columns(heads) if head.name == name)
    written = SoftLabels(next((run / "soft_labels").iterdir()), width(heads))
    logits, labels = {}, {}
    for split in ("validation", "test"):
        rows = load_split(prepared, split)
        places = written.rows(text_digests(rows["text"]))
        logits[split] = written.logits(places).astype(np.float32)[:, part]
        labels[split] = hard_labels(rows, heads)[name]
    fitted = calibrate(head, logits["validation"], labels["validation"])
    p, y = probabilities(logits["validation"], head, fitted.temperature), labels["validation"] == 1
    ways = {
        "0.5": [0.5] * len(head.labels),
        "each label's own best F1": [best_threshold(p[:, i], y[:, i]) for i in range(len(head.labels))],
        "one for all labels, best micro F1": [best_threshold(p.ravel(), y.ravel())] * len(head.labels),
        "each label's in turn, best micro F1 (what `distill run` does)": fitted.thresholds,
    }
    print("| thresholds | micro F1 | macro F1 |\n|---|---|---|")
    for way, thresholds in ways.items():
        found = quality(
            head, logits["test"], labels["test"], temperature=fitted.temperature, thresholds=thresholds
        )
        print(f"| {way} | {found['micro_f1']:.4f} | {found['macro_f1']:.4f} |")


if __name__ == "__main__":
    main()
