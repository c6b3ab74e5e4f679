"""The stages of a run, their order, and what redoes each.

    prepare -> fit_teacher -> label -> fit_student -> calibrate -> export -> check -> bundle

then the report, which is written each time. A stage names everything that its result depends on, so a changed
setting redoes the stages that depend on it and no others.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill.data.prepare import contents, prepare
from distill.models.checkpoints import weights_named
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Job, Pretraining, Recipe
from distill.reports.report import summary, write_report
from distill.run import Run, Stage, stage_digests, written_whole
from distill.stages.calibrate import calibrate_heads
from distill.stages.check import check
from distill.stages.export_onnx import export_onnx
from distill.stages.fit_student import fit_student
from distill.stages.fit_teacher import fit_teacher
from distill.stages.label import label
from distill.stages.pretrain import keep_teacher, prepare_texts, pretrain_student
from distill.stages.publish import publish
from distill.stages.student_init import check_vocabulary
from distill.training.devices import make_accelerator


def _prepare(run: Run[Recipe], folder: Path) -> Mapping[str, Any]:
    return prepare(run.recipe, folder, run.folder / "data_report.json")


LABELLED = ("seed", "data", "heads")
TEACHER = (*LABELLED, "teacher", "precision")  # other unlabelled texts leave the teacher as it is
LABEL = (*TEACHER, "unlabeled", "augment")
STUDENT = (*LABEL, "student", "distillation", "match", "max_length")
EXPORT = (*STUDENT, "quantize")
CHECK = (*EXPORT, "gates")

STAGES = (
    Stage("prepare", _prepare, (*LABELLED, "unlabeled")),
    Stage("fit_teacher", fit_teacher, TEACHER, resumes=True),
    Stage("label", label, LABEL, resumes=True, leaves="soft_labels"),
    Stage("fit_student", fit_student, STUDENT, resumes=True),
    Stage("calibrate", calibrate_heads, STUDENT),
    Stage("export", export_onnx, EXPORT),
    Stage("check", check, CHECK),
    Stage("bundle", publish, (*CHECK, "name", "licence"), leaves="bundle"),
)

KEPT_TEACHER = ("seed", "data", "unlabeled", "teacher", "precision", "max_length")

PRETRAINING_STAGES = (
    Stage("prepare", prepare_texts, ("seed", "data", "unlabeled")),
    Stage("fit_teacher", keep_teacher, KEPT_TEACHER, resumes=True),
    Stage("label", label, (*KEPT_TEACHER, "augment"), resumes=True, leaves="soft_labels"),
    Stage("fit_student", pretrain_student, (*KEPT_TEACHER, "augment", "student", "match"), resumes=True,
          leaves="start"),
)  # fmt: skip


def stage_inputs(recipe: Job) -> dict[str, Any]:
    """The value of every input that a stage may name, as JSON.

    Settings that the recipe leaves open are left out, so that an option added later leaves finished runs
    done. Data and weights are identified by their content, as a folder or a package may hold others than last
    time.
    """
    settings = recipe.model_dump(mode="json", exclude_none=True)
    weights = weights_named(recipe)
    labelled, unlabelled = contents(recipe.data)
    data = settings.pop("data")
    data.pop("root")
    inputs = {
        **settings,
        "licence": data.pop("licence", None),
        "unlabeled": [data.pop("unlabeled"), unlabelled],
        "data": [data, labelled],
        "teacher": [settings["teacher"], weights["teacher"]],
        "student": [settings["student"], weights["student"]],
    }
    if isinstance(recipe, Recipe):
        inputs["heads"] = list(settings["heads"].items())  # in order
        inputs["max_length"] = recipe.export.max_length
        inputs["quantize"] = recipe.export.quantize
    return inputs


def run_recipe(
    recipe: Recipe, folder: Path, *, first: str | None = None, last: str | None = None
) -> dict[str, Any]:
    """Run a recipe's stages in a folder; returns the report, or the metrics of the stage `last`.

    Args:
        recipe: What to run.
        folder: Of the run; a run that started there continues.
        first: Do this stage and those after it again, even if they are done.
        last: Stop after this stage.
    """
    for network in recipe.teacher.networks:
        if Path(network).resolve().is_relative_to((folder / "stages").resolve()):
            raise RecipeError(
                f"teacher.networks: {network} is of this run, whose stages are redone (set another --out)"
            )
    check_vocabulary(recipe)
    run = _run_stages(recipe, folder, STAGES, first=first, last=last)
    if not run.accelerator.is_main_process:
        return {}
    if last:
        return {"stage": last, "run": str(folder), "metrics": run.metrics(last)}
    report = write_report(folder)
    run.info(f"\n{summary(report)}\n\n{folder / 'bundle'}  {folder / 'report.html'}")
    return report


def run_pretraining(recipe: Pretraining, folder: Path) -> dict[str, Any]:
    """Pretrain a student in a folder, where it is saved under `start/`; returns its metrics."""
    run = _run_stages(recipe, folder, PRETRAINING_STAGES)
    if not run.accelerator.is_main_process:
        return {}
    metrics = run.metrics("fit_student")
    cosine = metrics["validation"]["mean"]
    run.info(f"\n{folder / 'start'}  cosine to the teacher on held-out texts {cosine:.4f}")
    return {"start": str(folder / "start"), "metrics": metrics}


def _run_stages(
    recipe: Job,
    folder: Path,
    stages: Sequence[Stage],
    *,
    first: str | None = None,
    last: str | None = None,
) -> Run[Any]:
    """Do the stages that are not done, in order."""
    digests = stage_digests(stages, stage_inputs(recipe))  # first: data and encoders must be there
    _check_folder(recipe, folder)
    (folder / "stages").mkdir(parents=True, exist_ok=True)  # by which the next command recognises a run
    run = Run(recipe, folder, make_accelerator(recipe, folder))
    if run.accelerator.is_main_process:
        with written_whole(folder / "recipe.yaml") as file:
            content = recipe.model_dump(mode="json", by_alias=True, exclude={"data": {"root"}})
            file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        names = [stage.name for stage in stages]
        for name in names[names.index(first) :] if first else ():
            shutil.rmtree(run.stage(name), ignore_errors=True)
    run.accelerator.wait_for_everyone()
    for stage in stages:
        if stage.resumes or run.accelerator.is_main_process:
            run.do(stage, digests[stage.name])
        run.accelerator.wait_for_everyone()
        if stage.name == last:
            break
    return run


def _check_folder(recipe: Job, folder: Path) -> None:
    """Refuse a folder that holds something else than a run of this recipe's name."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out: {folder} is a file, expected a folder (choose another)")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "stages").is_dir():
        raise RecipeError(f"--out: {folder} holds something else than a run (choose another)")
    written = folder / "recipe.yaml"
    name = yaml.safe_load(written.read_text(encoding="utf-8"))["name"] if written.is_file() else recipe.name
    if name != recipe.name:
        raise RecipeError(f"--out: {folder} is the run of {name!r}, not of {recipe.name!r} (choose another)")
