"""What each piece of the default recipe gives: variants of one recipe, one teacher, judged on validation.

    python benchmarks/ablation.py RECIPE OUT [--data-root DIR] [--set K=V ...] [--only NAME ...]

The recipe is run up to its student once (OUT/base), then anew with one setting changed for each variant;
what a change does not touch (the data, the teacher, the soft labels of texts in common) is linked, not
done again. Prints a markdown table; a variant that is done is not run again. Every figure is of the
validation split.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
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
    "temperature 2": ["distillation.temperature=2"],
    "temperature 4": ["distillation.temperature=4"],
    "logit MSE": ["distillation.loss=mse"],
    "decoupled KD": ["distillation.loss=dkd"],
    "standardised KD": ["distillation.loss=standardized", "distillation.temperature=2"],
    "hidden states": ["match.hidden=1"],
    "embeddings": ["match.embeddings=1"],
    "relations": ["match.relations=1"],
    "weight averaging": ["student.ema=0.999"],
    "rate 1e-3": ["student.lr=1e-3"],
    "rate 4e-3": ["student.lr=4e-3"],
}


def main() -> None:
    """Run the variants that are not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="of every variant")
    parser.add_argument("--only", action="append", choices=VARIANTS, metavar="NAME", help="these alone")
    options = parser.parse_args()
    chosen = {"base": [], **{name: VARIANTS[name] for name in options.only or VARIANTS}}
    common = [word for setting in options.set for word in ("--set", setting)]
    if options.data_root:
        common += ["--data-root", options.data_root]
    done: dict[str, dict[str, Any]] = {}
    for name, settings in chosen.items():
        folder = options.out / name.replace(",", "").replace(" ", "-")
        if name != "base" and not folder.exists():
            _link(options.out / "base", folder)
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "distill.cli", "run", options.recipe, "--to", "fit_student"]
        subprocess.run(
            [*command, "--out", str(folder), *common, *words], check=True, stdout=subprocess.DEVNULL
        )
        done[name] = json.loads((folder / "stages/fit_student/stage.json").read_text(encoding="utf-8"))
    print(_table(done))


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
