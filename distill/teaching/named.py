"""The teachers that a recipe names besides its encoder, and the heads that are left to the encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from distill.data.tokens import CHUNK
from distill.heads import Head
from distill.models.sequence_classifier import MergedTeacher, own_outputs
from distill.recipe.data_section import RecipeError
from distill.recipe.merge_section import MergedModel
from distill.recipe.schema import Job, Recipe
from distill.run import Run
from distill.storage import files_in, read_json, write_json
from distill.teaching.checked import LabelledTexts, check_logits, check_teacher, fit_temperatures
from distill.teaching.combined import CombinedTeacher, KeptLabels, unknown
from distill.teaching.imported import imported
from distill.teaching.labelling import label_texts
from distill.teaching.language_model import LanguageModel, language_model
from teachers.base import Teacher
from teachers.checkpoints import file_sha256
from teachers.hf_classifier import GENERIC
from teachers.soft_labels import SoftLabels

MERGED = "merged.json"  # the teachers of `merge` as a stage found them
KEPT = "kept"  # folder of the soft labels that were asked of teachers that know some texts only
ASKED = f"{KEPT}/asked.json"  # what came of asking language models


def asked(recipe: Job, heads: Sequence[Head]) -> list[Teacher]:
    """The teachers that know some texts only, the preferred first; their answers are kept."""
    if not isinstance(recipe, Recipe):
        return []
    teachers = imported(recipe, heads), language_model(recipe, heads)
    return [teacher for teacher in teachers if teacher]


def merged(recipe: Job, heads: Sequence[Head], accelerator: Accelerator, stage: Path) -> list[Teacher]:
    """The teachers that know every text of some heads, as `keep_merged` left them in a stage's folder.

    Raises:
        RecipeError: A classifier is another one by now, as a branch of the hub has moved.
    """
    if _fits_merged(recipe) or not (kept := _kept_merge(stage)):
        return []
    teacher = MergedTeacher(_merge(recipe), heads, accelerator, kept["temperatures"])
    if teacher.digest != kept["digest"]:
        raise RecipeError(
            "teacher.merge: its classifiers are not those that fit_teacher has read (run with --from "
            "fit_teacher, and name a @revision of those on the hub)"
        )
    return [teacher]


def merged_digests(recipe: Job, stage: Path) -> list[str]:
    """The digests of the teachers in `merged`, without loading them."""
    kept = _kept_merge(stage)
    return [kept["digest"]] if kept and not _fits_merged(recipe) else []


def fitted_heads(recipe: Job, heads: Sequence[Head]) -> tuple[Head, ...]:
    """The heads that the encoder is fine-tuned for: those that no other teacher knows for every text.

    With `fit_merged` these are all heads.
    """
    known = {} if _fits_merged(recipe) else _merge(recipe)
    return tuple(head for head in heads if head.name not in known)


def keep_merged(
    run: Run[Any], heads: Sequence[Head], sample: Callable[[], LabelledTexts], stage: Path
) -> list[Teacher]:
    """Load the teachers of `merge`, compare them with labelled texts, and calibrate those of ensembles.

    Returns the teachers whose answers the encoder is to learn, with `fit_merged`.

    Args:
        run: Its recipe names the teachers.
        heads: Of the data.
        sample: Gives labelled texts.
        stage: The folder of the stage, which keeps their digest and temperatures.

    Raises:
        RecipeError: A classifier cannot be used, or is worse than the same answer to every text.
    """
    if not (merge := _merge(run.recipe)):
        return []
    teacher = MergedTeacher(merge, heads, run.accelerator)
    logits = fit_temperatures(teacher, sample())
    check_logits("teacher.merge", logits, teacher.heads, sample(), run.info)
    if run.accelerator.is_main_process:
        about = {"digest": teacher.digest, "temperatures": teacher.temperatures, "members": teacher.about()}
        write_json(stage / MERGED, about)
    run.accelerator.wait_for_everyone()
    return [teacher] if _fits_merged(run.recipe) else []


def with_own_labels(recipe: Recipe) -> Recipe:
    """The recipe with the classifier's labels and kind for heads of `merge` without a column and labels.

    Raises:
        RecipeError: A classifier cannot be read, or its labels have no names.
    """
    heads = {}
    for name, head in recipe.heads.items():
        if head.column is None and not head.names and name in _merge(recipe):
            kind, labels = own_outputs(name, _merge(recipe)[name][0])
            if nameless := [label for label in labels if GENERIC.fullmatch(label)]:
                raise RecipeError(
                    f"heads.{name}.labels: its classifier has labels without names, {', '.join(nameless)} "
                    f"(list the labels, or map them in teacher.merge.{name}.labels)"
                )
            kind = head.kind if "kind" in head.model_fields_set else kind
            heads[name] = head.model_copy(update={"kind": kind, "labels": labels})
    return recipe.model_copy(update={"heads": recipe.heads | heads}) if heads else recipe


def _merge(recipe: Job) -> Mapping[str, Sequence[MergedModel]]:
    return getattr(recipe.teacher, "merge", None) or {}


def _fits_merged(recipe: Job) -> bool:
    return bool(getattr(recipe.teacher, "fit_merged", None))


def _kept_merge(stage: Path) -> Any:
    path = stage / MERGED
    return read_json(path) if path.exists() else None


def keep_asked(
    run: Run[Any],
    heads: Sequence[Head],
    columns: list[Any],
    sample: Callable[[], LabelledTexts],
    stage: Path,
    more: Sequence[Teacher] = (),
) -> list[dict[str, Any]]:
    """Ask the teachers that know some texts only, and keep their soft labels in a stage's folder.

    Returns what each of them is, and what came of the asking.

    Args:
        run: Its recipe names the teachers.
        heads: Of the data.
        columns: Columns of the texts to ask for.
        sample: Gives labelled texts, which each teacher is compared with first.
        stage: The folder of the stage.
        more: Further teachers to ask, after those.

    Raises:
        RecipeError: A teacher knows none of the texts, or is worse than the same answer to every text.
    """
    if not (teachers := asked(run.recipe, heads)) and not more:
        return []
    for one in teachers:
        check_teacher(getattr(one, "setting", "teacher"), one, heads, sample(), run.info)
    teacher = CombinedTeacher([*teachers, *more])
    if run.accelerator.is_main_process:
        (stage / KEPT).mkdir(exist_ok=True)
        write_json(stage / KEPT / "labels.json", teacher.labels)
        write_json(stage / KEPT / "teachers.json", [_about(one) for one in teachers])
    run.accelerator.wait_for_everyone()
    soft = _open(stage, teacher.labels)
    label_texts(run, teacher, soft, columns)
    models = [one for one in teachers if isinstance(one, LanguageModel)]
    if run.accelerator.is_main_process and not (stage / ASKED).exists():
        for model in models:
            run.info(f"{model.setting}: {model.summary()}")
        write_json(stage / ASKED, [model.about() for model in models])
        for path in files_in(stage / KEPT):  # a stopped training goes on with the same answers
            run.keep(path)
    run.accelerator.wait_for_everyone()
    counts = dict.fromkeys(teacher.labels, 0)
    for start in range(0, len(soft), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(soft)))
        for head, logits in soft.logits(rows).items():
            counts[head] += int((~unknown(logits)).sum())
    for head, count in counts.items():
        run.info(f"head {head!r}: {count:,} of {len(soft):,} texts have soft labels that other teachers gave")
    if not any(counts.values()):
        settings = ", ".join(getattr(one, "setting", "teacher") for one in teachers)
        raise RecipeError(
            f"{settings}: knows none of the {len(soft):,} texts (compare its texts with the data)"
        )
    about: list[dict[str, Any]] = read_json(stage / ASKED)
    return about


def kept_labels(stage: Path) -> KeptLabels | None:
    """What `keep_asked` kept in a stage's folder, if it asked any teacher."""
    if not (path := stage / KEPT / "labels.json").exists():
        return None
    labels = {head: tuple(own) for head, own in read_json(path).items()}
    return KeptLabels(_open(stage, labels), labels)


