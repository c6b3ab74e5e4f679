"""The stages of a run, their order, and what redoes each.

    prepare -> fit_teacher -> label -> fit_student -> calibrate -> export -> check -> bundle

then the report, which is written each time. A stage names everything that its result depends on, so a changed
setting redoes the stages that depend on it and no others.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.data import out_of_scope
from distill.data.in_memory import has_data_in_memory, name_sources, write_sources
from distill.data.prepare import contents, prepare
from distill.models.checkpoints import encoder_identities
from distill.probe import probe
from distill.push import push_run
from distill.recipe.data_section import RecipeError
from distill.recipe.llm_section import what_is_asked
from distill.recipe.load import load_recipe, parse_recipe
from distill.recipe.merge_section import terms_of_use
from distill.recipe.near import near
from distill.recipe.resolved import Choices, reopened, resolved
from distill.recipe.schema import Job, Pretraining, Recipe
from distill.reports.report import summary, write_report
from distill.run import LOG, Run, Stage
from distill.run_folder import own_folder, write_recipe
from distill.stages import artifacts
from distill.stages.calibrate import calibrate_heads
from distill.stages.check import check
from distill.stages.export_onnx import export_onnx
from distill.stages.fit_student import fit_student
from distill.stages.fit_teacher import fit_teacher
from distill.stages.label import label
from distill.stages.pretrain import keep_teacher, prepare_texts, pretrain_student
from distill.stages.publish import publish, require_passed
from distill.stages.train import limit_threads
from distill.storage import damaged, json_digest
from distill.teaching.named import with_own_labels
from distill.training.devices import describe, make_accelerator
from distill.training.interrupts import Interrupted
from export.graph.gates import GateError
from export.runtime.classifier import Classifier


def _prepare(run: Run[Recipe], folder: Path) -> Mapping[str, Any]:
    out_of_scope.texts(run.recipe.data)  # the stage check reads them; a mistake must not wait for it
    return prepare(run.recipe, folder, run.folder / "data_report.json")


def label_plain_texts(run: Run[Pretraining], folder: Path) -> Mapping[str, Any]:
    """As `label`, with augmented texts that stay plain text: near words alone."""
    return label(run, folder, weights=(0.0, 1.0, 0.0))


def _data_report(run: Run[Any]) -> list[Path]:
    return [run.folder / "data_report.json"]


def _soft_labels(run: Run[Any]) -> list[Path]:
    return [artifacts.soft_labels_folder(run)]


LABELLED = ("seed", "data", "heads")
CALIBRATED = ("thresholds",)  # settings of a head that no stage before calibrate depends on
TEACHER = (*LABELLED, "teacher", "precision")  # other unlabelled texts leave the teacher as it is
LABEL = (*TEACHER, "unlabeled", "augment")
STUDENT = (*LABEL, "student", "distillation", "match", "max_length")
CALIBRATE = (*STUDENT, "calibration")
EXPORT = (*CALIBRATE, "quantize")
CHECK = (*EXPORT, "gates", "abstain", "oos")

STAGES = (
    Stage("prepare", _prepare, (*LABELLED, "unlabeled"), version=2, leaves=_data_report),
    Stage("fit_teacher", fit_teacher, TEACHER, resumes=True),
    Stage("label", label, LABEL, resumes=True, leaves=_soft_labels),
    Stage("fit_student", fit_student, STUDENT, version=2, resumes=True),
    Stage("calibrate", calibrate_heads, CALIBRATE, version=2),
    Stage("export", export_onnx, EXPORT, version=2),
    Stage("check", check, CHECK, version=3),
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
    settings = _settings(recipe)
    weights = encoder_identities(recipe)
    labelled, unlabelled = contents(recipe.data)
    data = settings.pop("data")
    data.pop("root")
    licence, terms = data.pop("licence", None), terms_of_use(recipe.teacher.model_dump(mode="json"))
    inputs = {
        **settings,
        "licence": [licence, terms] if terms else licence,
        "unlabeled": [data.pop("unlabeled"), unlabelled],
        "data": [data, labelled],
        "teacher": [settings["teacher"], weights["teacher"]],
        "student": [settings["student"], weights["student"]],
    }
    if isinstance(recipe, Recipe):
        teacher = recipe.teacher
        if teacher.llm or teacher.soft_labels or teacher.fit_merged:  # whose answers teach the encoder
            inputs["teacher"].append(inputs["unlabeled"])
        heads = settings["heads"].items()
        calibration = {
            name: {key: head.pop(key) for key in CALIBRATED if key in head} for name, head in heads
        }
        if any(calibration.values()):
            inputs["calibration"] = calibration
        if abstain := {name: head.pop("abstain") for name, head in heads if "abstain" in head}:
            inputs["abstain"] = abstain
        if oos := data.pop("oos", None):
            inputs["oos"] = [oos, out_of_scope.contents(recipe.data)]
        inputs["heads"] = list(settings["heads"].items())  # in order
        inputs["max_length"] = recipe.export.max_length
        inputs["quantize"] = recipe.export.quantize
    return inputs


def _settings(recipe: Job) -> dict[str, Any]:
    """The settings that the recipe does not leave open and that change a result, as JSON."""
    settings = recipe.model_dump(mode="json", exclude_none=True)
    teacher = settings["teacher"] = what_is_asked(settings["teacher"])
    models = [one for of in teacher.get("merge", {}).values() for one in of]
    for part in (*models, teacher.get("soft_labels", {})):  # terms of use
        part.pop("terms", None)
    return settings


def stage_digests(stages: Sequence[Stage], inputs: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each stage: the values of its inputs, and the versions of it and of the stages before it.

    Args:
        stages: In order.
        inputs: A JSON value for every input that a stage names, but for what the recipe leaves open.
    """
    digests, versions = {}, []
    for stage in stages:
        versions.append([stage.name, stage.version])
        values = {name: inputs[name] for name in stage.inputs if name in inputs}
        digests[stage.name] = json_digest([versions, values])
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

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push the run to a repository of the hub; arguments, result and errors as in `push.push_run`."""
        return push_run(self.folder, repo_id, **options)


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
            `data.validation`, `data.test`, `data.unlabeled` and listed sources may also be pandas data frames
            or `datasets.Dataset`, which are written to `inputs` in the run's folder.
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
    recipe = with_own_labels(recipe)
    merged = ((f"merge.{name}", one.model) for name, of in (recipe.teacher.merge or {}).items() for one in of)
    for setting, network in (*(("networks", one) for one in recipe.teacher.networks), *merged):
        if Path(network).resolve().is_relative_to((folder / "stages").resolve()):
            raise RecipeError(
                f"teacher.{setting}: {network} is of this run, whose stages are redone (set another --out)"
            )
    inputs = None if data else stage_inputs(recipe)  # first: data and encoders must be there
    with own_folder(recipe.name, folder):
        try:
            done = _run_stages(recipe, folder, STAGES, inputs, data=data, first=first, last=last)
            if last == "check" and done.accelerator.is_main_process:
                require_passed(done)
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
    with own_folder(recipe.name, folder):
        run = _run_stages(recipe, folder, PRETRAINING_STAGES, inputs)
    if not run.accelerator.is_main_process:
        return {}
    return {"start": str(folder / "start"), "metrics": run.metrics("fit_student")}


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
    limit_threads()
    run = Run(recipe, folder, make_accelerator(recipe, folder))
    run.info(f"device: {describe(run.accelerator)}")
    main, names = run.accelerator.is_main_process, [stage.name for stage in stages]
    start = names.index(first) if first else 0
    missing = [name for name in names[:start] if run.record(name) is None]
    if missing:
        raise RecipeError(f"--from {first}: {folder} holds no finished {missing[0]} (run it without --from)")
    if data and main:
        write_sources(data, (folder / "inputs").resolve())
    run.accelerator.wait_for_everyone()
    inputs = inputs or stage_inputs(recipe)
    # also those of the recipe that leaves open what the stages chose as this one has it
    equal = stage_digests(stages, _reopened(inputs, recipe, run.chosen(names)))
    digests = {name: (own, equal[name]) for name, own in stage_digests(stages, inputs).items()}
    again = names[start:] if first else []
    _probe(recipe, run, {name: either for name, either in digests.items() if name not in again}, last)
    if main:
        write_recipe(folder, recipe)
        for name in again:
            shutil.rmtree(run.stage(name), ignore_errors=True)
    run.accelerator.wait_for_everyone()
    finished: list[str] = []
    try:
        for number, stage in enumerate(stages):
            if stage.resumes or main:
                before = [other.name for other in stages[:number] if {*other.inputs} <= {*stage.inputs}]
                own, other = digests[stage.name]
                run.do(stage, own, before, other)
            run.accelerator.wait_for_everyone()
            finished.append(stage.name)
            if stage.name == last:
                break
    except Interrupted:
        raise
    except KeyboardInterrupt:
        what = "continues with what it has written" if stage.resumes else "begins again"
        raise KeyboardInterrupt(
            f"{stage.name}: interrupted; the stage {what} when the same command is run again"
        ) from None
    finally:
        if main:
            write_recipe(folder, resolved(recipe, run.chosen(finished)))
    return run


def _probe(recipe: Job, run: Run[Any], digests: Mapping[str, Sequence[str]], last: str | None) -> None:
    """Try the encoders before anything is trained, unless the student of these digests is trained.

    Args:
        recipe: Of the run.
        run: The run.
        digests: Of the stages that are not to be done again.
        last: The last stage to do.
    """
    done = {
        name: record
        for name, either in digests.items()
        if (record := run.record(name)) and record["inputs"]["digest"] in either
    }
    if "fit_student" in done or last == "prepare":
        return
    teacher = None
    if "fit_teacher" in done and not damaged(run.folder, done["fit_teacher"]["files"]):
        teacher = run.stage("fit_teacher")
    probe(recipe, teacher, export=last not in ("fit_teacher", "label", "fit_student", "calibrate"))


def _reopened(inputs: Mapping[str, Any], recipe: Job, chosen: Choices) -> dict[str, Any]:
    """The inputs of the recipe with settings left open that have the chosen values."""
    settings = _settings(reopened(recipe, chosen))
    others = {name: inputs[name][1:] for name in ("teacher", "student")}
    sections = {
        name: [settings[name], *others[name]] if name in others else settings[name] for name in chosen
    }
    return {**inputs, **sections}


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
