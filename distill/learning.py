"""The stages that learn: fit_teacher, label, fit_student.

Each is a function (run, its folder) -> figures. Encoders come from the rooms `teachers` and `students`;
here they get their heads and their data.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distill import defaults
from distill.checkpoint import load_tensors, save_tensors
from distill.heads import UNKNOWN, UNLABELLED, Head, width
from distill.inference import predict_logits
from distill.learner import Matching, load_matching
from distill.network import Network, load_network, save_network, saved_heads
from distill.prepared import hard_labels, load_heads, load_split
from distill.recipe import Distillation, Recipe, Small, Training
from distill.recipe_data import RecipeError
from distill.stage import Run
from distill.tokens import Array, TextTokenizer, chunks
from distill.training import Examples, fit
from distill.transfer import transfer_set
from students.factorized import fold
from students.general import load_start
from students.sizes import SIZES, Shape, build_encoder
from students.start import encoder_from_teacher
from students.start_folder import is_start, read_about
from teachers.encoders import load_encoder
from teachers.locate import file_sha256, locate
from teachers.soft_labels import SoftLabels, text_digests


def fit_teacher(run: Run, folder: Path) -> dict[str, Any]:
    """Fine-tune the teacher on the labelled texts."""
    settings = run.recipe.teacher
    run.seed_everything()
    encoder, tokenizer = load_encoder(
        settings.encoder,
        sha256=settings.sha256,
        layers=settings.layers,
        dropout=settings.dropout,
        attention_dropout=settings.attention_dropout,
    )
    heads = load_heads(run.stage("prepare"))
    network = Network(encoder, heads, pooling=settings.pooling, dropout=settings.dropout)
    encode = TextTokenizer(tokenizer, network.reads(settings.max_length))
    train, validation = (_labelled(run, split, heads, encode) for split in ("train", "validation"))
    batch = settings.batch_size * settings.accumulate * run.accelerator.num_processes
    figures = learn(
        run,
        folder,
        "teacher",
        network,
        train,
        validation,
        settings,
        epochs=defaults.teacher_epochs(len(train.tokens), batch),
        lr=defaults.teacher_lr(network.config.hidden_size),
    )
    return figures | _finish(run, network, tokenizer, folder)


def label(run: Run, folder: Path) -> dict[str, Any]:
    """Write the teacher's logits for validation, test, and the whole transfer set."""
    network, tokenizer = load_network(run.stage("fit_teacher"))
    encode = TextTokenizer(tokenizer, network.reads(run.recipe.teacher.max_length))
    transfer = transfer_set(run, folder, network, tokenizer, encode)
    soft = open_soft_labels(run)
    splits = [load_split(run.stage("prepare"), name) for name in ("validation", "test")]
    total, new = sum(map(len, [*splits, transfer])), 0
    with run.progress(total, "label", "text") as bar:
        for texts in itertools.chain(*(chunks(split["text"]) for split in [*splits, transfer])):
            # a text that a killed run labelled in this chunk's shard is not labelled again
            digests, first = np.unique(text_digests(texts), return_index=True)
            wanted = soft.missing(digests)
            if wanted.any():
                logits = predict_logits(network, encode([texts[i] for i in first[wanted]]), run.accelerator)
                if run.accelerator.is_main_process:
                    soft.add(digests[wanted], logits)
                run.accelerator.wait_for_everyone()
                soft.refresh()  # what another process wrote
                new += int(wanted.sum())
            bar.update(len(texts))
    return {"transfer_texts": len(transfer), "labelled_texts": new}


