"""What a report says of a run besides its metrics: networks, settings, learning curves, warnings, analysis.

Everything here reads what may be missing or of an earlier version, and then leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.recipe import defaults
from distill.recipe.merge_section import with_terms
from distill.reports.text import one_line
from distill.run import StageRecord
from distill.storage import read_json

ANALYSIS = "stages/check/analysis.json"
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration, RecursionError)
SHARE = 0.05  # of truncated texts or unknown tokens, which a report warns of
LISTED = 3  # spellings and labels in a warning
CURVES = ("epochs", "steps", "best_epoch", "metric", "texts", "history", "validation_history", "losses")


def about_run(folder: Path, recipe: Mapping[str, Any], stages: Mapping[str, StageRecord]) -> dict[str, Any]:
    """What a report says of networks, data and the asking.

    The keys are `teacher`, `teachers`, `asked`, `student`, `training`, `settings`, `distillation`,
    `warnings`, `analysis`.

    Args:
        folder: Of the run.
        recipe: Its recipe.yaml.
        stages: The records of its stages.
    """
    metrics = {name: stage["metrics"] for name, stage in stages.items()}
    teacher = _known(_network, folder, "fit_teacher", metrics) or {}
    student = _known(_network, folder, "fit_student", metrics) or {}
    data, analysis = (read_json(folder / path) for path in ("data_report.json", ANALYSIS))
    return {
        "teacher": {"names": [], "adopted": False, **(_known(_teacher, recipe) or {}), **teacher},
        "teachers": _known(_teachers, recipe, metrics) or {},
        "asked": _known(lambda: [dict(one) for one in metrics["fit_teacher"].get("asked", ())]) or [],
        "student": student,
        "training": {side: _known(_curves, metrics, f"fit_{side}") or {} for side in ("teacher", "student")},
        "settings": _known(_settings, recipe, student, teacher, metrics) or {},
        "distillation": _known(_distillation, recipe, metrics) or {},
        "warnings": [*(_known(_data_warnings, data) or ()), *(_known(_text_warnings, metrics) or ())],
        "analysis": analysis if isinstance(analysis, dict) else None,
    }


def _known(function: Callable[..., Any], *given: Any) -> Any:
    """The value of a function, None where what it reads is missing or of another version."""
    try:
        found = function(*given)
        return list(found) if isinstance(found, Iterator) else found
    except DAMAGED:
        return None


def _teacher(recipe: Mapping[str, Any]) -> dict[str, Any]:
    teacher = recipe["teacher"]
    networks = list(teacher.get("networks") or ())
    merge = teacher.get("merge") or {}
    own = [] if merge and merge.keys() == recipe["heads"].keys() else [teacher["encoder"]]
    models = [one["model"] for of in merge.values() for one in of]
    return {
        "names": networks or [*dict.fromkeys(models), *own],
        "adopted": bool(networks),
        "merged": len({*models}),
    }


def _teachers(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The teachers of each head, with their terms of use."""
    return with_terms(metrics["fit_teacher"]["teachers"], recipe["teacher"])


