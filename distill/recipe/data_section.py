"""The recipe's sections on data, heads and augmented texts, and what all sections are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import inf
from posixpath import normpath
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from distill.recipe.data_sources import (
    SPLIT,
    TENTH,
    Encoding,
    Fraction,
    Hub,
    LabelledSource,
    OutOfScope,
    Part,
    Source,
    SplitSource,
    TextColumns,
    TrainSource,
    Word,
    as_word,
)
from distill.recipe.defaults import MIXING
from distill.recipe.near import near


class RecipeError(Exception):
    """Errors of a recipe, one a line: `file: key: what is wrong, got VALUE (what to do)`."""

    exit_code = 2


class Texts(Part):
    """Where texts are."""

    root: str = Field(".", description="folder that paths are relative to; default: the recipe's folder")
    text: TextColumns = Field(
        "text", description="column of the text, or a list of columns, which a line break joins"
    )
    encoding: Encoding | None = Field(
        None,
        description="encoding of text files that are not UTF-8, such as cp1252",
    )
    unlabeled: tuple[Source, ...] = Field((), description="sources of texts without labels")
    licence: str | None = Field(None, description="licence of the data, for the model card")
    max_bad_rows: float = Field(
        0.01, ge=0, le=1, description="share of invalid rows that are dropped before the run stops"
    )

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of the text, in order."""
        return (self.text,) if isinstance(self.text, str) else self.text


class Data(Texts):
    """Where labelled and unlabelled texts are."""

    id: str | None = Field(None, description="column of unique ids; rows with a repeated id are invalid")
    train: TrainSource | None = Field(
        None,
        validate_default=True,
        description="a file, a folder, `{hub: NAME, config: ..., split: ...}`, or a list of sources; may be "
        "left out where teachers know every head (`networks`, `merge`, `soft_labels`, `llm`) and label the "
        "texts of `unlabeled`",
    )
    validation: SplitSource = Field(TENTH, description=SPLIT)
    test: SplitSource = Field(TENTH, description=SPLIT)
    mixing: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of several sources: an epoch reads of each in proportion to (its texts)^mixing; "
        f"default: {MIXING}",
    )
    max_texts: int | None = Field(
        None, gt=0, description="at most so many training texts a source, a stratified, seeded sample"
    )
    oos: OutOfScope | None = Field(None, description="texts of no class, which no training reads")

    @field_validator("train", mode="before")
    @classmethod
    def _is_listed(cls, train: Any) -> Any:
        if isinstance(train, Mapping) and "file" in train:
            raise ValueError("a source with settings of its own is in a list (write `train: [{file: ...}]`)")
        return train

    @field_validator("train")
    @classmethod
    def _has_texts(cls, train: Source | None, others: ValidationInfo) -> Source | None:
        if train is None and not others.data.get("unlabeled"):
            raise ValueError("is required (or give data.unlabeled, whose texts a teacher labels)")
        return train

    @field_validator("train")
    @classmethod
    def _are_different(cls, train: Any) -> Any:
        seen: dict[Any, int] = {}
        for number, source in enumerate(train if isinstance(train, tuple) else ()):
            place = source.hub or normpath(source.file)
            key = (place, source.config, source.split, source.revision, source.text)
            if (other := seen.setdefault(key, number)) != number:
                raise ValueError(f"sources {other} and {number} are both {place} (name its heads in one)")
        return train

    @field_validator("validation", "test")
    @classmethod
    def _is_of_each_source(cls, split: Any, others: ValidationInfo) -> Any:
        if isinstance(others.data.get("train"), tuple) and not isinstance(split, Fraction):
            raise ValueError(
                "must be a fraction where train is a list (give the file in its source, "
                f"`train: [{{file: ..., {others.field_name}: ...}}]`)"
            )
        return split

    @field_validator("mixing")
    @classmethod
    def _mixes(cls, mixing: float | None, others: ValidationInfo) -> float | None:
        if mixing is not None and not isinstance(others.data.get("train"), tuple):
            raise ValueError("is for several sources (leave it out, or give data.train a list)")
        return mixing

    @property
    def several(self) -> bool:
        """Whether the recipe lists its sources, so that every text has one."""
        return isinstance(self.train, tuple)

    @property
    def sources(self) -> tuple[LabelledSource, ...]:
        """The sources with what they leave open; one, which may lack training texts, if none are listed."""
        names = ("id", "text", "encoding", "validation", "test", "max_texts")
        own = {name: getattr(self, name) for name in names}
        if not isinstance(self.train, tuple):
            place = self.train.model_dump() if isinstance(self.train, Hub) else {"file": self.train}
            return (LabelledSource.model_construct(**place, **own),)
        return tuple(
            source.model_copy(update={key: x for key, x in own.items() if getattr(source, key) is None})
            for source in self.train
        )


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _label(value: Any) -> Any:
    word = as_word(value)
    if not isinstance(word, str):
        return word
    label = " ".join(normalize("NFC", word).split())
    if not label or CONTROL.search(label):
        raise ValueError("a label must have characters, and no control characters")
    return label


