"""Four ways to choose the thresholds of a multi_label head, on the teacher of a run.

    python benchmarks/thresholds.py RUN HEAD

RUN is the folder of a `distill run`, or of one `--to label`. Thresholds are fitted on validation, at the
temperature that is fitted there; micro and macro F1 are of test. Prints a markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.evaluation.calibration import best_threshold, calibrate
from distill.evaluation.metrics import probabilities, quality
from distill.heads import columns
from distill.recipe.load import load_recipe
from distill.run import Run
from distill.stages.fit_teacher import teacher_logits


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("head")
    options = parser.parse_args()
    if not (options.run / "stages/label/stage.json").exists():
        parser.error(f"{options.run}: no run that is labelled")
    run = Run(load_recipe(options.run / "recipe.yaml"), options.run, accelerator=None)
    heads = load_heads(run.stage("prepare"))
    several = {head.name: (head, part) for head, part in columns(heads) if head.kind == "multi_label"}
    if options.head not in several:
        parser.error(
            f"{options.head}: not one of the run's multi_label heads ({', '.join(several) or 'it has none'})"
        )
    head, part = several[options.head]
    logits, labels = {}, {}
    for split in ("validation", "test"):
        logits[split] = teacher_logits(run, split)[:, part]
        labels[split] = hard_labels(load_split(run.stage("prepare"), split), heads)[head.name]
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
