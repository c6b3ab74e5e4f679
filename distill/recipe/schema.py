"""The recipe: every setting of a job with its default, range and meaning, stated once.

Frozen models without behaviour. Nothing here reads data or imports torch; names of encoders and files are
checked where they are opened. The sections on data and heads are in `data_section`. docs/recipe.md is
generated from the descriptions.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.heads import METRICS
from distill.recipe.data_section import Augment, Data, HeadRecipe, Texts, heads_of_sources
from distill.recipe.data_sources import Part
from distill.recipe.llm_section import Llm, what_is_asked
from distill.recipe.merge_section import Merged, SoftLabels
from distill.recipe.near import near
from distill.storage import json_digest

HEAD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
SHAPE = Field(None, gt=0, description="shape of the student, in place of `size`; give all three")


class Training(Part):
    """What the training of teacher and student has in common."""

    network: Literal["heads", "packed"] | None = Field(
        None,
        description="heads: fixed labels; packed: labels are input (BERT and DistilBERT encoders); default: "
        "heads",
    )
    negatives: int | None = Field(
        None,
        gt=0,
        description="labels besides its own that a packed network reads for a text in training; default: 7",
    )
    pooling: Literal["cls", "mean"] = Field("mean", description="pooling of the last hidden states")
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="seed of new weights, order and dropout; default: the recipe's seed"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of hidden states and heads")
    epochs: int | None = Field(None, gt=0, description="default: set from the number and length of the texts")
    lr: float | None = Field(None, gt=0, description="peak learning rate; default: set from the width")
    batch_size: int = Field(32, gt=0, description="texts per batch and process")
    accumulate: int = Field(1, gt=0, description="batches per step")
    weight_decay: float = Field(0.01, ge=0, description="of weight matrices")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    metric: str | None = Field(
        None, description="HEAD.METRIC that compares epochs; default: the mean of the heads' first metrics"
    )
    train: tuple[str, ...] = Field(
        ("encoder", "heads"), min_length=1, description="what is trained: encoder, heads, names of heads"
    )


class TeacherEncoder(Part):
    """An encoder and how it is read."""

    encoder: str = Field(
        "distilbert/distilbert-base-uncased", description="hub id[@revision], folder, or package:NAME"
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="expected digest of the weights file"
    )
    layers: int | None = Field(None, gt=0, description="keep only the first layers")
    pooling: Literal["cls", "mean"] = Field("mean", description="pooling of the last hidden states")


class Teacher(Training, TeacherEncoder):
    """The large model that writes soft labels; the defaults are the published configuration."""

    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout of attention weights; costs a third of a CPU step"
    )
    head_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the heads; default: 30 times `lr`"
    )
    max_length: int | None = Field(
        None,
        gt=2,
        le=8192,
        description="tokens read of a text; default: 128, 256 or 512, from their lengths",
    )
    networks: tuple[str, ...] = Field(
        (),
        description="networks of earlier runs as the teacher (RUN/stages/fit_teacher or fit_student, RUN a "
        "folder or the hub id of a pushed run): one is an assistant, several are an ensemble",
    )
    merge: dict[str, Merged] | None = Field(
        None,
        description="classifiers that teach heads as they are, `{HEAD: hub id, folder or network of an "
        "earlier run}`, or `{HEAD: {model: ..., labels: ..., max_length: ..., terms: ...}}`, or `{HEAD: "
        "{ensemble: [...]}}`; the encoder learns the other heads",
    )
    fit_merged: bool | None = Field(
        None,
        description="fine-tune the encoder on the answers of `merge`, as one teacher of all heads, which "
        "labels in their place; default: false",
    )
    soft_labels: SoftLabels | None = Field(
        None,
        description="files of soft labels, a row a text: a .jsonl or .parquet file, a list, or `{files: ..., "
        "values: probabilities or logits, terms: ...}`",
    )
    llm: Llm | None = Field(None, description="a language model that labels the texts of the data")

    @model_validator(mode="after")
    def _one_origin(self) -> Teacher:
        # the recipe that a run writes holds every setting, also those left at their default
        changed = [
            name
            for name in sorted(self.model_fields_set - {"networks", "max_length"})
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.fit_merged and not self.merge:
            raise ValueError("`fit_merged` is for `merge`, which is missing (name classifiers there)")
        if self.networks and changed:
            raise ValueError(f"`networks` are used as they are; leave out {', '.join(changed)}")
        return self


class SmallEncoder(Training):
    """The shape of a student, and its training."""

    size: Literal["tiny", "mini", "small", "medium"] | None = Field(
        None, description="shape of the BERT miniatures (Turc et al. 2019); default: tiny"
    )
    layers: int | None = SHAPE
    hidden: int | None = SHAPE
    attention_heads: int | None = SHAPE
    batch_size: int = Field(128, gt=0, description="texts per batch and process")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of hidden states and heads")

    @model_validator(mode="after")
    def _whole_shape(self) -> SmallEncoder:
        numbers = [self.layers, self.hidden, self.attention_heads]
        if any(numbers) and not all(numbers):
            raise ValueError("give all of `layers`, `hidden`, `attention_heads`, or none of them")
        if self.size and self.hidden:
            raise ValueError("`size` and `hidden` both give the shape; keep one")
        if self.hidden and self.attention_heads and self.hidden % self.attention_heads:
            raise ValueError("`hidden` must be a multiple of `attention_heads`")
        return self


class Student(SmallEncoder):
    """The small model that is served."""

    encoder: str | None = Field(
        None,
        description="any encoder instead, with its shape and weights: hub id, folder, or package:NAME; of a "
        "student of an earlier run (RUN/stages/fit_student) also the heads of the same name and kind",
    )
    start: str | None = Field(
        None,
        description="initialisation: teacher, random, a checkpoint, or the folder of a pretrained student; "
        "default: the pretrained student that is shipped for the teacher, else the BERT miniature of `size` "
        "for a teacher from the hub, else teacher",
    )
    vocabulary: Literal["full"] | Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="number of word pieces to keep, the most used ones; default: full",
    )

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
                what = "initialisation" if name == "start" else "shape"
                raise ValueError(f"`encoder` and `{name}` both give the {what}; keep one")
        return self


class Distillation(Part):
    """The loss of each head: `(1 - soft_weight) * hard + soft_weight * distillation`."""

    loss: Literal["kl", "mse", "standardized"] | None = Field(
        None, description="default: standardized for single_label heads of ten labels and more, else kl"
    )
    temperature: float | None = Field(None, gt=0, description="default: 2 for standardized, else 1")
    soft_weight: float = Field(0.9, ge=0, le=1, description="share of the distillation loss")
    fill: bool | None = Field(
        None,
        description="whether the teacher also teaches the heads that the source of a text does not label; "
        "default: true",
    )


class Match(Part):
    """Feature matching between the encoders of student and teacher."""

    hidden: float = Field(0.0, ge=0, description="weight of the loss between hidden states; 0 is off")
    layers: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(
        None, description="the teacher's layer for each of the student's, from 1; default: evenly spaced"
    )


class Export(Part):
    """The ONNX files of the bundle."""

    quantize: Literal["int8", "none"] = Field("int8", description="form of the served model")
    max_length: int | None = Field(
        None, gt=2, le=8192, description="tokens the student reads of a text; default: as many as its teacher"
    )


class Gates(Part):
    """What a bundle must satisfy to be published."""

    parity: float = Field(1e-3, gt=0, description="largest difference of a logit, torch against ONNX fp32")
    int8_drop: float = Field(0.005, ge=0, le=1, description="largest loss of a head's first metric by int8")
    int8_changed: float = Field(
        0.03, ge=0, le=1, description="largest share of a head's decisions changed by int8"
    )
    int8_log_loss: float = Field(0.02, ge=0, description="largest rise of a head's log loss by int8")
    kept_changed: float | None = Field(
        None, ge=0, le=1, description="largest share of changed decisions of a kept head; default: 0.03"
    )
    kept_drop: float | None = Field(
        None, ge=0, le=1, description="largest loss of its first metric by a kept head; default: 0.003"
    )
    allow: tuple[str, ...] = Field(
        (), description="heads that may fail the gates of int8, which the manifest lists, or of `abstain`"
    )


class Job(Part):
    """What distillation and pretraining have in common."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run and of the bundle"
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of splits, augmented texts and training"
    )  # numpy takes no larger one
    data: Texts
    teacher: TeacherEncoder
    student: SmallEncoder
    augment: Augment
    match: Match = Match()
    precision: Literal["auto", "bf16", "fp16", "no"] = Field(
        "auto", description="of training; auto: bf16 where the device is fast in it"
    )
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU if there is one")
    trackers: tuple[str, ...] = Field(("tensorboard",), description="experiment trackers of accelerate")
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints")


