"""The stage fit_teacher: a fine-tuned encoder, or the networks of earlier runs, as the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed

from distill.data.tokens import TextTokenizer, chunks
from distill.evaluation.calibration import validation_quality
from distill.evaluation.metrics import labelled as known
from distill.evaluation.metrics import without_nan
from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.models.base import Array, TextClassifier, TextEncoder
from distill.models.classifier import MultiHeadClassifier
from distill.models.families import new_network
from distill.models.network_teacher import NetworkTeacher, adopt, member_folders
from distill.models.packing import HYPOTHESIS_TOKENS, LABEL_TOKENS, LabelTokens
from distill.models.saved_networks import load_classifier, save_classifier
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Distillation, Recipe, Teacher
from distill.run import Run
from distill.stages import artifacts
from distill.stages.student_init import check_coverage, checkpoint
from distill.stages.train import (
    MANY_UNKNOWN,
    chosen,
    compared,
    in_training,
    labelled,
    labelled_rows,
    seed_of,
    with_defaults,
)
from distill.teaching.checked import TEXTS, LabelledTexts
from distill.teaching.combined import KeptLabels, unknown
from distill.teaching.named import fitted_heads, keep_asked, keep_merged, kept_labels, taught_by
from distill.training.checkpoint import save_tensors
from distill.training.label_confidence import LabelConfidence
from distill.training.loop import Examples, TrainingJob, fit
from teachers.encoders import load_encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]

UNTRUNCATED = 1_000_000  # tokens, more than any text has
ASKED = ("train", "validation", "test", "unlabeled")  # the splits whose texts other teachers are asked for
MANY_TRUNCATED = 0.05  # share of the training texts


class TeacherTraining(NamedTuple):
    """A teacher before its training.

    Attributes:
        network: Untrained.
        tokenizer: Its tokenizer.
        job: What it is trained on, and how.
        about: The metrics that are known already.
        rows: The training texts that it learns from, None for all.
    """

    network: TextClassifier
    tokenizer: PreTrainedTokenizerFast
    job: TrainingJob
    about: dict[str, Any]
    rows: Array | None = None


def fit_teacher(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Fine-tune the teacher on the labelled texts, and on the answers of teachers of some texts."""
    if run.recipe.teacher.networks:
        return _adopted(run, folder) | {"teachers": taught_by(run, artifacts.heads(run), folder)}
    heads = artifacts.heads(run)
    sample = cache(lambda: compared_texts(run, heads))
    more = keep_merged(run, heads, sample, folder)
    columns = [artifacts.split(run, name)["text"] for name in ASKED]
    asked = keep_asked(run, heads, columns, sample, folder, more)
    others = {"asked": asked} if asked else {}
    if not fitted_heads(run.recipe, heads):
        return lent_encoder(run, folder) | others | {"teachers": taught_by(run, heads, folder)}
    network, tokenizer, job, about, rows = teacher_training(run, folder)
    confidence = LabelConfidence(network.heads, len(job.train.texts), run.accelerator.device)
    with run.tracked("teacher"):
        metrics = fit(network, job, run.accelerator, confidence=confidence)
    means = confidence.means(run.accelerator)
    if rows is not None:  # the other training texts have no label that could be learnt
        every = {name: torch.full((artifacts.rows(run)["train"],), torch.nan) for name in means}
        means = {name: every[name].index_put((torch.from_numpy(rows),), mean) for name, mean in means.items()}
    if run.accelerator.is_main_process:
        save_tensors(folder / "label_confidence.safetensors", means, {})
        save_classifier(network, tokenizer, folder)
    run.accelerator.wait_for_everyone()
    return metrics | about | others | {"teachers": taught_by(run, heads, folder)}


def compared_texts(run: Run[Recipe], heads: Sequence[Head], most: int = TEXTS) -> LabelledTexts:
    """At most so many labelled texts of each head, which other teachers are compared with."""
    splits = ((s, artifacts.texts(run, s), artifacts.labels(run, s)) for s in ("validation", "train"))
    return LabelledTexts.of(splits, heads, run.recipe.seed, most)