def taught_by(run: Run[Any], heads: Sequence[Head], stage: Path) -> dict[str, list[dict[str, Any]]]:
    """The teachers of each head, the preferred first: their names, kinds and digests.

    Args:
        run: Its recipe names the teachers.
        heads: Of the data.
        stage: The folder of the stage, where their answers and digests are kept.
    """
    path, merge = stage / KEPT / "teachers.json", _kept_merge(stage)
    some = read_json(path) if path.exists() else []
    found = {head.name: [one for one in some if head.name in one["heads"]] for head in heads}
    for name, members in (merge["members"] if merge else {}).items():
        found[name] += members
    teacher = run.recipe.teacher
    kind, names = (
        ("network", teacher.networks) if teacher.networks else ("fine-tuned encoder", (teacher.encoder,))
    )
    files = [stage, *sorted(stage.glob("member-*"))]
    for head in fitted_heads(run.recipe, heads):
        found[head.name] += [
            {"name": name, "kind": kind, "digest": file_sha256(folder / "model.safetensors")}
            for name, folder in zip(names, files, strict=True)
        ]
    return {
        name: [{key: one[key] for key in ("name", "kind", "digest")} for one in teachers]
        for name, teachers in found.items()
    }


def _about(teacher: Teacher) -> dict[str, Any]:
    """What a stage keeps of a teacher; one may have a `name` and a `kind` besides the protocol's."""
    name, kind = (getattr(teacher, key, "teacher") for key in ("name", "kind"))
    return {"name": name, "kind": kind, "digest": teacher.digest, "heads": [*teacher.labels]}


def _open(stage: Path, labels: Mapping[str, tuple[str, ...]]) -> SoftLabels:
    return SoftLabels(stage / KEPT, {head: len(own) for head, own in labels.items()})