def _network(folder: Path, stage: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of a network, from the config.json of its encoder."""
    own = metrics[stage]
    config = read_json(folder / "stages" / stage / "config.json") or {}
    # a student may read fewer tokens than its teacher
    read = (read_json(folder / "stages" / stage / "tokenizer_config.json") or {}).get("model_max_length")

    def first(*names: str) -> Any:
        return next((config[name] for name in names if isinstance(config.get(name), int)), None)

    return {
        "architecture": config.get("model_type"),
        "parameters": own.get("parameters"),
        "layers": first("num_hidden_layers", "n_layers"),
        "hidden": first("hidden_size", "dim"),
        "attention_heads": first("num_attention_heads", "n_heads"),
        "vocabulary": first("vocab_size"),
        "max_length": own.get("max_length") or read or metrics["fit_teacher"].get("max_length"),
        "initialisation": own.get("start"),
    }


def _curves(metrics: Mapping[str, Any], stage: str) -> dict[str, Any]:
    return {key: metrics[stage][key] for key in CURVES if key in metrics[stage]}


def _settings(
    recipe: Mapping[str, Any],
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The recipe with the values that were used where it leaves a setting open."""
    sections = {key: dict(value) if isinstance(value, Mapping) else value for key, value in recipe.items()}
    used = {
        "teacher": {"max_length": teacher.get("max_length")},
        "student": {
            **{key: student.get(key) for key in ("layers", "hidden", "attention_heads")},
            "vocabulary": "full",
        },
        "export": {"max_length": student.get("max_length")},
    }
    if metrics["prepare"].get("sources"):
        used["data"] = {"mixing": defaults.MIXING}
        used["augment"] = {"copies": metrics["label"]["copies"]}
        used["distillation"] = {"fill": True}
    for side in ("teacher", "student"):
        used[side] |= {
            "seed": metrics[f"fit_{side}"].get("seed"),
            "metric": metrics[f"fit_{side}"].get("metric"),
            "network": "heads",
        }
    for name, values in used.items():
        section = sections[name]
        section |= {key: value for key, value in values.items() if section.get(key) is None}
    # without loss and temperature, which each head has
    given = sections["distillation"]
    kept = {key: given[key] for key in ("soft_weight", "fill") if given.get(key) is not None}
    return {**sections, "distillation": kept}


def _distillation(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The loss and the temperature of each head."""
    given, packed = recipe["distillation"], recipe["student"].get("network") == "packed"
    found = {}
    for name, head in metrics["check"]["quality"].items():
        by_default = "kl" if packed else defaults.distillation_loss(head["kind"], head["labels"])
        loss = given["loss"] or by_default
        temperature = given["temperature"] or defaults.distillation_temperature(loss)
        found[name] = {"loss": loss, "temperature": temperature}
    return found


def _data_warnings(data: Mapping[str, Any]) -> Iterator[str]:
    for key, what in (("dropped", "dropped"), ("leaked", "removed")):
        for kind, rows in data.get(key, {}).items():
            first = rows["first"][0]
            yield f"{_count(rows['count'], 'row')} {what}: {kind}; first {first['file']}:{first['line']}"
    for head, spellings in data.get("spellings", {}).items():
        shown = [f"{found['spelling']!r} is {found['label']!r} ({found['cells']})" for found in spellings]
        yield f"Head {head!r}: other spellings of labels: {_some(shown)}"
    for head, labels in data.get("rare", {}).items():
        shown = [f"{label!r} ({texts})" for label, texts in labels.items()]
        if shown:
            yield f"Head {head!r}: labels left out for their few training texts (min_texts): {_some(shown)}"
    rows = data.get("rows", {})
    for head, labels in data.get("labels", {}).items():
        labelled = data.get("labelled", {}).get(head, {})
        for split in ("validation", "test"):
            if rows.get(split) and (never := [label for label, texts in labels.items() if not texts[split]]):
                if not labelled.get(split):
                    yield f"Head {head!r}: no {split} text is labelled"
                else:
                    yield f"Head {head!r}: labels without a {split} text: {_some(map(repr, never))}"


def _text_warnings(metrics: Mapping[str, Any]) -> Iterator[str]:
    teacher = metrics["fit_teacher"]
    if (share := teacher.get("truncated_texts", 0.0)) > SHARE:
        yield f"{share:.0%} of the training texts are truncated to {teacher['max_length']} tokens"
    if (share := teacher.get("unknown_tokens", 0.0)) > SHARE:
        yield f"The teacher's vocabulary does not cover {share:.0%} of the validation texts' tokens"


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"


def _some(shown: Any) -> str:
    every = list(shown)
    more = [f"{len(every) - LISTED:,} more"] if len(every) > LISTED else []
    return ", ".join(every[:LISTED] + more)


def kept_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the heads that the student has from an earlier run, and on how much has changed of them."""
    kept = report.get("kept", {})
    if frozen := [one_line(name) for name, head in kept.items() if head["frozen"]]:
        yield f"kept: {', '.join(frozen)} (frozen)"
    for name, head in kept.items():
        if not head["frozen"]:
            quality = ""
            if "metric" in head:
                quality = (
                    f", {one_line(head['metric'])} {head['before']:.4f} before and {head['after']:.4f} now"
                )
            texts = f"{head['texts']:,} texts of test"
            changed = f"{head['changed']:.1%} of its decisions changed on {texts}"
            yield f"kept: {one_line(name)}, {changed}{quality}"
