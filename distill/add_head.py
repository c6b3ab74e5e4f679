"""A new head for the teacher and the student of a finished run, or a head that is trained again.

The recipe of the earlier run gives that of a new run, in a folder of its own, so that every stage, gate and
report is the ordinary one. The student begins with the weights of the earlier student, which teaches the
heads that are kept. The encoder of the earlier teacher is fine-tuned for the new head alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.labels import label_name
from distill.data.splits import SPLITS
from distill.evaluation.metrics import labelled
from distill.heads import METRICS, Head
from distill.pipeline import STAGES, RunResult
from distill.pipeline import run as run_recipe
from distill.recipe.data_section import HeadRecipe, RecipeError
from distill.recipe.load import load_recipe, overridden
from distill.recipe.near import near
from distill.recipe.resolved import reopened
from distill.recipe.schema import Recipe
from distill.run import StageRecord, is_current, read_record
from distill.storage import damaged

Mode = Literal["frozen", "replay"]
MODES: tuple[Mode, ...] = ("frozen", "replay")
READ = ("prepare", "fit_teacher", "fit_student", "calibrate")  # the stages whose files are read
# settings of the earlier recipe that are not those of the new run
TEACHERS = {"encoder", "sha256", "layers", "networks", "merge", "fit_merged", "soft_labels", "llm"}
TEACHERS |= {"network", "negatives"}
SHAPES = {"encoder", "size", "layers", "hidden", "attention_heads", "start", "vocabulary"}
TRAINED = {"train", "metric"}
SOURCE = ("column", "columns", "kind", "text", "validation", "test")  # what describes the new texts


def add_head(
    run: str | Path,
    head: str,
    data: Any,
    *,
    mode: Mode = "frozen",
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    **source: Any,
) -> RunResult:
    """Train a new head on the teacher and the student of a finished run, whose folder is not changed.

    Args:
        run: The folder of the finished run.
        head: The name of the new head.
        data: Its labelled texts: a file or a folder, a data frame or a `datasets.Dataset`.
        mode: `frozen`: only the new head is trained; the others compute the same logits. `replay`: encoder
            and heads are trained; the earlier student teaches its heads on the old texts and the new ones,
            and a gate refuses a head that has lost too much.
        out: The folder of the new run; by default that of the run, with `-HEAD` at the end.
        overrides: Settings of the new run's recipe, such as `student.epochs=20`.
        **source: `column`, `columns` and `kind` of the head, as in a recipe; by default the column has its
            name. `text`: the column of the text; by default that of the run. `validation` and `test`: texts
            as in `data`, by default a tenth each.

    Returns:
        As `run`.

    Raises:
        RecipeError: The folder holds no finished run, the run has such a head, or a setting is invalid.
        Exception: As `run`.
    """
    return _train(Path(run), head, data, mode, out, overrides, source, new=True)


def retrain_head(
    run: str | Path,
    head: str,
    data: Any,
    *,
    mode: Mode = "frozen",
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    **source: Any,
) -> RunResult:
    """Train a head of a finished run again, on other texts and possibly with other labels.

    Labels that it has already begin with their weights. Arguments, result and errors are those of `add_head`;
    by default, column and kind are those of the run.
    """
    return _train(Path(run), head, data, mode, out, overrides, source, new=False)


def _train(
    folder: Path,
    name: str,
    data: Any,
    mode: Mode,
    out: str | Path | None,
    overrides: Sequence[str],
    source: Mapping[str, Any],
    *,
    new: bool,
) -> RunResult:
    if unknown := source.keys() - SOURCE:
        raise TypeError(f"{min(unknown)!r} is no argument{near(min(unknown), SOURCE)}")
    if mode not in MODES:
        raise RecipeError(f"mode: {mode!r}, expected frozen or replay")
    folder = folder.resolve()
    earlier, heads = _finished(folder)
    known = [head.name for head in heads]
    if new and name in known:
        raise RecipeError(f"{folder}: has a head {name!r} already (choose another name, or retrain it)")
    if not new and name not in known:
        raise RecipeError(
            f"{folder}: has no head {name!r}{near(name, known)} (its heads: {', '.join(known)})"
        )
    target = Path(out) if out else folder.with_name(f"{folder.name}-{name}")
    if target.resolve() == folder or target.resolve().is_relative_to(folder):
        raise RecipeError(f"--out: {target} is in the folder of the earlier run (choose another)")
    recipe = _recipe(folder, earlier, heads, name, data, mode, source)
    return run_recipe(overridden(recipe, overrides), target)


def _finished(folder: Path) -> tuple[Recipe, tuple[Head, ...]]:
    """The recipe of a finished run with the settings that it left open, and the heads.

    Raises:
        RecipeError: There is no run, it is not finished, its files are damaged, or it has a packed student.
    """
    path = folder / "recipe.yaml"
    if not (folder / "stages").is_dir() or not path.is_file():
        raise RecipeError(f"{folder}: is no run (give the folder of a finished run)")
    recipe, again = load_recipe(path), f"(distill run {path} --out {folder})"
    found = {stage.name: read_record(folder / "stages" / stage.name / "stage.json") for stage in STAGES}
    records: dict[str, StageRecord] = {name: record for name, record in found.items() if record}
    abstains = any(head.abstain for head in recipe.heads.values())
    for read in (*READ, *(["check"] if abstains else [])):
        if read not in records or not is_current(records[read], records):
            raise RecipeError(f"{folder}: its stage {read} is not finished {again}")
        own = {name: sha for name, sha in records[read]["files"].items() if name.startswith("stages/")}
        for name, what in damaged(folder, own).items():
            raise RecipeError(f"{folder / name}: {what} {again}")
    if recipe.student.network == "packed":
        raise RecipeError(
            f"{folder}: its student is a packed network, which takes labels with each call (distill predict "
            "--labels; it needs no further head)"
        )
    chosen: dict[str, dict[str, Any]] = {}
    for record in records.values():
        for section, settings in record["metrics"].get("chosen", {}).items():
            chosen.setdefault(section, {}).update(settings)
    return reopened(recipe, chosen), load_heads(folder / "stages/prepare")


def _recipe(
    folder: Path,
    earlier: Recipe,
    heads: Sequence[Head],
    name: str,
    data: Any,
    mode: Mode,
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """The recipe of the new run; data sets in memory stand in its section `data`."""
    teacher, student = (str(folder / "stages" / stage) for stage in ("fit_teacher", "fit_student"))
    given = earlier.model_dump(mode="json", by_alias=True, exclude_none=True)
    layout = {one.name: _kept(earlier.heads[one.name], one, mode) for one in heads}
    layout[name] = _layout(earlier.heads.get(name), name, source)
    without = {"match"} if mode == "frozen" else set()
    texts = {"file": data, "text": source.get("text") or given["data"]["text"]}
    texts |= {"columns": {name: layout[name].get("column") or layout[name]["columns"]}}
    texts |= {key: source[key] for key in ("validation", "test") if source.get(key) is not None}
    return {
        **{key: value for key, value in given.items() if key not in without},
        "name": f"{earlier.name}-{name}",
        "data": {
            "root": str(Path.cwd()),
            "train": [texts],
            **{key: given["data"][key] for key in ("licence", "max_bad_rows") if key in given["data"]},
            **({} if mode == "frozen" else _replayed(folder, texts, [h for h in heads if h.name != name])),
        },
        "heads": layout,
        "teacher": {
            **{key: x for key, x in given["teacher"].items() if key not in TEACHERS | TRAINED},
            "encoder": teacher,
            "merge": {one: student for one in layout if one != name} or None,
        },
        "student": {
            **{key: x for key, x in given["student"].items() if key not in SHAPES | TRAINED},
            "encoder": student,
            **({"train": [name], "metric": _first_metric(name, layout[name])} if mode == "frozen" else {}),
        },
        "export": {**given["export"], "max_length": _tokens(Path(student))},
    }


def _replayed(folder: Path, texts: Mapping[str, Any], kept: Sequence[Head]) -> dict[str, Any]:
    """The sources of a replay: the new texts, then the splits of the earlier run, in memory.

    Args:
        folder: Of the earlier run.
        texts: The source of the new texts.
        kept: The heads whose labels in the earlier run are read.
    """
    prepare = folder / "stages/prepare"
    train = load_split(prepare, "train")
    kept = [head for head in kept if labelled(hard_labels(train, [head])[head.name], head).any()]
    splits = {name: _in_words(load_split(prepare, name), kept) for name in SPLITS}
    names = {"train": "file", "validation": "validation", "test": "test"}
    source = {names[split]: some for split, some in splits.items()}
    columns = {head.name: head.column for head in kept}
    sources = [texts, {**source, "text": "text", "columns": columns}] if kept else [texts]
    others = [load_split(prepare, "unlabeled"), *([] if kept else [train])]
    return {"train": sources, "unlabeled": [some.select_columns("text") for some in others if len(some)]}


def _layout(earlier: HeadRecipe | None, name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """The section of the head to train; what is not given is as in the earlier run."""
    settings = earlier.model_dump(mode="json", exclude_none=True) if earlier else {}
    by_label = (
        [key.partition(".")[0] for key, labels in earlier.by_label.items() if labels] if earlier else []
    )
    for key in ("labels", "min_texts", *by_label):
        settings.pop(key, None)
    given = {key: source[key] for key in ("column", "columns", "kind") if source.get(key) is not None}
    if given.keys() & {"column", "columns"}:
        for key in ("column", "columns"):
            settings.pop(key, None)
    settings |= given
    if not settings.keys() & {"column", "columns"}:
        settings["column"] = name
    return settings


def _first_metric(name: str, layout: Mapping[str, Any]) -> str:
    """The metric of a head that compares epochs."""
    kind = layout.get("kind", "multi_label" if "columns" in layout else "single_label")
    return f"{name}.{METRICS[kind][0]}"


def _kept(recipe: HeadRecipe, head: Head, mode: Mode) -> dict[str, Any]:
    """The section of a head that is kept, with its labels in order."""
    settings = recipe.model_dump(mode="json", exclude_none=True)
    for key in ("min_texts", *(("class_weight", "thresholds") if mode == "frozen" else ())):
        settings.pop(key, None)
    if "columns" in settings:
        settings["columns"] = [one for one in settings["columns"] if label_name(one) in head.labels]
    return {**settings, "labels": [*head.labels]}


def _in_words(split: datasets.Dataset, heads: Sequence[Head]) -> datasets.Dataset:
    """A prepared split with labels in place of class indices, in the columns `Head.column`."""
    words, text = {"text": [*split["text"]]}, datasets.Value("string")
    features = {"text": text}
    for head in heads:
        own = hard_labels(split, [head])[head.name]
        if head.kind == "single_label":
            features[head.column] = text
            names = dict(enumerate(head.labels))
            words[head.column] = [names.get(int(label)) for label in own]
        else:
            features[head.column] = datasets.Sequence(text)
            words[head.column] = [
                [x for x, yes in zip(head.labels, row, strict=True) if yes] if here else None
                for row, here in zip(own, labelled(own, head), strict=True)
            ]
    return datasets.Dataset.from_dict(words, datasets.Features(features))


def _tokens(student: Path) -> int:
    """The tokens that a student reads of a text."""
    return int(json.loads((student / "tokenizer_config.json").read_text("utf-8"))["model_max_length"])
