"""The recipe: every setting of a job with its default and range, stated once.

Frozen models without behaviour; `recipe_file` reads them from YAML. Nothing here reads data or
imports torch; names of encoders and files are checked where they are opened. Where data lies, and the
labels of heads, are told in `recipe_data`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.heads import METRICS
from distill.recipe.data_section import Augment, Data, GentleAugment, HeadRecipe, Part, Texts, digest_of, near

HEAD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class Training(Part):
    """What teacher and student training have in common."""

    pooling: Literal["cls", "mean"] = "mean"
    # of fresh weights, order and dropout; by default the recipe's, on which splits and copies depend too
    seed: int | None = Field(None, ge=0, lt=2**32)
    dropout: float = Field(0.1, ge=0, lt=1)  # hidden layers and heads
    attention_dropout: float = Field(0.0, ge=0, lt=1)  # costs a third of a CPU step; see docs
    epochs: int | None = Field(None, gt=0)  # by default as `defaults` finds from the texts
    lr: float | None = Field(None, gt=0)
    head_lr: float | None = Field(None, gt=0)  # of the heads alone; a teacher's by `defaults`, else lr
    batch_size: int = Field(32, gt=0)  # texts a step and process, before accumulation
    accumulate: int = Field(1, gt=0)  # batches a step
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)  # share of the steps
    clip: float = Field(1.0, gt=0)  # largest gradient norm
    metric: str | None = None  # HEAD.METRIC that picks the epoch; by default the mean
    patience: int | None = Field(None, gt=0)  # epochs without a better metric before stopping
    checkpoint_every: int = Field(500, gt=0)  # steps
    # what learns: encoder, heads, or names of heads
    train: tuple[str, ...] = Field(("encoder", "heads"), min_length=1)


class Imitated(Part):
    """An encoder and how it is read."""

    encoder: str = "distilbert/distilbert-base-uncased"  # hub id[@revision] | folder | package:NAME
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")  # of its weights file
    layers: int | None = Field(None, gt=0)  # keep the first so many
    pooling: Literal["cls", "mean"] = "mean"


class Teacher(Training, Imitated):
    """The model worth imitating; by default the published configuration."""

    max_length: int | None = Field(None, gt=2)  # tokens read of a text; by default as `defaults` finds
    # networks of earlier runs instead, as they are (RUN/stages/fit_teacher or fit_student): one is an
    # assistant, the mean of several an ensemble
    networks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_origin(self) -> Teacher:
        # a recipe that a run wrote down says everything, also what it left as it is
        told = [
            name
            for name in sorted(self.model_fields_set - {"networks", "max_length"})
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.networks and told:
            raise ValueError(f"`networks` are taken as they are; leave out {', '.join(told)}")
        return self


class Small(Training):
    """The shape of a student, and how it learns."""

    size: Literal["tiny", "mini", "small", "medium"] | None = None  # default tiny
    layers: int | None = Field(None, gt=0)
    hidden: int | None = Field(None, gt=0)
    attention_heads: int | None = Field(None, gt=0)
    batch_size: int = Field(128, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole_shape(self) -> Small:
        numbers = [self.layers, self.hidden, self.attention_heads]
        if any(numbers) and not all(numbers):
            raise ValueError("give all of `layers`, `hidden`, `attention_heads`, or none of them")
        if self.size and self.hidden:
            raise ValueError("`size` and `hidden` both give the shape; keep one")
        if self.hidden and self.attention_heads and self.hidden % self.attention_heads:
            raise ValueError("`hidden` must be a multiple of `attention_heads`")
        return self


class Student(Small):
    """The model small enough to serve."""

    encoder: str | None = None  # any encoder instead: its shape, and its weights as the start
    # checkpoint | general start | teacher | random; by default the shipped general start for the teacher it
    # was taught by, the BERT miniature of `size` for one from the hub, and `teacher` for any other
    start: str | None = None
    # word pieces: so many that the transfer set needs most; by default full, all of the start's
    vocabulary: Literal["full"] | Annotated[int, Field(ge=1)] | None = None

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _pieces(cls, value: Any) -> Any:
        if value in (None, "full") or (type(value) is int and value > 0):
            return value
        raise ValueError(f"must be a number of word pieces, or full, got {value!r}")

    @model_validator(mode="after")
    def _one_start(self) -> Student:
        for name in ("size", "hidden", "start"):
            if self.encoder and getattr(self, name) is not None:
                what = "start" if name == "start" else "shape"
                raise ValueError(f"`encoder` and `{name}` both give the {what}; keep one")
        return self


class Distillation(Part):
    """`(1 - soft_weight) * hard + soft_weight * distillation` for each head."""

    # loss and temperature as `defaults` finds for each head; equations and sources in `losses`
    loss: Literal["kl", "mse", "standardized"] | None = None
    temperature: float | None = Field(None, gt=0)
    soft_weight: float = Field(0.9, ge=0, le=1)


class Match(Part):
    """What the student matches inside the teacher's encoder: the weight of each loss, 0 for off."""

    # equations and sources in `matching`
    hidden: float = Field(0.0, ge=0)  # each layer's output, through a learnt projection
    # the teacher's layer for each of the student's, from 1; by default evenly spaced, the last for the last
    layers: tuple[Annotated[int, Field(gt=0)], ...] | None = None


