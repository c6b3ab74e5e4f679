"""The recipe's half that tells of data and copies, and what both are made of: sections, faults, digests."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class RecipeError(Exception):
    """Faults in a recipe, one a line: `file: key: what is wrong, got VALUE (what to do)`."""

    exit_code = 2


class Part(BaseModel):
    """A section of the recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hub(Part):
    """A data set on the Hugging Face hub, `{hub: NAME, config: ..., split: ..., revision: ...}`."""

    hub: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


class Fraction(Part):
    """A stratified, seeded part of the training split, `{from: train, fraction: 0.1}`."""

    source: Literal["train"] = Field("train", alias="from")
    fraction: float = Field(gt=0, lt=1)


def _form(value: Any) -> str:
    """Which form of a source is meant, so that its faults are told of that form alone."""
    if isinstance(value, Part):
        return type(value).__name__
    return "Hub" if isinstance(value, Mapping) else "str"


def _split_form(value: Any) -> str:
    return "Fraction" if isinstance(value, Mapping) and "hub" not in value else _form(value)


_Str = Annotated[str, Tag("str")]
_Hub = Annotated[Hub, Tag("Hub")]
Source = Annotated[_Str | _Hub, Discriminator(_form)]
SplitSource = Annotated[_Str | _Hub | Annotated[Fraction, Tag("Fraction")], Discriminator(_split_form)]


class Texts(Part):
    """Where texts are; paths are relative to `root`, by default the recipe's folder."""

    root: str = "."
    text: str = "text"
    unlabeled: tuple[Source, ...] = ()
    licence: str | None = None  # of the data; printed in the model card
    max_bad_rows: float = Field(0.01, ge=0, le=1)  # share of rows dropped before the run stops
    max_text_bytes: int = Field(1_000_000, gt=0)


class Data(Texts):
    """Where labelled and unlabelled texts are."""

    id: str | None = None
    train: Source
    validation: SplitSource = Fraction.model_validate({"from": "train", "fraction": 0.1})
    test: SplitSource = Fraction.model_validate({"from": "train", "fraction": 0.1})


class HeadRecipe(Part):
    """One head: a column, or several 0/1 columns, and how to read its labels."""

    column: str | None = None
    columns: tuple[str, ...] | None = Field(None, min_length=1)
    kind: Literal["single_label", "multi_label"] = "single_label"
    separator: str = "|"
    none: str | None = None  # the cell that means: labelled, and no label applies
    # the allowed labels in order; by default those of train
    labels: tuple[str, ...] | None = Field(None, min_length=1)
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _columns_are_multi_label(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("columns") and "kind" not in data:
            return {**data, "kind": "multi_label"}
        return data

    @model_validator(mode="after")
    def _one_source(self) -> HeadRecipe:
        if (self.column is None) == (self.columns is None):
            raise ValueError("give either `column` or `columns`")
        if self.columns is not None and self.kind != "multi_label":
            raise ValueError("`columns` of 0/1 make a multi_label head, not a single_label one")
        if not self.separator:
            raise ValueError("`separator` must not be empty")
        return self


class Augment(Part):
    """Copies of each training text for the teacher to label, and what they are made by."""

    copies: int | None = Field(None, ge=0)  # of a text; by default as `defaults` finds from the texts
    # sources, each with its weight in the draw; 0 switches one off
    noise: float = Field(1.0, ge=0)
    neighbours: float = Field(1.0, ge=0)
    mix: float = Field(0.5, ge=0)
    # of neighbours
    near_words: float = Field(0.3, ge=0, le=0.5)  # share of words that become a near one, on average
    nearest: int = Field(15, gt=0)  # near words a word
    # of noise; shares of words
    mask: float = Field(0.1, ge=0, le=1)  # word becomes the tokenizer's mask token
    drop: float = Field(0.05, ge=0, le=1)  # word is left out
    replace: float = Field(0.1, ge=0, le=1)  # word becomes a random word of the training texts
    span: float = Field(0.25, ge=0, le=1)  # share of the copies that are cut to a span

    @model_validator(mode="after")
    def _shares(self) -> Augment:
        if self.mask + self.drop + self.replace > 1:
            raise ValueError("`mask`, `drop` and `replace` are shares of the same words: at most 1 in all")
        return self


class GentleAugment(Augment):
    """Copies that stay plain text."""

    copies: int | None = Field(1, ge=0)
    noise: float = Field(0.0, ge=0)
    mix: float = Field(0.0, ge=0)


def digest_of(value: Any) -> str:
    """The sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def near(word: str, known: Any) -> str:
    """` (did you mean 'x'?)` for the nearest of the known words, or nothing."""
    match = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
