"""Where the texts of a recipe are: a file, a data set on the hub, a part of train, or several sources."""

from __future__ import annotations

from collections.abc import Mapping
from encodings.aliases import aliases
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from distill.recipe.encoding import is_encoding
from distill.recipe.near import near


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
    """Which form of a source a value has, so that its errors are those of that form alone."""
    if isinstance(value, Part):
        return type(value).__name__
    if isinstance(value, (list, tuple)):
        return "list"
    return "Hub" if isinstance(value, Mapping) else "str"


def _encoding(name: str) -> str:
    if is_encoding(name):
        return name
    known = {*aliases.values(), *(alias.replace("_", "-") for alias in aliases)} - {name}
    raise ValueError(f"unknown encoding {name!r}{near(str(name), known)}")


def _list_form(value: Any) -> str:
    return "list" if isinstance(value, (list, tuple)) else "str"


def _some(value: Any) -> Any:
    # the `min_length` of pydantic also speaks of lists whose items are invalid
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError("must not be empty")
    return value


def _split_form(value: Any) -> str:
    return "Fraction" if isinstance(value, Mapping) and "hub" not in value else _form(value)


_Str = Annotated[str, Tag("str")]
_Hub = Annotated[Hub, Tag("Hub")]
Source = Annotated[_Str | _Hub, Discriminator(_form)]
SplitSource = Annotated[_Str | _Hub | Annotated[Fraction, Tag("Fraction")], Discriminator(_split_form)]
_List = Annotated[tuple[str, ...], Field(min_length=1), Tag("list")]
TextColumns = Annotated[_Str | _List, Discriminator(_list_form)]
Encoding = Annotated[str, AfterValidator(_encoding)]
TENTH = Fraction.model_validate({"from": "train", "fraction": 0.1})
SPLIT = "a source, or `{from: train, fraction: F}`: a stratified, seeded part of train"


def as_word(value: Any) -> Any:
    """A YAML number or boolean as the word that such a cell is read as."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, float)) else value


Word = Annotated[str, BeforeValidator(as_word)]
_Words = Annotated[tuple[Word, ...], BeforeValidator(_some), Tag("list")]
LabelColumns = Annotated[Annotated[Word, Tag("str")] | _Words, Discriminator(_list_form)]


class LabelledSource(Part):
    """One of several sources of labelled texts; what it leaves open is that of the section `data`."""

    file: str | None = Field(None, description="a file or a folder; or give `hub`")
    hub: str | None = Field(None, description="a data set on the Hugging Face hub")
    config: str | None = Field(None, description="configuration of the data set on the hub")
    split: str | None = Field(None, description="split of the data set on the hub; default: train")
    revision: str | None = Field(None, description="revision of the data set on the hub")
    id: str | None = Field(None, description="column of ids that are unique in this source")
    text: TextColumns | None = Field(None, description="column of the text, or a list of columns")
    encoding: Encoding | None = Field(None, description="encoding of its text files that are not UTF-8")
    columns: dict[str, LabelColumns] | None = Field(
        None,
        min_length=1,
        description="`{HEAD: COLUMN}`, or a list of 0/1 columns; the source then labels these heads alone; "
        "default: the heads whose columns it has",
    )
    validation: SplitSource | None = Field(None, description=SPLIT.replace("of train", "of this source"))
    test: SplitSource | None = Field(None, description=SPLIT.replace("of train", "of this source"))
    max_texts: int | None = Field(
        None, gt=0, description="at most so many of its training texts, a stratified, seeded sample"
    )

    @model_validator(mode="before")
    @classmethod
    def _file(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"file": value}
        if not isinstance(value, (Mapping, LabelledSource)):
            raise ValueError(f"must be a file or a mapping such as `{{file: ...}}`, got {value!r:.100}")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> LabelledSource:
        if (self.file is None) == (self.hub is None):
            raise ValueError("give either `file` or `hub`")
        for name in ("config", "split", "revision"):
            if self.hub is None and getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for data sets on the hub (leave it out)")
        return self

    @property
    def name(self) -> str:
        """The name in reports."""
        return str(self.file) if self.hub is None else f"hub {self.hub}"

    @property
    def train(self) -> str | Hub | None:
        """The training texts."""
        if self.hub is None:
            return self.file
        return Hub(hub=self.hub, config=self.config, split=self.split or "train", revision=self.revision)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of the text, in order."""
        return (self.text,) if isinstance(self.text, str) else self.text or ()


Sources = Annotated[tuple[LabelledSource, ...], BeforeValidator(_some), Tag("list")]
TrainSource = Annotated[_Str | _Hub | Sources, Discriminator(_form)]


class OutOfScope(Part):
    """Texts of no class, for tuning and testing alone."""

    validation: Source | None = Field(
        None, description="source of texts of no class; the score by which heads abstain is chosen on them"
    )
    test: Source | None = Field(
        None, description="source of texts of no class; how many get no answer is measured on them"
    )

    @model_validator(mode="after")
    def _has_a_source(self) -> OutOfScope:
        if self.validation is None and self.test is None:
            raise ValueError("give `validation`, `test` or both")
        return self
