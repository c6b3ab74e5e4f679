"""Compare four ways to choose the thresholds of a multi_label head, on the teacher of a run.

    python benchmarks/thresholds.py RUN HEAD

RUN is the folder of a `distill run`, at least up to `--to label`. Calibration temperature and thresholds are
fitted on validation, micro and macro F1 are measured on test. Prints a Markdown table.
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
        parser.error(
            f"{options.run}: no run with soft labels (distill run RECIPE --to label --out {options.run})"
        )
    run = Run(load_recipe(options.run / "recipe.yaml"), options.run, accelerator=None)
    heads = load_heads(run.stage("prepare"))
    multi_label = {head.name: (head, part) for head, part in columns(heads) if head.kind == "multi_label"}
    if options.head not in multi_label:
        parser.error(
            f"{options.head}: no multi_label head of the run (expected one of: "
            f"{', '.join(multi_label) or 'the run has none'})"
        )
    head, part = multi_label[options.head]
    logits, labels = {}, {}
    for split in ("validation", "test"):
        logits[split] = teacher_logits(run, split)[:, part]
        labels[split] = hard_labels(load_split(run.stage("prepare"), split), heads)[head.name]
    fitted = calibrate(head, logits["validation"], labels["validation"])
    p, y = probabilities(logits["validation"], head, fitted.temperature), labels["validation"] == 1
    methods = {
        "0.5": [0.5] * len(head.labels),
        "each label's best F1": [best_threshold(p[:, i], y[:, i]) for i in range(len(head.labels))],
        "one for all labels, best micro F1": [best_threshold(p.ravel(), y.ravel())] * len(head.labels),
        "label by label, best micro F1 (`distill run`)": fitted.thresholds,
    }
    print("| thresholds | micro F1 | macro F1 |\n|---|---|---|")
    for name, thresholds in methods.items():
        result = quality(
            head, logits["test"], labels["test"], temperature=fitted.temperature, thresholds=thresholds
        )
        print(f"| {name} | {result['micro_f1']:.4f} | {result['macro_f1']:.4f} |")


if __name__ == "__main__":
    main()
