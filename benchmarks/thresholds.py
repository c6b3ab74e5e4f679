"""Compare four ways to choose the thresholds of a multi_label head, on the teacher of a run.

    python benchmarks/thresholds.py RUN HEAD

RUN is the folder of a `distill run`, at least up to `--to label`. Calibration temperature and thresholds are
fitted on validation, micro and macro F1 are measured on test. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator

from distill.evaluation.calibration import best_threshold, calibrate
from distill.evaluation.metrics import probabilities, quality
from distill.recipe.load import load_recipe
from distill.run import Run
from distill.stages import artifacts


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
    run = Run(load_recipe(options.run / "recipe.yaml"), options.run, Accelerator(cpu=True))
    multi_label = {head.name: head for head in artifacts.heads(run) if head.kind == "multi_label"}
    if options.head not in multi_label:
        parser.error(
            f"{options.head}: no multi_label head of the run (expected one of: "
            f"{', '.join(multi_label) or 'the run has none'})"
        )
    head, logits, labels = multi_label[options.head], {}, {}
    for split in ("validation", "test"):
        known = artifacts.teacher_logits(run, split)
        if head.name not in known:
            parser.error(f"{options.head}: the run's teacher does not know this head (choose another)")
        logits[split], labels[split] = known[head.name], artifacts.labels(run, split)[head.name]
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
