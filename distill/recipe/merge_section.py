"""The recipe's sections on teachers that exist already: classifiers to merge, and soft labels in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distill.recipe.data_section import Label
from distill.recipe.data_sources import Part, Word

if TYPE_CHECKING:
    from distill.recipe.schema import Recipe

TERMS = Field(None, description="terms of use of what it answers, for the manifest")


class MergedModel(Part):
    """A classifier that teaches one head."""

    model: str = Field(
        description="sequence classifier: hub id[@revision], folder, or package:NAME; or a network of an "
        "earlier run, RUN/stages/fit_teacher or fit_student"
    )
    labels: dict[Word, Label | None] | None = Field(
        None,
        description="label of the head for labels of the classifier; null leaves one out; default: by name",
    )
    max_length: int | None = Field(
        None, gt=2, le=8192, description="tokens read of a text; default: as its tokenizer, 512 at most"
    )
    terms: str | None = TERMS


def _models(value: Any) -> Any:
    """The classifiers of a head as a list, from a name, a mapping, or `{ensemble: [...]}`."""
    if isinstance(value, Mapping) and "ensemble" in value:
        if len(value) > 1:
            raise ValueError("`ensemble` stands alone (give labels, max_length and terms to its classifiers)")
        value = value["ensemble"]
    models = value if isinstance(value, (list, tuple)) else [value]
    if not models or not all(isinstance(one, (str, Mapping, Part)) for one in models):
        raise ValueError("expected a classifier's name, `{model: NAME, ...}`, or `{ensemble: [...]}`")
    return [{"model": one} if isinstance(one, str) else one for one in models]


Merged = Annotated[tuple[MergedModel, ...], BeforeValidator(_models)]


class SoftLabelFiles(Part):
    """Soft labels from anywhere, a row a text."""

    files: tuple[str, ...] = Field(min_length=1, description=".jsonl or .parquet files")
    values: Literal["probabilities", "logits"] | None = Field(
        None, description="default: found by the values"
    )
    terms: str | None = TERMS

    @property
    def name(self) -> str:
        """The files."""
        return ", ".join(self.files)


def _files(value: Any) -> Any:
    """The section from a file or a list of files."""
    section = value if isinstance(value, (Mapping, Part)) else {"files": value}
    if isinstance(section, Mapping) and isinstance(section.get("files"), str):
        return {**section, "files": [section["files"]]}
    return section


SoftLabels = Annotated[SoftLabelFiles, BeforeValidator(_files)]


def terms_of_use(teacher: Mapping[str, Any]) -> dict[str, str]:
    """The terms of use that a recipe's section `teacher` states, by name of the teacher.

    Args:
        teacher: The section as JSON.
    """
    found = {one["model"]: one.get("terms") for of in (teacher.get("merge") or {}).values() for one in of}
    if files := teacher.get("soft_labels"):
        found[", ".join(files["files"])] = files.get("terms")
    if llm := teacher.get("llm"):
        found[llm["model"]] = llm.get("terms")
    return {name: terms for name, terms in found.items() if terms}


def with_terms(
    teachers: Mapping[str, Sequence[Mapping[str, Any]]], teacher: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The teachers of each head with the terms of use that a recipe's section `teacher` states."""
    terms = terms_of_use(teacher)
    return {
        head: [{**one, **({"terms": terms[one["name"]]} if one["name"] in terms else {})} for one in of]
        for head, of in teachers.items()
    }


def kept_heads(recipe: Recipe) -> tuple[str, ...]:
    """The heads that the student has from an earlier run, whose student also teaches them."""
    merge, own = recipe.teacher.merge or {}, recipe.student.encoder
    return tuple(name for name in recipe.heads if [one.model for one in merge.get(name, ())] == [own])


def frozen_heads(recipe: Recipe) -> tuple[str, ...]:
    """Those of them that compute what they computed before."""
    trained = {*recipe.student.train}
    if trained & {"encoder", "heads"}:
        return ()
    return tuple(name for name in kept_heads(recipe) if name not in trained)
