"""The stages that learn: fit_teacher, label, fit_student.

Each is a function (run, its folder) -> figures. Encoders come from the rooms `teachers` and `students`;
here they get their heads and their data.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import defaults
from distill.checkpoint import load_tensors, save_tensors
from distill.heads import UNKNOWN, UNLABELLED, Head, width
from distill.inference import predict_logits
from distill.network import Network, load_network, save_network, saved_heads
from distill.prepared import hard_labels, load_heads, load_split
from distill.recipe_data import RecipeError
from distill.stage import Run
from distill.tokens import Array, TextTokenizer, chunks
from distill.training import Examples, fit
from distill.transfer import transfer_set
from students.factorized import factorize, fold
from students.general import is_start, load_start, read_about
from students.sizes import SIZES, Shape, build_encoder
from students.start import start_from_teacher
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
    epochs = settings.epochs or defaults.teacher_epochs(
        len(train.tokens), settings.batch_size * settings.accumulate * run.accelerator.num_processes
    )
    rate = settings.lr or defaults.teacher_lr(network.config.hidden_size)
    with run.tracked("teacher"):
        figures = fit(
            network,
            train,
            validation,
            settings.model_copy(update={"epochs": epochs, "lr": rate}),
            accelerator=run.accelerator,
            folder=folder / "scratch",
            seed=run.recipe.seed,
            name="teacher",
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
    train = distilled(run, heads, encode, folder)
    epochs = settings.epochs or defaults.student_epochs(int(train.tokens.lengths.sum()))
    learnt = start.startswith("checkpoint: ") or "layer" in start.split(": ")[-1]
    rate = settings.lr or defaults.student_lr(network.config.hidden_size, learnt=learnt)
    with run.tracked("student"):
        figures = fit(
            network,
            train,
            _labelled(run, "validation", heads, encode),
            settings.model_copy(update={"epochs": epochs, "lr": rate}),
            accelerator=run.accelerator,
            folder=folder / "scratch",
            seed=run.recipe.seed,
            name="student",
            distillation=run.recipe.distillation,
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
    return figures | {"start": start} | _finish(run, network, tokenizer, folder)


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


def _student_encoder(run: Run) -> tuple[Any, Any, str]:
    """The student's encoder, its tokenizer, and a word on how it starts."""
    student, max_length = run.recipe.student, run.recipe.export.max_length
    rates: dict[str, Any] = {"dropout": student.dropout, "attention_dropout": student.attention_dropout}
    if student.layers and student.hidden and student.attention_heads:
        shape = Shape(student.layers, student.hidden, student.attention_heads)
        start = student.start or "teacher"
    else:
        shape = SIZES[student.size or "tiny"]
        # a miniature is on the hub: not for a teacher that is not from there
        teacher = run.recipe.teacher
        local = (
            student.architecture
            or student.embeddings == "factorized"
            or locate(teacher.encoder, teacher.sha256).local
        )
        start = student.start or ("teacher" if local else shape.miniature)
    general = start if is_start(start) else None
    if student.encoder or not (general or start in ("teacher", "random")):
        if student.embeddings == "factorized":
            raise RecipeError("student.embeddings: factorized needs start: teacher, or a general start")
        encoder, tokenizer = load_encoder(student.encoder or start, **rates)
        config = encoder.config
        found = Shape(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
        if student.encoder is None and found != shape:
            raise RecipeError(
                f"student.start: {start} has {found.layers} layers of width {found.hidden}, the recipe asks "
                f"for {shape.layers} of {shape.hidden} (set student.size, or student.encoder: {start})"
            )
        return encoder, tokenizer, f"checkpoint: {student.encoder or start}"
    teacher_network, tokenizer = load_network(run.stage("fit_teacher"))
    model = teacher_network.encoder
    pad = int(tokenizer.pad_token_id or 0)
    if general:
        if read_about(Path(general))[0] != shape:
            raise RecipeError(f"student.start: {general} is {read_about(Path(general))[0]}, not {shape}")
        try:
            encoder = load_start(Path(general), model, positions=max_length, pad=pad, **rates)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        taught_by = read_about(Path(general))[1]["teacher"]
        if taught_by != run.recipe.teacher.encoder:
            run.say(
                f"student.start: {general} was taught by {taught_by}, not by {run.recipe.teacher.encoder}"
            )
        if student.embeddings == "free":
            fold(encoder)
        return encoder, tokenizer, f"general start: {general}"
    encoder = build_encoder(
        shape,
        architecture=student.architecture or "bert",
        vocabulary=model.get_input_embeddings().num_embeddings,
        positions=max_length,
        pad=pad,
        **rates,
    )
    if start == "teacher":
        try:
            start = "teacher: " + ", ".join(start_from_teacher(encoder, model))
        except ValueError as error:
            raise RecipeError(str(error)) from None
        if shape.hidden < model.get_input_embeddings().weight.shape[1]:
            if student.embeddings != "free":
                factorize(encoder, model)
        elif student.embeddings == "factorized":
            raise RecipeError("student.embeddings: factorized needs a teacher that is wider than the student")
    return encoder, tokenizer, start


def _finish(run: Run, network: Network, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Save what was learnt."""
    if run.accelerator.is_main_process:
        save_network(network, tokenizer, folder)
    return {"parameters": network.parameters_count}