def fit_student(run: Run, folder: Path) -> dict[str, Any]:
    """Distil the student on the transfer set."""
    settings = run.recipe.student
    run.seed_everything()
    heads = load_heads(run.stage("prepare"))
    encoder, tokenizer, start = _student_encoder(run)
    network = Network(encoder, heads, pooling=settings.pooling, dropout=settings.dropout)
    tokenizer.model_max_length = network.reads(run.recipe.export.max_length)
    encode = TextTokenizer(tokenizer, tokenizer.model_max_length)
    matching = matched(run, network, tokenizer, tokenizer.model_max_length)
    train, validation = distilled(run, heads, encode, folder), _labelled(run, "validation", heads, encode)
    figures = learn(
        run,
        folder,
        "student",
        network,
        train,
        validation,
        settings,
        epochs=defaults.student_epochs(int(train.tokens.lengths.sum())),
        lr=defaults.student_lr(network.config.hidden_size, learnt=start.learnt),
        distillation=run.recipe.distillation,
        matching=matching,
    )
    fold(network.encoder)
    # what calibrate and check compare with; here, where every process takes part
    logits = {
        split: predict_logits(
            network, _labelled(run, split, heads, encode).tokens, run.accelerator, exact=True
        )
        for split in ("validation", "test")
    }
    if run.accelerator.is_main_process:
        save_tensors(folder / "logits.safetensors", {k: torch.from_numpy(v) for k, v in logits.items()}, {})
    return figures | {"start": start.said} | _finish(run, network, tokenizer, folder)


def learn(
    run: Run,
    folder: Path,
    name: str,
    network: Network,
    train: Examples,
    validation: Examples,
    settings: Training,
    *,
    epochs: int,
    lr: float,
    distillation: Distillation | None = None,
    matching: Matching | None = None,
) -> dict[str, Any]:
    """Fit a network in a stage's folder, `epochs` and `lr` where the recipe leaves them open."""
    found = {"epochs": settings.epochs or epochs, "lr": settings.lr or lr}
    with run.tracked(name):
        return fit(
            network,
            train,
            validation,
            settings.model_copy(update=found),
            accelerator=run.accelerator,
            folder=folder / "scratch",
            seed=run.recipe.seed,
            name=name,
            distillation=distillation,
            matching=matching,
        )


def matched(run: Run, network: Network, tokenizer: Any, tokens: int) -> Matching | None:
    """What is matched inside a student of a run and its teacher; see `load_matching`."""
    teacher, device = run.stage("fit_teacher"), run.accelerator.device
    return load_matching(teacher, network, tokenizer, tokens, run.recipe.match, device)


def open_soft_labels(run: Run) -> SoftLabels:
    """The soft labels of the run's teacher: its weights and how many tokens it reads name them."""
    weights = file_sha256(run.stage("fit_teacher") / "model.safetensors")
    key = f"{weights}/{run.recipe.teacher.max_length}"
    heads = saved_heads(run.stage("fit_teacher"))
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return SoftLabels(run.folder / "soft_labels" / name, width(heads))


def teacher_logits(run: Run, split: str) -> Array:
    """The teacher's logits of a split, float32 `[texts, sum of labels]`, from its soft labels."""
    texts = load_split(run.stage("prepare"), split)["text"]
    soft = open_soft_labels(run)
    return soft.logits(soft.rows(text_digests(texts))).astype(np.float32)


def student_logits(run: Run, split: str) -> Array:
    """The student's logits of validation or test, float32 `[texts, sum of labels]`, computed in float32."""
    found: Array = load_tensors(run.stage("fit_student") / "logits.safetensors")[0][split].numpy()
    return found


def _labelled(run: Run, split: str, heads: tuple[Head, ...], encode: TextTokenizer) -> Examples:
    rows = load_split(run.stage("prepare"), split)
    return Examples(encode(rows["text"]), hard_labels(rows, heads))


def distilled(run: Run, heads: tuple[Head, ...], encode: TextTokenizer, folder: Path) -> Examples:
    """The transfer set as examples: hard labels where there are any, soft labels everywhere."""
    transfer = load_split(run.stage("label"), "transfer")
    soft = open_soft_labels(run)
    rows = np.concatenate([soft.rows(text_digests(texts)) for texts in chunks(transfer["text"])])
    hard: dict[str, Array] = {}
    for name, labels in hard_labels(load_split(run.stage("prepare"), "train"), heads).items():
        shape = (len(transfer), *labels.shape[1:])
        hard[name] = np.full(shape, UNLABELLED if labels.ndim == 1 else UNKNOWN, labels.dtype)
        hard[name][: len(labels)] = labels  # the training texts come first
    (folder / "scratch").mkdir(exist_ok=True)
    tokens = encode.to_disk(
        chunks(transfer["text"]), folder / "scratch" / f"tokens-{run.accelerator.process_index}.bin"
    )
    return Examples(tokens, hard, lambda batch: soft.logits(rows[batch]))


