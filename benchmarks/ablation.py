"""Ablation: variants of one recipe with one changed setting each, one teacher, measured on validation.

    python benchmarks/ablation.py RECIPE OUT [--data-root DIR] [--set K=V ...] [--only NAME ...] [--jobs N]

The recipe runs once up to fit_student (OUT/base). Each variant, which may change several settings, then runs
in a folder of its own that shares the stages of the base. `distill sweep` compares the combinations of a grid
instead. Completed variants are skipped. Prints a Markdown table with the metrics on the validation split.

`--jobs` runs several variants at once, each with its share of the processors unless OMP_NUM_THREADS is set.
The quality does not depend on it. Seconds can only be compared among variants of the same `--jobs`.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distill.compare.linked_runs import SHARED, link
from distill.compare.processes import Processes
from distill.recipe.load import load_recipe
from distill.storage import read_json
from export.runtime.cpus import available_cores

VARIANTS = {
    "teacher embeddings by PCA": ["student.start=teacher"],
    "random initialisation": ["student.start=random"],
    "no augmented texts": ["augment.copies=0"],
    "no augmented texts, hard labels only": ["augment.copies=0", "distillation.soft_weight=0"],
    "soft labels only": ["distillation.soft_weight=1"],
    "KL": ["distillation.loss=kl", "distillation.temperature=1"],
    "KL, temperature 2": ["distillation.loss=kl", "distillation.temperature=2"],
    "KL, temperature 4": ["distillation.loss=kl", "distillation.temperature=4"],
    "logit MSE": ["distillation.loss=mse"],
    "standardised KD": ["distillation.loss=standardized", "distillation.temperature=2"],
    "hidden states matching": ["match.hidden=1"],
    "learning rate 1e-3": ["student.lr=1e-3"],
    "learning rate 4e-3": ["student.lr=4e-3"],
    "seed 1": ["student.seed=1"],
    "seed 2": ["student.seed=2"],
}


def main() -> None:
    """Run the variants that are not complete and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="override a setting of every variant"
    )
    parser.add_argument(
        "--only", action="append", choices=VARIANTS, metavar="NAME", help="run only these variants"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="variants to run at once")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs} is too small, expected at least 1")
    base, cores = options.out / "base", available_cores()

    def run(name: str) -> dict[str, Any] | str:
        """The record of a variant's fit_student, or why there is none."""
        settings = [*options.set, *VARIANTS.get(name, [])]
        recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=settings)
        folder = base.with_name(name.replace(",", "").replace(" ", "-"))
        if folder != base and not folder.exists():
            link(base, folder, SHARED)
        threads = cores if folder == base else max(1, cores // options.jobs)
        failed = processes.run(recipe, folder, "fit_student", threads=threads)
        return failed or read_json(folder / "stages/fit_student/stage.json")

    # an interruption stops the processes first: the executor waits for them
    with ThreadPoolExecutor(options.jobs) as executor, Processes() as processes:
        if isinstance(first := run("base"), str):
            raise SystemExit(f"base: {first}")
        names = options.only or list(VARIANTS)
        print(_table({"base": first, **dict(zip(names, executor.map(run, names), strict=True))}))


def _table(records: dict[str, Any]) -> str:
    metrics = [m for m in records["base"]["metrics"]["validation"] if m.endswith((".accuracy", ".micro_f1"))]
    lines = [["variant", *metrics, "best epoch", "texts", "seconds"]]
    for name, record in records.items():
        if isinstance(record, str):
            lines.append([name, record, *[""] * (len(lines[0]) - 2)])
            continue
        result = record["metrics"]
        quality = [f"{result['validation'][m]:.4f}" for m in metrics]
        epochs = f"{result['best_epoch']} of {result['epochs']}"
        lines.append([name, *quality, epochs, f"{result['texts']:,}", f"{record['seconds']:.0f}"])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


if __name__ == "__main__":
    main()