Label = Annotated[str, BeforeValidator(_label)]


def _by_label(value: Any, most: float = inf) -> dict[str, float] | None:
    """A mapping from labels to numbers over 0 and below `most`; None for another value."""
    valid = isinstance(value, Mapping) and value and all(_is_share(x, most) for x in value.values())
    return {_label(label): x for label, x in value.items()} if valid else None


def _is_share(value: Any, most: float) -> bool:
    return type(value) in (int, float) and 0 < value < most


class WantedPrecision(Part):
    """Thresholds of the labels whose precision is wanted; the others maximise micro F1."""

    precision: float | dict[str, float] = Field(
        description="wanted precision of the labels of a multi_label head, or `{label: precision}`: a label "
        "applies from the lowest threshold that has it; with `thresholds: f1`, the default, from that of the "
        "best micro F1"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence of the lower bound of the precision")

    @field_validator("precision", mode="before")
    @classmethod
    def _are_shares(cls, value: Any) -> Any:
        if found := value if _is_share(value, 1) else _by_label(value, 1):
            return found
        raise ValueError(f"must be a number between 0 and 1, or `{{label: number}}`, got {value!r}")

    def of(self, labels: Iterable[str]) -> Mapping[str, float]:
        """The wanted precision of each label that has one."""
        return self.precision if isinstance(self.precision, dict) else dict.fromkeys(labels, self.precision)


class Abstain(Part):
    """When a single_label head abstains: from a promised accuracy, or at a coverage."""

    accuracy: float | None = Field(
        None, gt=0, lt=1, description="accuracy of the answered texts that is promised; or give `coverage`"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence of that promise")
    coverage: float | None = Field(
        None, gt=0, le=1, description="share of the validation texts that is answered, without a promise"
    )

    @model_validator(mode="after")
    def _one_aim(self) -> Abstain:
        if (self.accuracy is None) == (self.coverage is None):
            raise ValueError("give either `accuracy`, such as 0.98, or `coverage`")
        if self.coverage is not None and "confidence" in self.model_fields_set and self.confidence != 0.95:
            raise ValueError("`confidence` is that of `accuracy` (leave it out)")
        return self


class HeadRecipe(Part):
    """One head: a column, or several 0/1 columns, and how to read its labels."""

    column: Word | None = Field(
        None,
        description="column of the labels; may be left out where sources name it; a head of `labels` alone "
        "is labelled in no file",
    )
    columns: tuple[Word, ...] | None = Field(
        None, min_length=1, description="0/1 columns, one a label, of a multi_label head"
    )
    kind: Literal["single_label", "multi_label"] = Field(
        "single_label", description="one label a text, or any number"
    )
    separator: str = Field("|", description="what separates several labels in a cell")
    none: Word | None = Field(None, description="the cell that means: labelled, and no label applies")
    labels: tuple[Label, ...] | None = Field(
        None,
        min_length=1,
        description="the allowed labels in order, or `{label: description}`; default: those of train",
    )
    descriptions: dict[Label, str] | None = Field(
        None, description="what labels mean, by label; a packed network reads them"
    )
    hypothesis: str | None = Field(
        None, description="what a packed network reads after each text, such as `The customer wants`"
    )
    min_texts: int | None = Field(
        None,
        ge=2,
        description="labels of fewer texts in train are left out of the head; default: they are an error",
    )
    weight: float = Field(1.0, gt=0, description="weight of the head in the loss")
    class_weight: Literal["balanced"] | dict[str, float] | None = Field(
        None,
        description="weight of each label in the hard loss, `balanced` or `{label: weight}`; of the texts "
        "that have it in a multi_label head, PyTorch's `pos_weight`; default: 1",
    )
    thresholds: WantedPrecision | None = Field(
        None, description="of a multi_label head: `f1` or a wanted precision"
    )
    abstain: Abstain | None = Field(
        None, description="of a single_label head: which answers are withheld; default: none"
    )

    @field_validator("class_weight", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if value is None or value == "balanced":
            return value
        if found := _by_label(value):
            return found
        raise ValueError(f"must be balanced, or `{{label: number > 0}}`, got {value!r}")

    @field_validator("thresholds", mode="before")
    @classmethod
    def _are_thresholds(cls, value: Any) -> Any:
        if value is None or value == "f1":
            return None
        if isinstance(value, (Mapping, WantedPrecision)):
            return value
        raise ValueError(f"must be f1 or `{{precision: 0.9}}`, got {value!r}")

    @model_validator(mode="before")
    @classmethod
    def _columns_are_multi_label(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("columns") and "kind" not in data:
            return {**data, "kind": "multi_label"}
        return data

    @model_validator(mode="before")
    @classmethod
    def _described_labels(cls, data: Any) -> Any:
        labels = data.get("labels") if isinstance(data, Mapping) else None
        if not isinstance(labels, Mapping):
            return data
        given = {label: text for label, text in labels.items() if text is not None}
        others = data.get("descriptions") or {}
        described = {**given, **others} if isinstance(others, Mapping) else others
        return {**data, "labels": [*labels], "descriptions": described or None}

    @model_validator(mode="after")
    def _described_labels_exist(self) -> HeadRecipe:
        for setting, labels in self.by_label.items() if self.names else ():
            known = (self.labels or tuple(map(_label, self.columns or ()))) if labels else ()
            for label in labels:
                if label not in known:
                    raise ValueError(f"{setting}: no label {label!r}{near(label, known)}")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> HeadRecipe:
        if self.column is not None and self.columns is not None:
            raise ValueError("give either `column` or `columns`, or `labels` alone")
        if self.columns is not None and self.kind != "multi_label":
            raise ValueError("`columns` of 0/1 make a multi_label head, not a single_label one")
        if self.thresholds and self.kind != "multi_label":
            raise ValueError("`thresholds` are those of a multi_label head (leave them out)")
        if self.abstain and self.kind != "single_label":
            raise ValueError("`abstain` is for single_label heads (leave it out)")
        if not self.separator:
            raise ValueError("`separator` must not be empty")
        return self

    @property
    def names(self) -> tuple[str, ...] | None:
        """The labels that the recipe lists, by `labels` or `columns`."""
        return self.labels or self.columns

    @property
    def by_label(self) -> dict[str, Mapping[str, object]]:
        """The settings that name labels."""
        weights = self.class_weight if isinstance(self.class_weight, dict) else {}
        precision = self.thresholds.of(()) if self.thresholds else {}
        return {
            "descriptions": self.descriptions or {},
            "class_weight": weights,
            "thresholds.precision": precision,
        }


def heads_of_sources(data: Data, heads: Mapping[str, HeadRecipe]) -> set[str]:
    """The heads that sources name in `columns`; raises ValueError where these do not fit the head."""
    named: set[str] = set()
    for number, source in enumerate(data.sources):
        for name, columns in (source.columns or {}).items():
            where = f"data.train.{number}.columns"
            if (head := heads.get(name)) is None:
                raise ValueError(f"{where}: no head {name!r}{near(name, heads)}")
            if not isinstance(columns, str):
                if head.kind != "multi_label" or not head.names:
                    raise ValueError(
                        f"{where}.{name}: a list of 0/1 columns is for a multi_label head that lists its "
                        f"labels (set heads.{name}.labels)"
                    )
                if len(columns) != len(head.names):
                    raise ValueError(
                        f"{where}.{name}: {len(columns)} columns, expected one for each of the "
                        f"{len(head.names)} labels of the head, in their order"
                    )
            named.add(name)
    return named


class Augment(Part):
    """Augmented texts, which the teacher labels."""

    copies: int | None = Field(
        None,
        ge=0,
        description="augmented texts per training text, and per unlabelled text within 8 million tokens; "
        "default: set from the texts' tokens",
    )
    mask: float = Field(0.1, ge=0, le=1, description="share of words replaced by the mask token")
    drop: float = Field(0.05, ge=0, le=1, description="share of words removed")
    replace: float = Field(0.1, ge=0, le=1, description="share of words replaced by words of the other texts")
    span: float = Field(0.25, ge=0, le=1, description="share of texts with noise that are cut to a span")

    @model_validator(mode="after")
    def _shares(self) -> Augment:
        if self.mask + self.drop + self.replace > 1:
            raise ValueError("`mask`, `drop` and `replace` are shares of the same words: at most 1 in all")
        return self
