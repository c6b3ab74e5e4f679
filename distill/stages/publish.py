"""The stage bundle: the checked bundle published with its figures and model card, and timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.data.dataset import load_split
from distill.reports.model_card import model_card
from distill.run import Run, versions
from export.bundle import manifest as manifests
from export.bundle.files import read_bundle, write_bundle
from export.runtime.benchmark import bench
from export.runtime.classifier import Classifier


def bundle(run: Run, folder: Path) -> dict[str, Any]:
    """Publish the checked bundle with its figures and model card, and time it."""
    candidate, target = run.stage("export") / "candidate", run.folder / "bundle"
    checked, manifest = run.figures("check"), read_bundle(candidate)
    # what `distill evaluate` must know to read labelled data as this run did
    layout = {h.name: run.recipe.heads[h.name].model_dump(mode="json") for h in manifest.heads}
    for head in manifest.heads:
        if layout[head.name]["columns"] is None:
            layout[head.name]["labels"] = list(head.labels)
    details = {
        "reads": {"text": run.recipe.data.text, "heads": layout},
        "recipe_sha256": run.recipe.digest(),
        "quality": checked["quality"],
        "parity": checked["parity"],
        "allowed": checked["allowed"],
        "versions": versions(),
        "parameters": run.figures("fit_student")["parameters"],
    }
    texts = list(load_split(run.stage("prepare"), "test")["text"])
    contents: dict[str, Path | bytes] = {file: candidate / file for file in manifest.files}
    rows = run.figures("prepare")["rows"]
    sizes = run.figures("export")
    card = model_card(run.recipe, manifest.heads, checked, rows, sizes, manifest.max_length)
    contents["README.md"] = card.encode()
    final = manifests.Manifest(**{**vars(manifest), "files": {}, "details": details})
    write_bundle(target, final, contents)
    return dict(bench(Classifier.load(target), texts))
