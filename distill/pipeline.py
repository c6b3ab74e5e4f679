"""The stages of a run and their order.

    prepare -> fit_teacher -> label -> fit_student -> calibrate -> export -> check -> bundle

then the report, which is made anew each time. A stage's inputs are the sections of the recipe it
reads and the stage before it, so a change redoes what follows from it and nothing else. A section that
a later stage names again goes on from there alone: other unlabelled texts leave the teacher as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.data.prepare import contents, prepare
from distill.models.checkpoints import weights_named
from distill.recipe.data_section import RecipeError, digest_of
from distill.recipe.schema import Job, Pretraining, Recipe
from distill.reports.report import summary, write_report
from distill.run import Run, written_whole
from distill.stages.calibrate import calibrate_heads
from distill.stages.check import check
from distill.stages.export_onnx import export
from distill.stages.fit_student import check_vocabulary, fit_student
from distill.stages.fit_teacher import fit_teacher, label
from distill.stages.pretrain import fit_start, keep_teacher, prepare_texts
from distill.stages.publish import bundle
from distill.training.devices import make_accelerator

Work = Callable[[Run, Path], Mapping[str, Any]]
Stages = Mapping[str, tuple[Work, tuple[str, ...], bool]]


def _prepare(run: Run, folder: Path) -> Mapping[str, Any]:
    return prepare(run.recipe, folder, run.folder / "data_report.json")


# Each stage with its work, the sections of the recipe that it reads, and whether it is long:
# then every process of `accelerate launch` takes part, and a stopped one goes on where it was.
STAGES: Stages = {
    "prepare": (_prepare, ("seed", "data", "unlabeled", "heads", "head_order"), False),
    "fit_teacher": (fit_teacher, ("teacher", "precision", "taught"), True),
    "label": (label, ("unlabeled", "augment"), True),
    "fit_student": (fit_student, ("student", "distillation", "match", "max_length"), True),
    "calibrate": (calibrate_heads, (), False),
    "export": (export, ("export", "exported"), False),
    "check": (check, ("gates",), False),
    "bundle": (bundle, ("name", "licence"), False),
}


# of a pretraining, by the same names
PRETRAINING: Stages = {
    "prepare": (prepare_texts, ("seed", "data", "unlabeled"), False),
    "fit_teacher": (keep_teacher, ("teacher", "precision", "max_length"), True),
    "label": (label, ("augment", "max_length"), True),
    "fit_student": (fit_start, ("student", "match", "max_length"), True),
}
# what a stage leaves outside its own folder: without it the stage is not done
KEPT = {"label": "soft_labels", "bundle": "bundle"}
KEPT_OF_PRETRAINING = {"label": "soft_labels", "fit_student": "start"}


def run_recipe(
    recipe: Recipe, folder: Path, *, first: str | None = None, last: str | None = None
) -> dict[str, Any]:
    """Run a recipe's stages in a folder; returns the report, or the last stage's figures.

    Args:
        recipe: What to run.
        folder: Of the run; a run begun there goes on.
        first: Do this stage and those after it anew, whether done or not.
        last: Stop after this stage.
    """
    for network in recipe.teacher.networks:
        if Path(network).resolve().is_relative_to((folder / "stages").resolve()):
            raise RecipeError(
                f"teacher.networks: {network} is of this run, whose stages are redone (set another --out)"
            )
    check_vocabulary(recipe)
    settings = _settings(recipe)
    settings["head_order"] = list(recipe.heads)
    settings["max_length"] = recipe.export.max_length
    settings["taught"] = 1  # counts what `fit_teacher` has come to record: how much of a text is read
    settings["exported"] = 4  # and `export` to write: 7 bits, a replay, one product, levelled scales
    run = _carry_out(recipe, folder, STAGES, settings, KEPT, first=first, last=last)
    if not run.accelerator.is_main_process:
        return {}
    if last:
        return {"stage": last, "run": str(folder), "figures": run.figures(last)}
    report = write_report(folder)
    run.say(f"\n{summary(report)}\n\n{folder / 'bundle'}  {folder / 'report.html'}")
    return report


def run_pretraining(recipe: Pretraining, folder: Path) -> dict[str, Any]:
    """Teach a general start in a folder, where it then lies under `start/`; returns its figures."""
    run = _carry_out(recipe, folder, PRETRAINING, _settings(recipe), KEPT_OF_PRETRAINING)
    if not run.accelerator.is_main_process:
        return {}
    figures = run.figures("fit_student")
    run.say(
        f"\n{folder / 'start'}  cosine to the teacher on held-out texts {figures['validation']['mean']:.4f}"
    )
    return {"start": str(folder / "start"), "figures": figures}


def _carry_out(
    recipe: Job,
    folder: Path,
    stages: Stages,
    settings: dict[str, Any],
    kept: Mapping[str, str],
    *,
    first: str | None = None,
    last: str | None = None,
) -> Run:
    """Do the stages that are not done, in order."""
    digests = _digests(recipe, stages, settings)  # first: of which data and encoders must be there
    _check_folder(recipe, folder)
    (folder / "stages").mkdir(parents=True, exist_ok=True)  # what the next command knows a run by
    run = Run(recipe, folder, make_accelerator(recipe, folder))
    if run.accelerator.is_main_process:
        with written_whole(folder / "recipe.yaml") as file:
            said = recipe.model_dump(mode="json", by_alias=True, exclude={"data": {"root"}})
            file.write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
        names = list(stages)
        for name in names[names.index(first) :] if first else ():
            shutil.rmtree(run.stage(name), ignore_errors=True)
        for name, place in kept.items():
            if run.done(name) and not (folder / place).exists():
                shutil.rmtree(run.stage(name), ignore_errors=True)
    run.accelerator.wait_for_everyone()
    for name, (work, _, long) in stages.items():
        if long or run.accelerator.is_main_process:
            run.do(name, digests[name], work, long=long)
        run.accelerator.wait_for_everyone()
        if name == last:
            break
    return run


def _check_folder(recipe: Job, folder: Path) -> None:
    """Refuse a folder that holds something else than a run of this recipe's name."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out: {folder} is a file, a run needs a folder (choose another)")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "stages").is_dir():
        raise RecipeError(f"--out: {folder} holds something else than a run (choose another)")
    said = folder / "recipe.yaml"
    name = yaml.safe_load(said.read_text(encoding="utf-8"))["name"] if said.is_file() else recipe.name
    if name != recipe.name:
        raise RecipeError(f"--out: {folder} is the run of {name!r}, not of {recipe.name!r} (choose another)")


def _settings(recipe: Job) -> dict[str, Any]:
    # without what is left open, so that an option that a later version adds leaves stages done
    settings = recipe.model_dump(mode="json", exclude={"data": {"root"}}, exclude_none=True)
    settings["licence"] = settings["data"].pop("licence", None)
    return settings


def _digests(recipe: Job, stages: Stages, settings: dict[str, Any]) -> dict[str, str]:
    """The digest of each stage's inputs, in order."""
    # a folder or a package may hold other weights than the last time
    for side, weights in weights_named(recipe).items():
        settings[side]["weights"] = weights
    settings["data"]["contents"], texts = contents(recipe.data)
    settings["unlabeled"] = [settings["data"].pop("unlabeled"), texts]
    digests, before, later = {}, "", [section for _, sections, _ in stages.values() for section in sections]
    for name, (_, sections, _) in stages.items():
        digests[name] = digest_of([name, before, {section: settings[section] for section in sections}])
        later = later[len(sections) :]
        carried = {section: settings[section] for section in sections if section not in later}
        before = digest_of([name, before, carried])
    return digests
