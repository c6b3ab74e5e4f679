"""A rehearsal of a run: its trainings are begun on its own texts, to see what they read and how fast.

The functions of the stages build teacher, transfer set and student in a temporary folder. The transfer set is
made of a sample of the texts, and a training stops after a few steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter as clock

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from distill.data.dataset import write_texts
from distill.data.tokens import TextTokenizer
from distill.evaluation.floor import MOST, floors
from distill.heads import Head
from distill.memory import peak_rss_bytes
from distill.models.base import TextClassifier
from distill.models.predict import predict_logits
from distill.models.saved_networks import save_classifier
from distill.recipe import defaults
from distill.recipe.schema import Distillation, Recipe, Training
from distill.run import LOG, Run
from distill.stages import artifacts
from distill.stages.fit_student import student_training
from distill.stages.fit_teacher import (
    UNTRUNCATED,
    adopted_networks,
    compared_texts,
    lent_encoder,
    teacher_training,
)
from distill.stages.train import limit_threads
from distill.stages.transfer_set import Copies, copies, make_augmenter, write_transfer_set
from distill.storage import write_sealed
from distill.teaching.named import fitted_heads, keep_merged
from distill.training.devices import make_accelerator
from distill.training.feature_matching import FeatureMatching
from distill.training.interrupts import Interrupted
from distill.training.loop import TrainingJob
from distill.training.speed import Rows, epoch_tokens, inference_seconds, saving_seconds, step_seconds
from students.factorized_embeddings import fold
from teachers.soft_labels import text_digests

SAMPLE_TEXTS, SAMPLE_TOKENS = 12_800, 400_000  # of the rehearsed transfer set
COMPARED = 50  # labelled texts of a head, on which teachers of `merge` are compared with the labels
HELD_OUT = 1000  # texts of validation and test in the sample, and of a split without labels in the table
WEIGHTS = 5  # copies of the weights on the disk: a checkpoint with two moments, the best epoch, the result
FIXED_SECONDS = {"calibrate": 0.5, "export": 2.0, "check": 2.0, "bundle": 1.0}  # with a student of few layers
FEW = 8  # texts that the rehearsed floor answers
MEMORY_GROWTH = (
    1.4  # of a training on a CPU after its first steps, as its memory fragments; 1.3 to 1.6 measured
)
SPLITS = ("train", "validation", "test")
NO_COPIES = Copies((0,), 0)


@dataclass
class Rehearsal:
    """What a run will read, and how long its stages will take.

    Attributes:
        heads: Of the data.
        lengths: The tokens of the texts of each split, not truncated; of the unlabelled texts, a sample.
        teacher: The settings of the teacher's training, also if networks are adopted, which are not trained.
        student: The settings of the student's training.
        copies: Augmented texts per text.
        max_length: The tokens that teacher and student read of a text.
        parameters: Of teacher and student, embeddings included.
        shape: Layers, hidden, attention heads and word pieces of the student.
        initialisation: Of the student.
        exact: Whether the transfer set was made of all texts; otherwise its numbers are estimates.
        transfer_texts: In the transfer set.
        texts_to_label: By the teacher.
        steps: Of teacher and student.
        seconds: Of each stage; empty if nothing was measured.
        memory: The peak memory of the process in bytes, and of the GPU where there is one; empty if nothing
            was measured.
        disk: The bytes of checkpoints, soft labels and transfer set.
        distillation: The loss of the student, None where it learns from hard labels alone.
        unknown_tokens: The share of validation tokens that the teacher's vocabulary does not cover.
    """

    heads: tuple[Head, ...] = ()
    lengths: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    teacher: Training = field(default_factory=Training)
    student: Training = field(default_factory=Training)
    copies: Copies = NO_COPIES
    max_length: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    shape: dict[str, int] = field(default_factory=dict)
    initialisation: str = ""
    exact: bool = True
    transfer_texts: int = 0
    texts_to_label: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    distillation: Distillation | None = None
    unknown_tokens: float = 0.0


def rehearse(recipe: Recipe, folder: Path, *, measure: bool = True) -> Rehearsal:
    """Begin a run's trainings in a folder whose stage `prepare` is done.

    Args:
        recipe: Of the run.
        folder: Of the rehearsal, which may be removed afterwards.
        measure: Whether steps are done and timed.

    Raises:
        RecipeError, EncoderError, LabelError: What the stages would raise before a training.
    """
    limit_threads()
    run = Run(recipe, folder, make_accelerator(recipe, folder))
    found = Rehearsal(artifacts.heads(run))
    with _quietly():
        try:
            _Rehearser(run, found, measure).rehearse()
        except Interrupted as error:
            raise Interrupted("interrupted", error.exit_code) from None
        finally:
            run.accelerator.free_memory()
    return found


class _Rehearser:
    """The stages of a rehearsal, in order; each fills in what it finds."""

    def __init__(self, run: Run[Recipe], found: Rehearsal, measure: bool) -> None:
        self.run, self.found, self.measure = run, found, measure
        self.sample = Run(run.recipe, run.folder / "sample", run.accelerator)
        self.rows = {name: len(artifacts.split(run, name)) for name in (*SPLITS, "unlabeled")}

    def rehearse(self) -> None:
        """All of it."""
        self.teacher()
        share = self.make_sample()
        self.label(share)
        self.student()
        if self.measure:
            self.found.seconds |= FIXED_SECONDS
            self.found.seconds["check"] += self.check_seconds()
            self.found.memory = _peak_memory(self.run.accelerator)

    def teacher(self) -> None:
        """Build the teacher and train it for a few steps; leaves it in the run's folder."""
        run, found, stage = self.run, self.found, self.run.stage("fit_teacher")
        stage.mkdir(parents=True)
        found.teacher = run.recipe.teacher
        began = clock()
        training, heads = None, artifacts.heads(run)
        keep_merged(run, heads, lambda: compared_texts(run, heads, COMPARED), stage)
        if run.recipe.teacher.networks:
            about = adopted_networks(run, stage)
        elif not fitted_heads(run.recipe, heads):
            about = lent_encoder(run, stage)
        else:
            training = teacher_training(run, stage)
            about, found.teacher = training.about, training.job.settings
            save_classifier(training.network, training.tokenizer, stage)
        built = clock() - began
        write_sealed(stage / "stage.json", {"metrics": about})
        tokenizer = artifacts.teacher_network(run)[1]
        found.max_length["teacher"] = about["max_length"]
        found.parameters["teacher"] = about["parameters"]
        found.unknown_tokens = about["unknown_tokens"]
        whole = TextTokenizer(tokenizer, UNTRUNCATED)
        for split in (*SPLITS, "unlabeled"):
            found.lengths[split] = whole(self.some(split, HELD_OUT if split == "unlabeled" else None)).lengths
        self.read = {split: np.minimum(n, about["max_length"]) for split, n in found.lengths.items()}
        found.copies = copies(run)
        if training is None:
            found.steps["teacher"] = 0
            found.seconds["fit_teacher"] = built
        else:
            self.train("fit_teacher", training.network, training.job, built)

    def train(
        self,
        stage: str,
        network: TextClassifier,
        job: TrainingJob,
        other: float,
        matching: FeatureMatching | None = None,
        scale: float = 1.0,
    ) -> None:
        """The steps of a training and its seconds.

        Args:
            stage: That trains.
            network: Before its training.
            job: With epochs and learning rate.
            other: Seconds of the stage before its training.
            matching: Feature matching.
            scale: The tokens of the whole transfer set for each of the job's.
        """
        accelerator, settings = self.run.accelerator, job.settings
        texts = len(job.train.texts) if scale == 1 else self.found.transfer_texts
        a_step = settings.batch_size * settings.accumulate * accelerator.num_processes
        epochs = settings.epochs or 1
        steps = self.found.steps[job.name] = math.ceil(texts / a_step) * epochs
        if not self.measure:
            return
        per_token = step_seconds(network, job, accelerator, matching)
        an_epoch = epoch_tokens(job)
        validation = int(job.validation.texts.lengths.sum()) * self.rows["validation"]
        validation = validation // max(1, len(job.validation.texts))
        inference = inference_seconds(
            lambda some: predict_logits(network, Rows(job.validation.texts, some), accelerator),
            job.validation.texts.lengths,
            accelerator.device,
        )
        saves = epochs + steps // job.checkpoint_every
        self.found.seconds[stage] = (
            other
            + epochs * (an_epoch * scale * per_token / accelerator.num_processes + validation * inference)
            + saves * saving_seconds(network, job.folder)
        )
        self.per_token = inference

    def make_sample(self) -> float:
        """Move the teacher to a run with a sample of the texts; returns the share of the training texts."""
        mean = max(1.0, float(self.read["train"].mean()))
        texts = min(SAMPLE_TEXTS, SAMPLE_TOKENS / mean)
        copies, sizes = self.found.copies, [one["rows"]["train"] for one in artifacts.sources(self.run)]
        every = self.rows["unlabeled"] * (1 + copies.unlabelled)
        for size, count in zip(sizes or [self.rows["train"]], copies.train, strict=True):
            every += size * (1 + count)
        share: float = min(1.0, texts / every)
        prepared = self.sample.stage("prepare")
        prepared.mkdir(parents=True)
        for file in self.run.stage("prepare").glob("*.json"):
            (prepared / file.name).write_bytes(file.read_bytes())
        self.chosen = {}
        for split, rows in self.rows.items():
            count = min(rows, HELD_OUT) if split in ("validation", "test") else math.ceil(share * rows)
            self.chosen[split] = np.sort(np.random.default_rng(0).permutation(rows)[:count])
            some = artifacts.split(self.run, split).select(self.chosen[split])
            heads, sourced = self.found.heads if split in SPLITS else (), "source" in some.column_names
            write_texts(prepared / split, some, heads, sourced=sourced)
        self.run.stage("fit_teacher").rename(self.sample.stage("fit_teacher"))
        self.found.exact = share == 1
        return share

    def label(self, share: float) -> None:
        """Make the transfer set of the sample, and label some of it."""
        run, found, stage = self.sample, self.found, self.sample.stage("label")
        stage.mkdir()
        began = clock()
        augmenter = make_augmenter(run, found.copies)
        near = clock()
        write_transfer_set(run, stage, augmenter, found.copies)
        written = clock()
        texts = list(artifacts.transfer_set(run)["text"])
        several = {split: self.rows[split] / max(1, len(rows)) for split, rows in self.chosen.items()}
        unlabelled = len(self.chosen["unlabeled"]) * (1 + found.copies.unlabelled) / len(texts)
        read = self.read["train"]
        # by tokens, as a sample's mean length is not that of all texts
        tokens = float(read.sum() / read[self.chosen["train"]].sum())
        self.scale = tokens + (several["unlabeled"] - tokens) * unlabelled
        many = several["train"] + (several["unlabeled"] - several["train"]) * unlabelled
        found.transfer_texts = round(len(texts) * many)
        held_out = [artifacts.texts(self.run, split) for split in ("validation", "test")]
        unique = len(np.unique(np.concatenate([text_digests(some) for some in held_out])))
        found.texts_to_label = unique + round(
            len(np.unique(text_digests(texts))) / len(texts) * found.transfer_texts
        )
        self.texts = texts
        if not self.measure:
            return
        teacher = artifacts.teacher(run)
        network, tokenizer = artifacts.teacher_network(run)
        lengths = network.text_encoder(tokenizer, found.max_length["teacher"])(texts).lengths
        per_token = inference_seconds(
            lambda rows: teacher.logits([texts[i] for i in rows]), lengths, run.accelerator.device
        )
        tokens = float(lengths.mean()) * found.texts_to_label
        found.seconds["label"] = near - began + (written - near) * self.scale + tokens * per_token
        if run.recipe.teacher.networks:
            found.seconds["fit_teacher"] += float(self.read["validation"].sum()) * per_token

    def student(self) -> None:
        """Build the student and train it for a few steps, with soft labels drawn at random."""
        run, found, stage = self.sample, self.found, self.sample.stage("fit_student")
        stage.mkdir()
        soft = artifacts.soft_labels(run)
        digests = np.unique(text_digests([*self.texts, *artifacts.texts(run, "validation")]))
        draw = np.random.default_rng(0)
        soft.add(digests, {name: draw.normal(size=(len(digests), n)) for name, n in soft.heads.items()})
        began = clock()
        training = student_training(run, stage)
        built = clock() - began
        network, job = training.network, training.job
        tokens = int(job.train.texts.lengths.sum()) * self.scale
        epochs = run.recipe.student.epochs or defaults.student_epochs(round(tokens))
        job = replace(job, settings=job.settings.model_copy(update={"epochs": epochs}))
        found.student, found.distillation = job.settings, job.distillation
        config = network.config
        found.shape = {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "attention_heads": config.num_attention_heads,
            "vocabulary": config.vocab_size,
        }
        found.max_length["student"] = int(training.tokenizer.model_max_length)
        found.initialisation = str(training.about["start"])
        self.train("fit_student", network, job, built * self.scale, training.matching, self.scale)
        fold(network.encoder)  # as it is saved
        found.parameters["student"] = network.parameters_count
        texts = sum(len(text.encode()) for text in self.texts) * self.scale
        logits = 2 * sum(soft.heads.values()) * found.texts_to_label
        # the soft labels are written once, and once more in the order in which the student reads them
        found.disk = round(2 * logits + texts + 4 * tokens + WEIGHTS * 4 * sum(found.parameters.values()))

    def check_seconds(self) -> float:
        """Of the served forms on validation and test, as the student in torch, and of the floor."""
        inference = (
            2 * self.per_token * float(sum(self.read[split].sum() for split in ("validation", "test")))
        )
        texts, labels = artifacts.texts(self.sample, "train"), artifacts.labels(self.sample, "train")
        few = {name: known[:FEW] for name, known in labels.items()}
        began = clock()
        floors(
            self.found.heads,
            {"train": texts} | dict.fromkeys(("validation", "test"), texts[:FEW]),
            {"train": labels} | dict.fromkeys(("validation", "test"), few),
        )
        characters = sum(map(len, texts))
        most = min(MOST, characters * self.rows["train"] / len(texts))
        return inference + (clock() - began) * most / characters

    def some(self, split: str, most: int | None) -> list[str]:
        """The texts of a split, or a sample of them."""
        texts = artifacts.split(self.run, split)
        if most is None or len(texts) <= most:
            return artifacts.texts(self.run, split)
        return list(texts.select(np.random.default_rng(0).permutation(len(texts))[:most])["text"])


def _peak_memory(accelerator: Accelerator) -> dict[str, int]:
    if accelerator.device.type == "cuda":
        return {"process": peak_rss_bytes(), "gpu": torch.cuda.max_memory_allocated()}
    return {"process": round(MEMORY_GROWTH * peak_rss_bytes())}


@contextmanager
def _quietly() -> Iterator[None]:
    """Neither messages nor progress bars of stages that are rehearsed."""
    level = LOG.level
    LOG.setLevel("WARNING")
    try:
        yield
    finally:
        LOG.setLevel(level)
