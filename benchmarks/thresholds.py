"""Compare ways to choose the thresholds of a multi_label head, on the teacher of a run.

    python benchmarks/thresholds.py RUN HEAD
    python benchmarks/thresholds.py RUN HEAD --precision 0.8

RUN is the folder of a `distill run`, at least up to `--to label`. Calibration temperature and thresholds are
fitted on validation, micro and macro F1 are measured on test. With --precision, rules of a wanted precision
are compared on 20 random halves of validation and test together. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from distill.evaluation.calibration import NEVER, best_threshold, calibrate, threshold_of_precision
from distill.evaluation.metrics import Array, probabilities, quality
from distill.recipe.load import load_recipe
from distill.run import Run
from distill.stages import artifacts

SPLITS = 20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("head")
    parser.add_argument("--precision", type=float)
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
    if options.precision:
        p = np.concatenate([probabilities(logits[split], head) for split in logits])
        compare_rules(p, np.concatenate([labels[split] == 1 for split in logits]), options.precision)
        return
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


def compare_rules(p: Array, y: Array, precision: float) -> None:
    """Print how well each rule keeps a wanted precision on other texts; p and y are `[texts, labels]`."""
    rules: dict[str, Callable[[Array, Array], float]] = {
        f"point estimate, {least} texts": partial(point_estimate, precision=precision, least=least)
        for least in (5, 20)
    }
    for confidence in (0.5, 0.8, 0.95):
        rule = partial(threshold_of_precision, precision=precision, confidence=confidence)
        rules[f"lower bound, confidence {confidence}"] = rule
    print(
        "| rule | labels that apply | of these, precision kept | precision of all answers | recall |\n"
        "|---|---|---|---|---|"
    )
    for name, rule in rules.items():
        draw = np.random.default_rng(0)
        applying = kept = answers = hits = positives = 0
        for _ in range(SPLITS):
            fit, test = np.array_split(draw.permutation(len(p)), 2)
            thresholds = np.array([rule(p[fit, i], y[fit, i]) for i in range(p.shape[1])])
            chosen = p[test] >= thresholds
            right, predicted = (chosen & y[test]).sum(0), chosen.sum(0)
            applying += (predicted > 0).sum()
            kept += (right[predicted > 0] >= precision * predicted[predicted > 0]).sum()
            answers, hits, positives = (
                answers + predicted.sum(),
                hits + right.sum(),
                positives + y[test].sum(),
            )
        print(
            f"| {name} | {applying / SPLITS:.1f} of {p.shape[1]} | {kept / max(applying, 1):.0%} "
            f"| {hits / max(answers, 1):.3f} | {hits / positives:.3f} |"
        )


def point_estimate(p: Array, y: Array, *, precision: float, least: int) -> float:
    """The lowest threshold whose share of right answers, at least `least`, is the wanted precision."""
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order])
    reached = np.flatnonzero((hits >= precision * np.arange(1, len(p) + 1)) & (hits >= least))
    return float(p[order][reached[-1]]) if len(reached) else NEVER


if __name__ == "__main__":
    main()
