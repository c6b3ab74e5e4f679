"""What each piece of the default recipe gives: variants of one recipe, one teacher, judged on validation.

    python benchmarks/ablation.py RECIPE OUT [--data-root DIR] [--set K=V ...] [--only NAME ...] [--jobs N]

The recipe is run up to its student once (OUT/base), then anew with one setting changed for each variant;
what a change does not touch (the data, the teacher, the soft labels of texts in common) is linked, not
done again. Prints a markdown table; a variant that is done is not run again. Every figure is of the
validation split.

`--jobs` runs so many variants at once, each with its share of the processors unless OMP_NUM_THREADS is set:
the quality is the same, seconds can only be compared among variants that ran so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VARIANTS = {
    "PCA start": ["student.start=teacher"],
    "PCA start, words each by itself": ["student.start=teacher", "student.embeddings=free"],
    "random start": ["student.start=random"],
    "no copies": ["augment.copies=0"],
    "no noise": ["augment.noise=0"],
    "no near words": ["augment.neighbours=0"],
    "no mixed texts": ["augment.mix=0"],
    "noise alone": ["augment.neighbours=0", "augment.mix=0"],
    "clean text at the end": ["augment.until=0.8"],
    "the surest of the copies": ["augment.keep=0.8"],
    "classes in balance": ["augment.balance=true"],
    "no copies, hard labels alone": ["augment.copies=0", "distillation.soft_weight=0"],
    "soft labels alone": ["distillation.soft_weight=1"],
    "KL": ["distillation.loss=kl", "distillation.temperature=1"],
    "KL, temperature 2": ["distillation.loss=kl", "distillation.temperature=2"],
    "KL, temperature 4": ["distillation.loss=kl", "distillation.temperature=4"],
    "logit MSE": ["distillation.loss=mse"],
    "decoupled KD": ["distillation.loss=dkd"],
    "standardised KD": ["distillation.loss=standardized", "distillation.temperature=2"],
    "hidden states": ["match.hidden=1"],
    "embeddings": ["match.embeddings=1"],
    "relations": ["match.relations=1"],
    "weight averaging": ["student.ema=0.999"],
    "heads at ten times the rate": ["student.head_lr=2e-2"],
    "rate 1e-3": ["student.lr=1e-3"],
    "rate 4e-3": ["student.lr=4e-3"],
    "seed 1": ["student.seed=1"],
    "seed 2": ["student.seed=2"],
}


def main() -> None:
    """Run the variants that are not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="of every variant")
    parser.add_argument("--only", action="append", choices=VARIANTS, metavar="NAME", help="these alone")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="variants at once")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs} is less than 1")
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
    done = {"base": _run(command, base)}

    def run(name: str) -> dict[str, Any]:
        folder = base.with_name(name.replace(",", "").replace(" ", "-"))
        if not folder.exists():
            _link(base, folder)
        return _run(command, folder, VARIANTS[name], threads=max(1, (os.cpu_count() or 1) // options.jobs))

    names = options.only or list(VARIANTS)
    with ThreadPoolExecutor(options.jobs) as several:
        done |= dict(zip(names, several.map(run, names), strict=True))
    print(_table(done))


def _run(
    command: Sequence[str], folder: Path, settings: Sequence[str] = (), threads: int | None = None
) -> dict[str, Any]:
    """Run a variant up to its student, with so many threads; its stage's record."""
    words = [word for setting in settings for word in ("--set", setting)]
    environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ}
    subprocess.run(
        [*command, "--out", str(folder), *words], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    record: dict[str, Any] = json.loads(
        (folder / "stages/fit_student/stage.json").read_text(encoding="utf-8")
    )
    return record


def _link(base: Path, folder: Path) -> None:
    """A run's folder with the base's stages up to its soft labels, as hard links."""
    half = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    for part in ("stages/prepare", "stages/fit_teacher", "stages/label", "soft_labels"):
        shutil.copytree(base / part, half / part, copy_function=os.link)
    half.rename(folder)


def _table(done: dict[str, dict[str, Any]]) -> str:
    figures = {name: record["figures"] for name, record in done.items()}
    metrics = [m for m in figures["base"]["validation"] if m.endswith((".accuracy", ".micro_f1"))]
    lines = [["variant", *metrics, "best epoch", "texts", "seconds"]]
    for name, found in figures.items():
        quality = [f"{found['validation'][m]:.4f}" for m in metrics]
        epochs = f"{found['best_epoch']} of {found['epochs']}"
        lines.append([name, *quality, epochs, f"{found['texts']:,}", f"{done[name]['seconds']:.0f}"])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


if __name__ == "__main__":
    main()
