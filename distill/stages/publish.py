"""The stage bundle: the checked bundle, published with its metrics and model card, and timed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.recipe.merge_section import with_terms
from distill.recipe.schema import Recipe
from distill.reports.model_card import model_card
from distill.run import Run, versions
from distill.stages import artifacts
from export.bundle import manifest as manifests
from export.bundle.files import read_bundle, write_bundle
from export.graph.gates import GateError
from export.runtime.benchmark import bench
from export.runtime.classifier import Classifier


def publish(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Publish the checked bundle with its metrics and model card, and time it.

    Raises:
        GateError: The bundle failed a gate in the stage check.
    """
    require_passed(run)
    candidate, target = artifacts.candidate(run), run.folder / "bundle"
    checked, manifest = run.metrics("check"), read_bundle(candidate)
    # what `distill evaluate` needs to read labelled data as this run did
    layout = {h.name: run.recipe.heads[h.name].model_dump(mode="json") for h in manifest.heads}
    rare = artifacts.rare_labels(run)
    sources = run.recipe.data.sources
    for head in manifest.heads:
        if layout[head.name]["column"] is None and layout[head.name]["columns"] is None:
            every = [(source.columns or {}).get(head.name) for source in sources]
            columns = next(filter(None, every), head.name)
            if isinstance(columns, str):
                layout[head.name]["column"] = columns
            elif {*columns} == {*head.labels}:
                layout[head.name]["columns"] = columns
            else:  # flags in the order of the labels, which a manifest does not tell
                layout[head.name]["column"] = head.name
        if layout[head.name]["columns"] is None:
            layout[head.name]["labels"] = [*head.labels, *rare.get(head.name, ())]
    # of several sources what they have in common, or else the default
    texts, encodings = {source.text for source in sources}, {source.encoding for source in sources}
    text = texts.pop() if len(texts) == 1 else run.recipe.data.text
    encoding = encodings.pop() if len(encodings) == 1 else run.recipe.data.encoding
    details = {
        "reads": {"text": text, "encoding": encoding, "heads": layout},
        "recipe_sha256": run.recipe.digest(),
        "teachers": with_terms(
            run.metrics("fit_teacher").get("teachers", {}), run.recipe.teacher.model_dump(mode="json")
        ),
        **({"asked": asked} if (asked := run.metrics("fit_teacher").get("asked")) else {}),
        "quality": checked["quality"],
        "parity": checked["parity"],
        "allowed": checked["allowed"],
        "noise": checked["noise"],
        "versions": versions(),
        "parameters": run.metrics("fit_student")["parameters"],
    }
    if abstention := checked.get("abstention"):
        details["abstention"] = abstention
    contents: dict[str, Path | bytes] = {file: candidate / file for file in manifest.files}
    sizes = run.metrics("export")
    rows, heads, labelled = artifacts.rows(run), artifacts.heads(run), run.metrics("prepare")["labelled"]
    analysed = artifacts.analysis(run)["heads"]
    length, start = manifest.max_length, run.metrics("fit_student")["start"]
    card = model_card(run.recipe, heads, checked, rows, labelled, sizes, length, analysed, start)
    contents[manifests.CARD] = card.encode()
    served = tuple(replace(head, abstain=_rule(checked, head.name)) for head in manifest.heads)
    final = manifests.Manifest(**{**vars(manifest), "heads": served, "files": {}, "details": details})
    if not (target / manifests.MANIFEST).is_file():  # the run's own bundle, damaged
        shutil.rmtree(target, ignore_errors=True)
    write_bundle(target, final, contents)
    return dict(bench(Classifier.load(target), artifacts.texts(run, "test")))


def _rule(checked: Mapping[str, Any], head: str) -> manifests.Abstain | None:
    """When a head abstains, as the stage check found it."""
    found = checked.get("abstention", {}).get(head, {}).get("rule")
    return manifests.Abstain(**found) if found else None


def require_passed(run: Run[Recipe]) -> None:
    """Raise GateError if the candidate failed a gate in the stage check."""
    if refused := run.metrics("check")["refused"]:
        raise GateError("\n".join(refused))