class Start(NamedTuple):
    """How a student starts, in words, and whether its layers have learnt already."""

    said: str
    learnt: bool


def shape_of(settings: Small) -> Shape:
    """The shape asked for, by name or by numbers."""
    if settings.layers and settings.hidden and settings.attention_heads:
        return Shape(settings.layers, settings.hidden, settings.attention_heads)
    return SIZES[settings.size or "tiny"]


def _student_encoder(run: Run) -> tuple[Any, Any, Start]:
    """The student's encoder, its tokenizer, and how it starts."""
    student, shape = run.recipe.student, shape_of(run.recipe.student)
    rates: dict[str, Any] = {"dropout": student.dropout, "attention_dropout": student.attention_dropout}
    start = student.encoder or student.start or _usual_start(run.recipe, shape)
    if student.encoder or not (is_start(start) or start in ("teacher", "random")):
        if student.embeddings == "factorized":
            raise RecipeError("student.embeddings: factorized needs start: teacher, or a general start")
        encoder, tokenizer = load_encoder(start, **rates)
        config = encoder.config
        found = Shape(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
        if student.encoder is None and found != shape:
            raise RecipeError(
                f"student.start: {start} has {found.layers} layers of width {found.hidden}, the recipe asks "
                f"for {shape.layers} of {shape.hidden} (set student.size, or student.encoder: {start})"
            )
        return encoder, tokenizer, Start(f"checkpoint: {start}", learnt=True)
    network, tokenizer = load_network(run.stage("fit_teacher"))
    teacher, pad = network.encoder, int(tokenizer.pad_token_id or 0)
    fresh: dict[str, Any] = {"positions": run.recipe.export.max_length, "pad": pad, **rates}
    kind = student.architecture or "bert"
    factorized = None if student.embeddings is None else student.embeddings == "factorized"
    try:
        if start == "random":
            words = teacher.get_input_embeddings().num_embeddings
            encoder = build_encoder(shape, architecture=kind, vocabulary=words, **fresh)
            return encoder, tokenizer, Start("random", learnt=False)
        if start == "teacher":
            fresh |= {"architecture": kind, "factorized": factorized}
            encoder, taken = encoder_from_teacher(shape, teacher, **fresh)
            learnt = any(piece.startswith("layer") for piece in taken)
            return encoder, tokenizer, Start("teacher: " + ", ".join(taken), learnt)
        encoder = _general_start(run, Path(start), shape, teacher, fresh)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if factorized is False:
        fold(encoder)
    return encoder, tokenizer, Start(f"general start: {start}", learnt=False)


def _usual_start(recipe: Recipe, shape: Shape) -> str:
    """The miniature of a published size for a teacher from the hub, where both are; else the teacher."""
    student, teacher = recipe.student, recipe.teacher
    fresh = student.layers or student.architecture or student.embeddings == "factorized"
    return "teacher" if fresh or locate(teacher.encoder, teacher.sha256).local else shape.miniature


def _general_start(run: Run, folder: Path, shape: Shape, teacher: Any, fresh: dict[str, Any]) -> Any:
    found, about = read_about(folder)
    if found != shape:
        raise RecipeError(
            f"student.start: {folder} is {found}, the recipe asks for {shape} (set student.size)"
        )
    if about["teacher"] != (named := run.recipe.teacher.encoder):
        run.say(f"student.start: {folder} was taught by {about['teacher']}, the teacher is {named}")
    return load_start(folder, teacher, **fresh)


def _finish(run: Run, network: Network, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Save what was learnt."""
    if run.accelerator.is_main_process:
        save_network(network, tokenizer, folder)
    return {"parameters": network.parameters_count}