def teacher_training(run: Run[Recipe], folder: Path, loaded: Loaded | None = None) -> TeacherTraining:
    """The teacher and its training, with a value for every setting that the recipe leaves open.

    Args:
        run: Whose recipe and prepared data.
        folder: Of the stage.
        loaded: An encoder and its tokenizer in place of the recipe's.
    """
    settings, heads = run.recipe.teacher, fitted_heads(run.recipe, artifacts.heads(run))
    seed = seed_of(run, settings)
    set_seed(seed)
    encoder, tokenizer = loaded or _encoder(settings)
    network = new_network(settings, encoder, heads)
    length = _length(run, [network], tokenizer)
    encode = network.text_encoder(tokenizer, length["max_length"])
    uncovered = _unknown_tokens(run, TextTokenizer(tokenizer, length["max_length"]))
    of_student = tokenizer
    if start := checkpoint(run.recipe):  # of another language: refused before the teacher is trained
        of_student = load_tokenizer(start)
        students = TextTokenizer(of_student, length["max_length"])
        check_coverage(run, students, f"checkpoint: {start}", uncovered["unknown_tokens"])
    if run.recipe.student.network == "packed":  # labels that it cannot read: refused now, too
        LabelTokens(of_student, heads, LABEL_TOKENS, HYPOTHESIS_TOKENS)
    kept, distillation = kept_labels(folder), None
    rows, others = (None if kept else labelled_rows(run, split, heads) for split in ("train", "validation"))
    examples, validation = labelled(run, "train", encode, rows), labelled(run, "validation", encode, others)
    if kept:
        examples, distillation = _with_answers(run, kept, examples.hard, encode), Distillation()
        _check_taught(heads, examples)
        answers = kept.logits(artifacts.texts(run, "validation"))
        validation, settings = compared(run, "teacher", validation, settings, answers)
    training = in_training(network, examples, settings)
    batch = settings.batch_size * settings.accumulate * run.accelerator.num_processes
    lr = settings.lr or defaults.teacher_lr(network.config.hidden_size)
    settings = with_defaults(
        settings,
        epochs=defaults.teacher_epochs(len(training.texts), batch),
        lr=lr,
        head_lr=defaults.teacher_head_lr(lr),
        max_length=length["max_length"],
    )
    job = TrainingJob(
        "teacher",
        training,
        validation,
        settings,
        seed,
        folder / "scratch",
        distillation,
        checkpoint_every=run.recipe.checkpoint_every,
        head_lr=settings.head_lr,
    )
    about = {
        "seed": seed,
        "parameters": network.parameters_count,
        "chosen": {"teacher": chosen(run.recipe.teacher, settings)},
    }
    return TeacherTraining(network, tokenizer, job, length | uncovered | about, rows)


def _with_answers(
    run: Run[Recipe], kept: KeptLabels, labels: Mapping[str, Array], encode: TextEncoder
) -> Examples:
    """The labelled texts, then the unlabelled ones with answers, which are their soft labels."""
    texts = artifacts.texts(run, "train")
    others = list(artifacts.split(run, "unlabeled")["text"])
    known = np.any([~unknown(logits) for logits in kept.logits(others).values()], 0) if others else ()
    mixture = artifacts.mixture(run, artifacts.split(run, "train"))
    if mixture:  # unlabelled texts are the last source
        more = np.full(int(np.sum(known)), len(mixture.shares) - 1)
        mixture = replace(mixture, sources=np.concatenate([mixture.sources, more]))
    texts += [others[row] for row in np.flatnonzero(known)]
    hard = {}
    for name, own in labels.items():
        fill = UNLABELLED if own.ndim == 1 else UNKNOWN
        more = np.full((len(texts) - len(own), *own.shape[1:]), fill, own.dtype)
        hard[name] = np.concatenate([own, more])
    return Examples(encode(texts), hard, kept.logits(texts), mixture)


