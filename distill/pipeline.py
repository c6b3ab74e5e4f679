"""The stages of a run, their order, and what redoes each.

    prepare -> fit_teacher -> label -> fit_student -> calibrate -> export -> check -> bundle

then the report, which is written each time. A stage names everything that its result depends on, so a changed
setting redoes the stages that depend on it and no others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from distill.data.in_memory import has_data_in_memory, name_sources, write_sources
from distill.data.prepare import contents, prepare
from distill.models.checkpoints import encoder_identities
from distill.probe import probe
from distill.recipe.data_section import RecipeError, digest_of
from distill.recipe.load import dump_yaml, load_recipe, load_yaml, parse_recipe
from distill.recipe.near import near
from distill.recipe.schema import Job, Pretraining, Recipe
from distill.reports.report import summary, write_report
from distill.run import LOG, Run, Stage, read_record
from distill.stages import artifacts
from distill.stages.calibrate import calibrate_heads
from distill.stages.check import check
from distill.stages.export_onnx import export_onnx
from distill.stages.fit_student import fit_student
from distill.stages.fit_teacher import fit_teacher
from distill.stages.label import label
from distill.stages.pretrain import keep_teacher, prepare_texts, pretrain_student
from distill.stages.publish import publish
from distill.storage import damaged, locked, written_whole
from distill.training.devices import is_main_process, make_accelerator
from distill.training.interrupts import Interrupted
from export.graph.gates import GateError
from export.runtime.classifier import Classifier
from export.runtime.cpus import available_cores


def _prepare(run: Run[Recipe], folder: Path) -> Mapping[str, Any]:
    return prepare(run.recipe, folder, run.folder / "data_report.json")


def label_plain_texts(run: Run[Pretraining], folder: Path) -> Mapping[str, Any]:
    """As `label`, with augmented texts that stay plain text: near words alone."""
    return label(run, folder, weights=(0.0, 1.0, 0.0))


def _data_report(run: Run[Any]) -> list[Path]:
    return [run.folder / "data_report.json"]


def _soft_labels(run: Run[Any]) -> list[Path]:
    return [artifacts.soft_labels_folder(run)]


LABELLED = ("seed", "data", "heads")
TEACHER = (*LABELLED, "teacher", "precision")  # other unlabelled texts leave the teacher as it is
LABEL = (*TEACHER, "unlabeled", "augment")
STUDENT = (*LABEL, "student", "distillation", "match", "max_length")
EXPORT = (*STUDENT, "quantize")
CHECK = (*EXPORT, "gates")

_ONE_AT_A_TIME = Lock()  # two runs in one process would share torch's random numbers and the accelerator

STAGES = (
    Stage("prepare", _prepare, (*LABELLED, "unlabeled"), version=2, leaves=_data_report),
    Stage("fit_teacher", fit_teacher, TEACHER, resumes=True),
    Stage("label", label, LABEL, resumes=True, leaves=_soft_labels),
    Stage("fit_student", fit_student, STUDENT, resumes=True),
    Stage("calibrate", calibrate_heads, STUDENT),
    Stage("export", export_onnx, EXPORT),
    Stage("check", check, CHECK, version=2),
    Stage("bundle", publish, (*CHECK, "name", "licence"), leaves=lambda run: [run.folder / "bundle"]),
)

KEPT_TEACHER = ("seed", "data", "unlabeled", "teacher", "precision", "max_length")

PRETRAINING_STAGES = (
    Stage("prepare", prepare_texts, ("seed", "data", "unlabeled"), leaves=_data_report),
    Stage("fit_teacher", keep_teacher, KEPT_TEACHER, resumes=True),
    Stage("label", label_plain_texts, (*KEPT_TEACHER, "augment"), resumes=True, leaves=_soft_labels),
    Stage("fit_student", pretrain_student, (*KEPT_TEACHER, "augment", "student", "match"), resumes=True,
          leaves=lambda run: [run.folder / "start"]),
)  # fmt: skip


def stage_inputs(recipe: Job) -> dict[str, Any]:
    """The value of every input that a stage may name, as JSON.

    Settings that the recipe leaves open are left out, so that an option added later leaves finished runs
    done. Data and weights are identified by their content, as a folder or a package may hold others than last
    time.
    """
    settings = recipe.model_dump(mode="json", exclude_none=True)
    weights = encoder_identities(recipe)
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


def stage_digests(stages: Sequence[Stage], inputs: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each stage: the values of its inputs, and the versions of it and of the stages before it.

    Args:
        stages: In order.
        inputs: A JSON value for every input that a stage names.
    """
    digests, versions = {}, []
    for stage in stages:
        versions.append([stage.name, stage.version])
        values = {name: inputs[name] for name in stage.inputs}
        digests[stage.name] = digest_of([versions, values])
    return digests


