"""`distill check`: what a run would read, choose and take, before anything is trained."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from distill.ask import estimate, estimate_rows
from distill.data import out_of_scope
from distill.data.dataset import load_heads
from distill.data.prepare import prepare
from distill.heads import Head
from distill.memory import available_memory
from distill.models.checkpoints import encoder_identities
from distill.probe import probe
from distill.recipe import defaults
from distill.recipe.schema import Recipe
from distill.rehearsal import Rehearsal, rehearse
from distill.reports.run_page import SPLITS, source_rows
from distill.reports.text import one_line
from distill.stages.fit_teacher import MANY_TRUNCATED
from distill.stages.train import MANY_UNKNOWN
from distill.storage import read_json
from distill.teaching.imported import imported
from distill.teaching.named import with_own_labels
from distill.training.losses import loss_of

FEW_TEXTS = 50  # labelled texts of a split, below which a point of accuracy is less than a text
FEW_OF_CLASS = 3  # training texts
MOST = 0.99  # share of one class
NAMES = ("encoder", "networks", "merge", "initialisation")  # settings that are no numbers
LISTED = 5  # labels in a warning


def plan(recipe: Recipe, *, measure: bool = True) -> dict[str, Any]:
    """The plan of a run, a JSON object.

    It holds the recipe's `digest`, the counts of `prepare`, `classes` (texts by head, label and split),
    `lengths` of the texts in tokens by split, the resolved `settings`, the `transfer` set, `steps`, `minutes`
    by stage and in `total` and `memory_bytes` (None without a measurement), `disk_bytes`, and `warnings`, a
    line each; and `asking`, what asking a language model would take, if the recipe names one.

    Args:
        recipe: Of the run.
        measure: Whether training and inference are measured, for about ten seconds.

    Raises:
        RecipeError, DataError, EncoderError, LabelError: What a run would raise before a training.
    """
    recipe = with_own_labels(recipe)
    encoder_identities(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepared = folder / "stages" / "prepare"
        prepared.mkdir(parents=True)
        began = perf_counter()
        out_of_scope.texts(recipe.data)
        counts = prepare(recipe, prepared, folder / "data_report.json")
        seconds = {"prepare": perf_counter() - began}
        classes = read_json(folder / "data_report.json")["labels"]
        heads = load_heads(prepared)
        probe(recipe, heads=heads)
        imported(recipe, heads)
        asking = estimate(recipe, heads, prepared)
        found = rehearse(recipe, folder, measure=measure)
    seconds |= found.seconds
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "digest": recipe.digest(),
        **counts,
        "classes": classes,
        "lengths": _lengths(found),
        "settings": _settings(recipe, heads, found),
        "transfer": {
            "texts": found.transfer_texts,
            "texts_to_label": found.texts_to_label,
            "exact": found.exact,
        },
        "steps": found.steps,
        "minutes": None,
        "memory_bytes": None,
        "disk_bytes": found.disk,
    }
    if asking:
        result["asking"] = asking
    if measure:
        minutes = {stage: round(value / 60, 2) for stage, value in seconds.items()}
        result["minutes"] = minutes | {"total": round(sum(seconds.values()) / 60, 2)}
        result["memory_bytes"] = found.memory
    return result | {"warnings": [one_line(line) for line in _warnings(recipe, heads, found, result)]}


def _lengths(found: Rehearsal) -> dict[str, Any]:
    limit = found.max_length["teacher"]
    return {
        split: {
            "median": int(np.median(lengths)),
            "p95": int(np.quantile(lengths, 0.95, method="higher")),
            "longest": int(lengths.max()),
            "truncated": float((lengths > limit).mean()),
        }
        for split, lengths in found.lengths.items()
        if len(lengths)
    }


def _settings(recipe: Recipe, heads: Sequence[Head], found: Rehearsal) -> dict[str, Any]:
    """The settings as the stages use them, those that the recipe leaves open included."""
    shared = ("epochs", "lr", "batch_size", "accumulate")
    teacher: dict[str, Any] = {"networks": [*recipe.teacher.networks]}
    if not recipe.teacher.networks:
        names = (*shared, "head_lr")
        teacher = {"encoder": recipe.teacher.encoder} | {name: getattr(found.teacher, name) for name in names}
    if merge := recipe.teacher.merge:
        teacher["merge"] = {head: [one.model for one in models] for head, models in merge.items()}
    student = {name: getattr(found.student, name) for name in shared} | found.shape
    sides = {"teacher": teacher, "student": student | {"initialisation": found.initialisation}}
    for side, settings in sides.items():
        settings |= {"max_length": found.max_length[side], "parameters": found.parameters[side]}
    losses: dict[str, Any] = {}
    if (distillation := found.distillation) and distillation.soft_weight:
        for head in heads:
            loss = loss_of(head, distillation.loss)
            temperature = distillation.temperature or defaults.distillation_temperature(loss)
            losses[head.name] = {"loss": loss, "temperature": temperature}
    copies = [*found.copies.train] if recipe.data.several else found.copies.train[0]
    return sides | {"augment": {"copies": copies}, "distillation": losses}


def _warnings(
    recipe: Recipe, heads: Sequence[Head], found: Rehearsal, result: Mapping[str, Any]
) -> Iterator[str]:
    for head in heads:
        yield from _of_head(head, result["labelled"][head.name], result["classes"][head.name])
    lengths = result["lengths"]["train"]
    if lengths["truncated"] > MANY_TRUNCATED:
        yield (
            f"{lengths['truncated']:.0%} of the training texts have more than {found.max_length['teacher']} "
            f"tokens and are truncated, the longest has {lengths['longest']:,} (set teacher.max_length, or "
            "split them)"
        )
    if found.unknown_tokens > MANY_UNKNOWN:
        yield (
            f"the teacher's vocabulary does not cover {found.unknown_tokens:.0%} of the validation texts' "
            "tokens (give teacher.encoder an encoder of their language)"
        )
    free = shutil.disk_usage(Path("runs") if Path("runs").is_dir() else Path()).free
    if found.disk > free:
        free_here = f"{_bytes(free)} are free here (give --out another disk)"
        yield f"a run writes about {_bytes(found.disk)}, {free_here}"
    available = available_memory()
    needed = (result["memory_bytes"] or {}).get("process", 0)
    if available is not None and needed > available:
        yield (
            f"a run needs about {_bytes(needed)} of memory, {_bytes(available)} are available (set smaller "
            "teacher.batch_size and student.batch_size)"
        )


def _of_head(head: Head, labelled: Mapping[str, int], classes: Mapping[str, Any]) -> Iterator[str]:
    """What the labels of a head leave to be desired."""
    name = f"head {head.name!r}"
    for split, use in (("validation", "compare epochs and calibrate"), ("test", "measure it")):
        if labelled[split] < FEW_TEXTS:
            texts = f"{labelled[split] or 'no'} labelled text{'s' * (labelled[split] != 1)}"
            yield f"{name}: {texts} in {split}, too few to {use} (label {FEW_TEXTS} at least)"
    if not labelled["train"]:
        return
    train = {label: split["train"] for label, split in classes.items()}
    unseen = [x for x in train if not train[x] and classes[x]["validation"] + classes[x]["test"]]
    if unseen:
        yield f"{name}: labels that no training text has: {_listed(unseen)} (add texts, or leave them out)"
    if rare := {x: n for x, n in sorted(train.items(), key=lambda item: item[1]) if 0 < n <= FEW_OF_CLASS}:
        listed = _listed([f"{label!r} ({n})" for label, n in rare.items()])
        few = f"labels of {FEW_OF_CLASS} training texts or fewer"
        yield f"{name}: {few}: {listed} (add texts, or set min_texts)"
    label = max(train, key=lambda x: train[x])
    if train[label] >= MOST * labelled["train"]:
        share = train[label] / labelled["train"]
        yield f"{name}: {share:.1%} of the training texts have the label {label!r} (add texts of others)"


def _listed(words: Sequence[str]) -> str:
    more = len(words) - LISTED
    return ", ".join(words[:LISTED]) + (f" and {more} more" if more > 0 else "")


def table(result: Mapping[str, Any]) -> str:
    """A plan as text."""
    parts = [*map(aligned, _tables(result))]
    teacher, student = result["settings"]["teacher"], result["settings"]["student"]
    names = teacher.get("encoder") or ", ".join(teacher["networks"])
    for head, models in teacher.get("merge", {}).items():
        names += f"; of head {head}: {', '.join(models)}"
    parts.append(f"teacher: {one_line(names)}\nstudent: {one_line(student['initialisation'])}")
    if result["warnings"]:
        parts.append("\n".join(f"warning: {line}" for line in result["warnings"]))
    return "\n\n".join(parts)


def _tables(result: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    splits = [split for split, rows in result["rows"].items() if rows or split != "unlabeled"]
    lengths = {split: result["lengths"].get(split) for split in splits}
    rows = [["", *splits], ["texts", *(f"{result['rows'][split]:,}" for split in splits)]]
    for head, labelled in result["labelled"].items():
        counts = (f"{labelled[split]:,}" if split in labelled else "" for split in splits)
        rows.append([f"labelled, {one_line(head)}", *counts])
    for name, key in (("tokens, median", "median"), ("tokens, 95 %", "p95")):
        rows.append([name, *(f"{found[key]:,}" if found else "" for found in lengths.values())])
    rows.append(["truncated", *(f"{found['truncated']:.1%}" if found else "" for found in lengths.values())])
    yield rows

    if sources := result.get("sources"):
        rows = [["source", "head", *SPLITS]]
        for name, head, texts in source_rows(sources):
            rows.append([one_line(name), one_line(head), *(f"{texts[split]:,}" for split in SPLITS)])
        yield rows

    rows = [["head", "labels", "fewest texts", "most texts", "distillation", "temperature"]]
    for head, classes in result["classes"].items():
        train = sorted((count["train"], label) for label, count in classes.items())
        ends = (f"{one_line(label)[:30]} {count:,}" for count, label in (train[0], train[-1]))
        loss = result["settings"]["distillation"].get(head, {"loss": "", "temperature": None})
        rows.append([one_line(head), f"{len(train):,}", *ends, loss["loss"], _number(loss["temperature"])])
    yield rows

    about = "" if result["transfer"]["exact"] else "about "
    transfer, settings = result["transfer"], result["settings"]
    sides = [settings["teacher"], settings["student"]]
    rows = [["", "teacher", "student"]]
    for key in dict.fromkeys(key for side in sides for key in side if key not in NAMES):
        rows.append([key.replace("_", " "), *(_number(side.get(key)) for side in sides)])
    yield [
        *rows,
        ["augmented texts per text", "", str(settings["augment"]["copies"]).strip("[]")],
        ["texts", f"{result['rows']['train']:,}", f"{about}{transfer['texts']:,}"],
        ["texts to label", f"{about}{transfer['texts_to_label']:,}", ""],
        ["steps", f"{result['steps']['teacher']:,}", f"{about}{result['steps']['student']:,}"],
    ]

    if "asking" in result:
        yield estimate_rows(result["asking"])

    rows = [["estimate", ""]]
    for stage, minutes in (result["minutes"] or {}).items():
        rows.append([stage, f"{minutes:,.0f} min" if minutes >= 2 else f"{60 * minutes:.0f} s"])
    for kind, size in (result["memory_bytes"] or {}).items():
        rows.append([f"memory, {kind}", _bytes(size)])
    yield [*rows, ["disk", _bytes(result["disk_bytes"])]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns: the first on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
