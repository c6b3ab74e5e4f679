"""The metadata of a model card that the Hugging Face hub reads: licence, base models, data sets, results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.recipe.data_sources import Fraction
from distill.recipe.schema import Recipe
from distill.reports.text import one_line

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(/stages/fit_\w+)?(@.+)?")
# names of the hub's own metrics
METRIC_TYPES = {"macro_f1": "f1", "micro_f1": "f1"}
# the hub refuses other names, but for `other`
LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc", "cc0-1.0", "wtfpl"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
    *("odbl", "odc-by", "pddl", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "eupl-1.1", "other"),
}


def front_matter(recipe: Recipe, checked: Mapping[str, Any], start: str, form: str) -> str:
    """The YAML front matter of the card, its fences included.

    Args:
        recipe: Recipe of the run.
        checked: Metrics of the stage check.
        start: How the student was initialised, as the record of fit_student has it.
        form: The form that is served, fp32 or int8.
    """
    from huggingface_hub.repocard_data import CardData

    results = _results(recipe, checked["quality"], form)
    content: dict[str, Any] = {
        **_licence(recipe.data.licence),
        "library_name": "tinyheads",
        "pipeline_tag": "text-classification",
        "base_model": _base_models(recipe, start),
        "datasets": _unique(getattr(source, "hub", None) for source in _sources(recipe)),
        "metrics": _unique(metric["type"] for result in results for metric in result["metrics"]),
        "model-index": [{"name": one_line(recipe.name), "results": results}] if results else None,
    }
    yaml = CardData(**{key: value for key, value in content.items() if value}).to_yaml(line_break="\n")
    return f"---\n{yaml}\n---"


def _licence(name: str | None) -> dict[str, str]:
    """The licence of the data, by the hub's name for it if there is one."""
    if not name:
        return {}
    known = "-".join(name.lower().split())
    if known in LICENCES:
        return {"license": known}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", known).strip("-") or "other"}


def _base_models(recipe: Recipe, start: str) -> list[str]:
    """The hub ids of the encoders that the student is made of: its own, and those of its teacher."""
    teacher = recipe.teacher
    names = [*teacher.networks] or [teacher.encoder]
    names += [one.model for models in (getattr(teacher, "merge", None) or {}).values() for one in models]
    if start.startswith("checkpoint: "):
        names.insert(0, start.removeprefix("checkpoint: "))
    ids = (HUB_ID.fullmatch(name) for name in names if not Path(name).exists())
    return _unique(found["id"] for found in ids if found)


def _sources(recipe: Recipe) -> list[Any]:
    """The sources of all texts; one on the hub has `hub`."""
    data = recipe.data
    splits = [one for source in data.sources for one in (source.train, source.validation, source.test)]
    return [*splits, *data.unlabeled]


def _results(recipe: Recipe, quality: Mapping[str, Any], form: str) -> list[dict[str, Any]]:
    """The results of each head that has labelled test texts, as `model-index` holds them."""
    results = []
    for name, head in quality.items():
        values = {metric: value for metric, value in head["test"].get(form, {}).items() if value is not None}
        if head["labelled"] and values:
            shown = one_line(name)
            metrics = [
                {
                    "type": METRIC_TYPES.get(metric, one_line(metric)),
                    "name": f"{shown} {one_line(metric)}",
                    "value": round(float(value), 4),
                }
                for metric, value in values.items()
            ]
            task = {"type": "text-classification", "name": shown}
            results.append({"task": task, "dataset": _dataset(recipe, shown), "metrics": metrics})
    return results


def _dataset(recipe: Recipe, head: str) -> dict[str, str]:
    """The test texts of a head; the hub tells results apart by their `config`."""
    data = recipe.data
    source: Any = data.train if isinstance(data.test, Fraction) else data.test
    if isinstance(source, tuple) or source is None:
        source = recipe.name
    name = getattr(source, "hub", None) or Path(str(source)).name
    return {"type": one_line(name), "name": one_line(name), "config": head, "split": "test"}


def _unique(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(one_line(name) for name in names if name))