def _check_taught(heads: Sequence[Head], examples: Examples) -> None:
    """Refuse a head that has neither labels nor soft labels to be trained on.

    Raises:
        RecipeError: There is such a head.
    """
    for head in heads:
        soft = examples.soft.get(head.name)
        if not known(examples.hard[head.name], head).any() and (soft is None or unknown(soft).all()):
            raise RecipeError(
                f"heads.{head.name}: no text of train has a label or a soft label, expected some (add "
                "texts with labels, or soft labels)"
            )


def _encoder(settings: Teacher) -> Loaded:
    return load_encoder(
        settings.encoder,
        sha256=settings.sha256,
        layers=settings.layers,
        dropout=settings.dropout,
        attention_dropout=settings.attention_dropout,
    )


def lent_encoder(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Save the encoder as it is, for the student's tokenizer and initialisation; what it reads of the texts.

    Other teachers label the texts.
    """
    encoder, tokenizer = _encoder(run.recipe.teacher)
    network = MultiHeadClassifier(encoder, (), pooling=run.recipe.teacher.pooling)
    length = _length(run, [network], tokenizer)
    uncovered = _unknown_tokens(run, TextTokenizer(tokenizer, length["max_length"]))
    if run.accelerator.is_main_process:
        save_classifier(network, tokenizer, folder)
    return {"parameters": network.parameters_count} | length | uncovered


def _adopted(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Save the networks of earlier runs as the teacher; their joint metrics on validation."""
    heads, about = artifacts.heads(run), adopted_networks(run, folder)
    teacher = NetworkTeacher(folder, about["max_length"], run.accelerator)
    logits = teacher.logits(artifacts.texts(run, "validation"))
    every = np.concatenate([logits[head.name] for head in heads], -1)
    quality = validation_quality(heads, every, artifacts.labels(run, "validation"))
    return {"validation": without_nan(quality)} | about


def adopted_networks(run: Run[Recipe], folder: Path) -> dict[str, Any]:
    """Save the networks of earlier runs in a folder; their number, and how much they read of the texts."""
    networks = run.recipe.teacher.networks
    if run.accelerator.is_main_process:
        adopt(networks, artifacts.heads(run), folder)
    run.accelerator.wait_for_everyone()
    members = [load_classifier(member) for member in member_folders(folder)]
    length = _length(run, [network for network, _ in members], members[0][1])
    uncovered = _unknown_tokens(run, TextTokenizer(members[0][1], length["max_length"]))
    about = {"networks": len(networks), "parameters": sum(one.parameters_count for one, _ in members)}
    return about | length | uncovered


def _length(
    run: Run[Recipe], networks: Sequence[TextClassifier], tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """The tokens read of a text, and the share of training texts that are truncated; prints a large share.

    Each of several networks reads as many tokens as it has positions; `max_length` is the most.
    """
    whole = TextTokenizer(tokenizer, UNTRUNCATED)
    lengths = np.concatenate([whole(some).lengths for some in chunks(artifacts.texts(run, "train"))])
    wanted = run.recipe.teacher.max_length or defaults.max_length(lengths)
    tokens = max(network.usable_length(wanted) for network in networks)
    truncated = float((lengths > tokens).mean())
    most = max(network.usable_length(UNTRUNCATED) for network in networks)
    if truncated > MANY_TRUNCATED:
        more = f"set teacher.max_length, {most} at most, or " if tokens < most < UNTRUNCATED else ""
        run.info(
            f"teacher: {truncated:.0%} of the training texts are truncated to {tokens} tokens "
            f"({more}split them)"
        )
    return {"max_length": tokens, "truncated_texts": truncated}


def _unknown_tokens(run: Run[Recipe], encode: TextTokenizer) -> dict[str, float]:
    """The share of validation tokens that the teacher's vocabulary does not cover; prints a large share."""
    share = encode.unknown_share(encode(artifacts.texts(run, "validation")))
    if share > MANY_UNKNOWN:
        run.info(
            f"teacher: its vocabulary does not cover {share:.0%} of the validation texts' tokens (give "
            "teacher.encoder an encoder of their language)"
        )
    return {"unknown_tokens": share}
