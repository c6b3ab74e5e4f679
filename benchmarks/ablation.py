"""Ablation: variants of one recipe with one changed setting each, one teacher, measured on validation.

    python benchmarks/ablation.py RECIPE OUT [--data-root DIR] [--set K=V ...] [--only NAME ...] [--jobs N]

The recipe runs once up to fit_student (OUT/base). Each variant then runs in a folder of its own with one
setting changed. The data, the teacher and the soft labels are hard links to the base, so only changed stages
run again. Completed variants are skipped. Prints a Markdown table with the metrics on the validation split.

`--jobs` runs several variants at once, each with its share of the processors unless OMP_NUM_THREADS is set.
The quality does not depend on it. Seconds can only be compared among variants of the same `--jobs`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distill.compare.linked_runs import link
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
    common = [word for setting in options.set for word in ("--set", setting)]
    if options.data_root:
        common += ["--data-root", options.data_root]
    command = [
        sys.executable,
        "-m",
        "distill.cli.main",
        "run",
        options.recipe,
        "--to",
        "fit_student",
        *common,
    ]
    base = options.out / "base"
    records = {"base": _run(command, base)}

    def run(name: str) -> dict[str, Any]:
        folder = base.with_name(name.replace(",", "").replace(" ", "-"))
        if not folder.exists():
            link(base, folder, ("prepare", "fit_teacher", "label"))
        return _run(command, folder, VARIANTS[name], threads=max(1, available_cores() // options.jobs))

    names = options.only or list(VARIANTS)
    with ThreadPoolExecutor(options.jobs) as executor:
        records |= dict(zip(names, executor.map(run, names), strict=True))
    print(_table(records))


def _run(
    command: Sequence[str], folder: Path, settings: Sequence[str] = (), threads: int | None = None
) -> dict[str, Any]:
    """Run a variant up to fit_student with a number of threads; returns the record of fit_student."""
    overrides = [word for setting in settings for word in ("--set", setting)]
    environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ}
    subprocess.run(
        [*command, "--out", str(folder), *overrides], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    record: dict[str, Any] = json.loads(
        (folder / "stages/fit_student/stage.json").read_text(encoding="utf-8")
    )
    return record


def _table(records: dict[str, dict[str, Any]]) -> str:
    results = {name: record["metrics"] for name, record in records.items()}
    metrics = [m for m in results["base"]["validation"] if m.endswith((".accuracy", ".micro_f1"))]
    lines = [["variant", *metrics, "best epoch", "texts", "seconds"]]
    for name, result in results.items():
        quality = [f"{result['validation'][m]:.4f}" for m in metrics]
        epochs = f"{result['best_epoch']} of {result['epochs']}"
        lines.append([name, *quality, epochs, f"{result['texts']:,}", f"{records[name]['seconds']:.0f}"])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


if __name__ == "__main__":
    main()