class Pretraining(Job):
    """A pretrained student, taught on plain text by an encoder as it is (`distill pretrain`)."""

    teacher: TeacherEncoder = TeacherEncoder()
    student: SmallEncoder = SmallEncoder()
    augment: Augment = Augment(copies=1)
    max_length: int = Field(
        128, gt=2, le=8192, description="tokens read of a text, and positions of the student"
    )

    @model_validator(mode="after")
    def _no_heads(self) -> Pretraining:
        for key in ("metric", "train", "network"):
            if getattr(self.student, key) != SmallEncoder.model_fields[key].default:
                raise ValueError(f"student.{key}: a pretrained student has no heads (leave it out)")
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
                    f"head name {name!r}: expected letters, digits and _ only, a letter first, "
                    "and none of 'encoder', 'heads', 'text'"
                )
        return heads

    @model_validator(mode="after")
    def _fits_packed(self) -> Recipe:
        sides = ("teacher", "student")
        packed = [side for side in sides if getattr(self, side).network == "packed"]
        for side in sides:
            if side not in packed and getattr(self, side).negatives is not None:
                raise ValueError(f"{side}.negatives: is for network: packed (leave it out, or set network)")
        for side in packed:
            if getattr(self, side).pooling != Training.model_fields["pooling"].default:
                raise ValueError(f"{side}.pooling: a packed network scores a label's [CLS] (leave it out)")
        if packed and self.match.hidden:
            raise ValueError("match: is for networks of heads (leave it out, or set network: heads)")
        if "student" in packed:
            if isinstance(self.student.vocabulary, int):
                raise ValueError("student.vocabulary: a packed network may meet any label (leave it out)")
            if self.distillation.loss == "standardized":
                raise ValueError("distillation.loss: a packed student compares few labels (use kl)")
        return self

    def needs_no_labels(self, head: str) -> bool:
        """Whether a teacher knows the head already, so that no text need be labelled for it."""
        teacher = self.teacher
        asked = teacher.llm is not None and (not teacher.llm.heads or head in teacher.llm.heads)
        return bool(teacher.networks or teacher.soft_labels or asked) or head in (teacher.merge or {})

    @model_validator(mode="after")
    def _has_labels(self) -> Recipe:
        for name in (self.teacher.llm and self.teacher.llm.heads) or ():
            if name not in self.heads:
                raise ValueError(f"teacher.llm.heads: no head {name!r}{near(name, self.heads)}")
        named = heads_of_sources(self.data, self.heads)
        if self.distillation.fill is not None and not self.data.several:
            raise ValueError("distillation.fill: is for several sources (leave it out)")
        for name, head in self.heads.items():
            if head.column is not None or head.columns or name in named:
                continue
            if not head.labels and name not in (self.teacher.merge or {}):
                hint = near(name, {*self.heads} - {name})
                raise ValueError(f"heads.{name}: give either `column` or `columns`, or `labels` alone{hint}")
            if not self.needs_no_labels(name):
                raise ValueError(
                    f"heads.{name}: `labels` alone are for a teacher that knows them: networks, merge, "
                    "soft_labels, llm (give `column` or `columns`)"
                )
        if self.data.train is not None:
            return self
        if not all(map(self.needs_no_labels, self.heads)):
            raise ValueError(
                "data.train: is required, as a teacher is fine-tuned on labelled texts (give them, or "
                "teachers of every head in teacher.networks, merge, soft_labels or llm, which label "
                "the texts of data.unlabeled)"
            )
        if not self.distillation.soft_weight:
            raise ValueError("distillation.soft_weight: 0 learns from labels alone, which data.train lacks")
        for name, head in self.heads.items():
            if not head.names and name not in (self.teacher.merge or {}):
                raise ValueError(f"heads.{name}.labels: is required without data.train (list the labels)")
            if head.min_texts:
                raise ValueError(
                    f"heads.{name}.min_texts: counts labels of data.train, which is missing (leave it out)"
                )
        return self

    @model_validator(mode="after")
    def _can_match(self) -> Recipe:
        if self.match.hidden and "encoder" not in self.student.train:
            raise ValueError("match: the student's encoder is frozen (add encoder to student.train)")
        if self.match.hidden and isinstance(self.student.vocabulary, int):
            raise ValueError(
                "match: student and teacher must read the same tokens (leave out match or student.vocabulary)"
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
        for name in self.teacher.merge or ():
            if name not in self.heads:
                raise ValueError(f"teacher.merge: no head {name!r}{near(name, self.heads)}")
        for name in self.gates.allow:
            if name not in self.heads:
                raise ValueError(f"gates.allow: no head {name!r}{near(name, self.heads)}")
        return self

    def digest(self) -> str:
        """The sha256 of the settings, whatever machine or folder the recipe runs in."""
        settings = self.model_dump(mode="json", exclude={"device", "trackers", "checkpoint_every"})
        settings["data"].pop("root")
        settings["teacher"] = what_is_asked(settings["teacher"])
        return json_digest([settings, list(self.heads)])  # the order of heads is that of logits