@dataclass(frozen=True)
class RunResult:
    """What a run left in its folder.

    Attributes:
        folder: The folder of the run.
        report: The content of report.json; where the run stopped after a stage, that stage's metrics.
    """

    folder: Path
    report: dict[str, Any]

    @property
    def bundle(self) -> Path:
        """The folder of the bundle."""
        return self.folder / "bundle"

    @cached_property
    def classifier(self) -> Classifier:
        """The bundle, loaded.

        Raises:
            BundleError: The run stopped before it wrote a bundle.
        """
        return Classifier.load(self.bundle)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path | None = None,
    *,
    first: str | None = None,
    last: str | None = None,
) -> RunResult:
    """Run a recipe: data in, bundle out. Finished stages are skipped, a stopped run continues.

    Args:
        recipe: The path of a YAML file, its content as a dict, or a `Recipe`. In a dict, `data.train`,
            `data.validation`, `data.test` and `data.unlabeled` may also be a pandas data frame or a
            `datasets.Dataset`, which are written to `inputs` in the run's folder.
        out: The folder of the run, by default `runs/NAME`.
        first: Do this stage and those after it again, even if they are done.
        last: Stop after this stage.

    Raises:
        RecipeError: The recipe is invalid, `out` holds something else, or there is no such stage.
        DataError: The data cannot be read or used.
        EncoderError: An encoder cannot be loaded.
        TrainingError: A loss is not finite.
        RunLockedError: Another process or thread works in the folder.
        GateError: The bundle fails a gate; the report is written nevertheless. `allow` in `gates` lets a head
            pass.
    """
    _check_stages(first, last)
    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(recipe)
    data = None
    if not isinstance(recipe, Recipe):
        recipe, data = _from_values(recipe, out)
    folder = _folder(recipe.name, out)
    for network in recipe.teacher.networks:
        if Path(network).resolve().is_relative_to((folder / "stages").resolve()):
            raise RecipeError(
                f"teacher.networks: {network} is of this run, whose stages are redone (set another --out)"
            )
    inputs = None if data else stage_inputs(recipe)  # first: data and encoders must be there
    with _own_folder(recipe.name, folder):
        try:
            done = _run_stages(recipe, folder, STAGES, inputs, data=data, first=first, last=last)
        except GateError as error:
            LOG.info(f"\n{summary(write_report(folder))}\n")
            earlier = f"; {folder / 'bundle'} is of an earlier run" if (folder / "bundle").exists() else ""
            raise GateError(
                f"{error}\nno bundle is published: its metrics are in {folder / 'report.html'}, the refused "
                f"candidate is in {folder / 'stages/export/candidate'}{earlier}"
            ) from None
        if not done.accelerator.is_main_process:
            return RunResult(folder, {})
        if last:
            return RunResult(folder, {"stage": last, "run": str(folder), "metrics": done.metrics(last)})
        return RunResult(folder, write_report(folder))


def run_pretraining(recipe: Pretraining, folder: Path) -> dict[str, Any]:
    """Pretrain a student in a folder, where it is saved under `start/`; returns its metrics."""
    inputs = stage_inputs(recipe)
    with _own_folder(recipe.name, folder):
        run = _run_stages(recipe, folder, PRETRAINING_STAGES, inputs)
    if not run.accelerator.is_main_process:
        return {}
    return {"start": str(folder / "start"), "metrics": run.metrics("fit_student")}


