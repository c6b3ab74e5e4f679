"""The stage fit_student: the student, distilled on the transfer set."""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import set_seed

from distill.data.tokens import TextTokenizer
from distill.heads import columns
from distill.models.base import TextClassifier
from distill.models.checkpoints import is_network, kept_from
from distill.models.families import new_network
from distill.models.predict import predict_logits
from distill.models.saved_networks import save_classifier, take_heads
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.merge_section import kept_heads
from distill.recipe.schema import Distillation, Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.stages.student_init import check_coverage, initial_student, prune_vocabulary
from distill.stages.train import (
    chosen,
    compared,
    distilled,
    feature_matching,
    in_training,
    label_positions,
    labelled,
    seed_of,
    with_defaults,
)
from distill.storage import write_json
from distill.training.checkpoint import save_tensors
from distill.training.feature_matching import FeatureMatching
from distill.training.loop import TrainingJob, fit
from students.factorized_embeddings import fold
from teachers.checkpoints import network_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class StudentTraining(NamedTuple):
    """A student before its training.

    Attributes:
        network: Initialised.
        tokenizer: Its tokenizer.
        job: What it is trained on, and how.
        matching: Its feature matching, if there is any.
        about: The metrics that are known already.
    """

    network: TextClassifier
    tokenizer: PreTrainedTokenizerFast
    job: TrainingJob
    matching: FeatureMatching | None
    about: dict[str, Any]


def fit_student(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Distil the student on the transfer set."""
    network, tokenizer, job, matching, about = student_training(run, folder)
    test = network.text_encoder(tokenizer, tokenizer.model_max_length)(artifacts.texts(run, "test"))

    def logits_of(heads: Container[str]) -> dict[str, torch.Tensor]:
        """What calibrate and check compare; computed here, where every process takes part."""
        return {
            f"{split}.{head.name}": torch.from_numpy(found[:, part])
            for split, texts in (("validation", job.validation.texts), ("test", test))
            for found in [predict_logits(network, texts, run.accelerator, exact=True)]
            for head, part in columns(network.heads)
            if head.name in heads
        }

    kept = kept_heads(run.recipe)
    before = {f"before.{name}": found for name, found in logits_of(kept).items()} if kept else {}
    with run.tracked("student"):
        metrics = fit(network, job, run.accelerator, matching=matching)
    fold(network.encoder)
    logits = before | logits_of(run.recipe.heads)
    if run.accelerator.is_main_process:
        if kept:
            write_json(folder / artifacts.KEPT, kept_from(run.recipe))
        save_tensors(folder / "logits.safetensors", logits, {})
        save_classifier(network, tokenizer, folder)
    return metrics | about | {"parameters": network.parameters_count}


def student_training(run: Run[Recipe], folder: Path) -> StudentTraining:
    """The student and its training, with a value for every setting that the recipe leaves open."""
    settings, heads = run.recipe.student, artifacts.heads(run)
    seed = seed_of(run, settings)
    set_seed(seed)
    tokens = run.recipe.export.max_length or artifacts.max_length(run)
    teacher_network = partial(artifacts.teacher_network, run)
    student = initial_student(run.recipe, teacher_network, tokens + label_positions(settings, heads))
    encoder, tokenizer = student.encoder, student.tokenizer
    about: dict[str, Any] = {"start": student.description}
    if isinstance(settings.vocabulary, int):
        tokenizer, about["vocabulary"] = prune_vocabulary(run, student, settings.vocabulary, tokens)
    network = new_network(settings, encoder, heads)
    _take_heads(run.recipe, network)
    tokens = tokenizer.model_max_length = network.usable_length(tokens)
    if tokens != artifacts.max_length(run):
        run.info(f"student: reads {tokens} tokens of a text, its teacher {artifacts.max_length(run)}")
    encode = network.text_encoder(tokenizer, tokens)
    validation = labelled(run, "validation", encode)
    check_coverage(run, TextTokenizer(tokenizer, tokens), student.description, artifacts.unknown_tokens(run))
    device = run.accelerator.device
    matching = feature_matching(run.recipe.match, teacher_network, network, tokenizer, tokens, device)
    training = in_training(network, distilled(run, artifacts.labels(run, "train"), encode, folder), settings)
    validation, settings = compared(
        run, "student", validation, settings, artifacts.teacher_logits(run, "validation")
    )
    settings = with_defaults(
        settings,
        epochs=defaults.student_epochs(int(training.texts.lengths.sum())),
        lr=defaults.student_lr(
            network.config.hidden_size,
            trained_layers=student.trained_layers,
            keeps_heads=bool(kept_heads(run.recipe)),
            encoder="encoder" in settings.train,
        ),
    )
    job = TrainingJob(
        "student",
        training,
        validation,
        settings,
        seed,
        folder / "scratch",
        distillation(run.recipe),
        run.recipe.checkpoint_every,
        # a kept head has learnt already, so its gradient is noise; matching has a gradient beside the heads'
        balanced=training.mixture is not None and matching is None and not kept_heads(run.recipe),
    )
    about |= {
        "seed": seed,
        "chosen": {"student": chosen(run.recipe.student, settings)},
    }
    return StudentTraining(network, tokenizer, job, matching, about)


def _take_heads(recipe: Recipe, network: TextClassifier) -> None:
    """Give a student, in place, the heads that it has from an earlier run.

    Raises:
        RecipeError: A head that it keeps is another one there.
    """
    source = recipe.student.encoder
    taken = take_heads(network, network_folder(source)) if source and is_network(source) else set()
    for name in kept_heads(recipe):
        if name not in taken:
            raise RecipeError(
                f"student.encoder: {source}: head {name!r} has another kind, pooling or order of labels "
                "there (leave it out of teacher.merge, which trains it again)"
            )


def distillation(recipe: Recipe) -> Distillation:
    """The settings of distillation. A packed student compares the few labels of a sample, so it uses `kl`."""
    settings = recipe.distillation
    if recipe.student.network == "packed" and settings.loss is None:
        return settings.model_copy(update={"loss": "kl"})
    return settings