class Export(Part):
    """The artefact."""

    quantize: Literal["int8", "none"] = "int8"
    # tokens the student reads, in training and in service; by default as many as its teacher
    max_length: int | None = Field(None, gt=2)


class Gates(Part):
    """What a bundle must hold to be written."""

    parity: float = Field(1e-3, gt=0)  # largest difference of a logit, torch against ONNX fp32
    int8_drop: float = Field(0.005, ge=0, le=1)  # largest loss of a head's first metric by int8
    int8_changed: float = Field(0.03, ge=0, le=1)  # largest share of a head's decisions that int8 changes
    int8_log_loss: float = Field(0.02, ge=0)  # largest rise of a head's log loss by int8
    allow: tuple[str, ...] = ()  # heads that may fail those of int8; the manifest then says so


class Job(Part):
    """What distilling and pretraining have in common."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**32)  # numpy takes no larger one
    data: Texts
    teacher: Imitated
    student: Small
    augment: Augment
    match: Match = Match()
    precision: Literal["auto", "bf16", "fp16", "no"] = "auto"  # auto: bf16 where it is fast
    device: Literal["auto", "cpu"] = "auto"
    trackers: tuple[str, ...] = ("tensorboard",)


class Pretraining(Job):
    """A general start for students, taught on plain text by an encoder as it is (`distill pretrain`)."""

    teacher: Imitated = Imitated()
    student: Small = Small()
    augment: GentleAugment = GentleAugment()
    max_length: int = Field(128, gt=2)  # tokens read, and positions of the start

    @model_validator(mode="after")
    def _sound(self) -> Pretraining:
        for key in ("metric", "train"):
            if getattr(self.student, key) != Small.model_fields[key].default:
                raise ValueError(f"student.{key}: a start is taught no heads (leave it out)")
        if not self.data.unlabeled:
            raise ValueError("data.unlabeled: is required")
        return self


class Recipe(Job):
    """A whole job of distillation."""

    data: Data
    heads: dict[str, HeadRecipe] = Field(min_length=1)
    teacher: Teacher = Teacher()
    student: Student = Student()
    augment: Augment = Augment()
    distillation: Distillation = Distillation()
    export: Export = Export()
    gates: Gates = Gates()

    @field_validator("heads")
    @classmethod
    def _names(cls, heads: dict[str, HeadRecipe]) -> dict[str, HeadRecipe]:
        for name in heads:
            if not HEAD_NAME.match(name) or name in ("encoder", "heads", "text"):
                raise ValueError(
                    f"head name {name!r}: letters, digits and _ only, a letter first, "
                    "and none of 'encoder', 'heads', 'text'"
                )
        return heads

    @model_validator(mode="after")
    def _encoder_learns(self) -> Recipe:
        if self.match.hidden and "encoder" not in self.student.train:
            raise ValueError("match: shapes the student's encoder, which is frozen (add it to student.train)")
        if self.match.hidden and isinstance(self.student.vocabulary, int):
            raise ValueError(
                "match: student and teacher must read the same tokens (leave out it or student.vocabulary)"
            )
        return self

    @model_validator(mode="after")
    def _heads_exist(self) -> Recipe:
        for side in ("teacher", "student"):
            training: Training = getattr(self, side)
            for part in training.train:
                if part not in ("encoder", "heads", *self.heads):
                    raise ValueError(f"{side}.train: no head {part!r}{near(part, self.heads)}")
            metrics = [f"{name}.{m}" for name, head in self.heads.items() for m in METRICS[head.kind]]
            if training.metric is not None and training.metric not in metrics:
                raise ValueError(
                    f"{side}.metric: {training.metric!r} is no HEAD.METRIC{near(training.metric, metrics)}"
                )
        for name in self.gates.allow:
            if name not in self.heads:
                raise ValueError(f"gates.allow: no head {name!r}{near(name, self.heads)}")
        return self

    def digest(self) -> str:
        """The sha256 of what the recipe asks for, whatever machine or folder it runs in."""
        settings = self.model_dump(mode="json", exclude={"device": True, "trackers": True})
        settings["data"].pop("root")
        return digest_of([settings, list(self.heads)])  # the order of heads is that of logits