@contextmanager
def _own_folder(name: str, folder: Path) -> Iterator[None]:
    """Hold the folder of a run of this name, made if it is missing, against other processes and threads."""
    if not is_main_process():
        yield
        return
    _check_folder(name, folder)
    new = not folder.exists()
    (folder / "stages").mkdir(parents=True, exist_ok=True)  # by which the next command recognises a run
    with locked(folder):
        _check_folder(name, folder)  # another run may have come first
        for leftover in folder.rglob(".*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        try:
            with _ONE_AT_A_TIME:
                yield
        except BaseException:
            if new and {path.name for path in folder.rglob("*")} <= {"stages", ".lock", ".holder.json"}:
                shutil.rmtree(folder, ignore_errors=True)  # refused before anything was written
            raise


def _run_stages(
    recipe: Job,
    folder: Path,
    stages: Sequence[Stage],
    inputs: Mapping[str, Any] | None,
    *,
    data: Mapping[str, Any] | None = None,
    first: str | None = None,
    last: str | None = None,
) -> Run[Any]:
    """Do the stages that are not done, in order.

    Args:
        recipe: Of the run.
        folder: Of the run.
        stages: In order.
        inputs: As `stage_inputs` gives them; None if `data` must be written first.
        data: A `data` section with data sets in memory.
        first: Do this stage and those after it again.
        last: Stop after this stage.
    """
    if "OMP_NUM_THREADS" not in os.environ:  # torch follows the affinity mask, but no container's quota
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    run = Run(recipe, folder, make_accelerator(recipe, folder))
    main, names = run.accelerator.is_main_process, [stage.name for stage in stages]
    start = names.index(first) if first else 0
    missing = [name for name in names[:start] if run.record(name) is None]
    if missing:
        raise RecipeError(f"--from {first}: {folder} holds no finished {missing[0]} (run it without --from)")
    if data and main:
        write_sources(data, (folder / "inputs").resolve())
    run.accelerator.wait_for_everyone()
    digests = stage_digests(stages, inputs or stage_inputs(recipe))
    again = names[start:] if first else []
    _probe(recipe, folder, {name: digest for name, digest in digests.items() if name not in again}, last)
    if main:
        with written_whole(folder / "recipe.yaml") as file:
            content = recipe.model_dump(mode="json", by_alias=True, exclude={"data": {"root"}})
            file.write_text(dump_yaml(content), encoding="utf-8")
        for name in again:
            shutil.rmtree(run.stage(name), ignore_errors=True)
    run.accelerator.wait_for_everyone()
    for number, stage in enumerate(stages):
        if stage.resumes or run.accelerator.is_main_process:
            before = [other.name for other in stages[:number] if {*other.inputs} <= {*stage.inputs}]
            try:
                run.do(stage, digests[stage.name], before)
            except Interrupted:
                raise
            except KeyboardInterrupt:
                what = "continues with what it has written" if stage.resumes else "begins again"
                raise KeyboardInterrupt(
                    f"{stage.name}: interrupted; the stage {what} when the same command is run again"
                ) from None
        run.accelerator.wait_for_everyone()
        if stage.name == last:
            break
    return run


def _probe(recipe: Job, folder: Path, digests: Mapping[str, str], last: str | None) -> None:
    """Try the encoders before anything is trained, unless the student of these digests is trained.

    Args:
        recipe: Of the run.
        folder: Of the run.
        digests: Of the stages that are not to be done again.
        last: The last stage to do.
    """
    records = {name: read_record(folder / "stages" / name / "stage.json") for name in digests}
    done = {
        name: record
        for name, record in records.items()
        if record and record["inputs"]["digest"] == digests[name]
    }
    if "fit_student" in done or last == "prepare":
        return
    teacher = None
    if "fit_teacher" in done and not damaged(folder, done["fit_teacher"]["files"]):
        teacher = folder / "stages" / "fit_teacher"
    probe(recipe, teacher, export=last not in ("fit_teacher", "label", "fit_student", "calibrate"))


def _from_values(
    values: Mapping[str, Any], out: str | Path | None
) -> tuple[Recipe, Mapping[str, Any] | None]:
    """The recipe of a dict, and its `data` section if data in memory must be written to the folder first."""
    data = values.get("data") if isinstance(values, Mapping) else None
    if not isinstance(data, Mapping):
        return parse_recipe(values), None  # which says what is missing
    data = {"root": str(Path.cwd()), **data}
    recipe = parse_recipe({**values, "data": name_sources(data, Path("inputs"))})
    if not has_data_in_memory(data):
        return recipe, None
    inputs = (_folder(recipe.name, out) / "inputs").resolve()
    return parse_recipe({**values, "data": name_sources(data, inputs)}), data


def _folder(name: str, out: str | Path | None) -> Path:
    return Path(out or f"runs/{name}")


def _check_stages(first: str | None, last: str | None) -> None:
    names = [stage.name for stage in STAGES]
    for stage in (first, last):
        if stage is not None and stage not in names:
            raise RecipeError(f"no stage {stage!r}{near(stage, names)} (stages: {', '.join(names)})")
    if first and last and names.index(first) > names.index(last):
        raise RecipeError(f"the first stage {first} comes after the last, {last} (swap them)")


def _check_folder(name: str, folder: Path) -> None:
    """Refuse a folder that holds something else than a run of this name."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out: {folder} is a file, expected a folder (choose another)")
    if "::" in str(folder.resolve()):  # datasets reads it as a chain of file systems
        raise RecipeError(
            f"--out: {folder.resolve()} has :: in it, which a run's folder cannot (choose another)"
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "stages").is_dir():
        raise RecipeError(f"--out: {folder} holds something else than a run (choose another)")
    other = _recipe_name(folder / "recipe.yaml")
    if other not in (name, None):
        raise RecipeError(
            f"--out: {folder} is the run of {other!r}, not of {name!r} (choose another, or delete "
            f"{folder / 'recipe.yaml'} if it is damaged)"
        )


def _recipe_name(path: Path) -> str | None:
    """The name in a run's recipe.yaml, None if the file is missing or damaged; a run writes it again."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, UnicodeDecodeError, RecipeError):
        return None
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None
