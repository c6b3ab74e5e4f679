"""The stages of `distill pretrain`: a general start for students, taught by an encoder as it is.

The job is one of distillation whose only head is the teacher's own embedding of a text. Nothing is
fitted to be the teacher: its "logits" are its pooled hidden states. The student learns to give them
through a projection that is left behind at the end.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal, cast

import torch

from distill.data.dataset import load_split, write_texts
from distill.data.prepare import unlabelled
from distill.data.sources import DataError
from distill.data.splits import RowIssues
from distill.data.tokens import TextTokenizer
from distill.heads import Head
from distill.models.checkpoints import shape_of
from distill.models.classifier import Network, load_network, save_network
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Distillation
from distill.run import Run, write_json
from distill.stages.fit_student import distilled, matched
from distill.stages.fit_teacher import max_length, teacher_logits
from distill.stages.train import learn
from distill.training.loop import Examples
from students.init_from_teacher import encoder_from_teacher
from students.pretrained import save_start
from teachers.checkpoints import weights_sha256
from teachers.encoders import load_encoder

HELD_OUT = 50  # one text in so many is validation
MSE = Distillation(soft_weight=1.0, loss="mse")


def prepare_texts(run: Run, folder: Path) -> dict[str, Any]:
    """Write the plain texts, each once, and hold some out."""
    dropped, leaked = RowIssues(), RowIssues()
    try:
        texts = unlabelled(run.recipe.data, {}, dropped, leaked)
        total = write_texts(folder / "texts", ({"text": text} for text in texts))
    finally:
        dropped.log("dropped")
        write_json(run.folder / "data_report.json", {"dropped": dropped.kinds})
    if total < 2 * HELD_OUT:
        raise DataError(
            f"data.unlabeled: {total} texts, expected {2 * HELD_OUT} at least (give more plain text)"
        )
    every = load_split(folder, "texts")["text"]
    splits = {
        "train": ({"text": t} for i, t in enumerate(every) if i % HELD_OUT),
        "validation": ({"text": t} for t in every[::HELD_OUT]),
        "test": iter(()),
        "unlabeled": iter(()),
    }
    rows = {name: write_texts(folder / name, texts) for name, texts in splits.items()}
    shutil.rmtree(folder / "texts")
    return {"rows": rows}


def keep_teacher(run: Run, folder: Path) -> dict[str, Any]:
    """Save the teacher as it is, with a head that gives its embedding of a text."""
    settings = run.recipe.teacher
    encoder, tokenizer = load_encoder(settings.encoder, sha256=settings.sha256, layers=settings.layers)
    network = embedding_network(encoder, settings.pooling)
    if run.accelerator.is_main_process:
        save_network(network, tokenizer, folder)
    return {"hidden": int(encoder.config.hidden_size), "max_length": network.reads(run.recipe.max_length)}


def embedding_network(encoder: Any, pooling: Literal["cls", "mean"]) -> Network:
    """A network whose only head gives the encoder's own embedding of a text, its pooled hidden states."""
    hidden = int(encoder.config.hidden_size)
    heads = (Head("embedding", "embedding", tuple(map(str, range(hidden)))),)
    network = Network(encoder, heads, pooling=pooling, dropout=0.0)
    with torch.no_grad():
        cast(torch.nn.Linear, network.linear["logits_embedding"]).weight.copy_(torch.eye(hidden))
    return network


def fit_start(run: Run, folder: Path) -> dict[str, Any]:
    """Teach a fresh student the teacher's embeddings, and keep it as a start in `start/` of the run."""
    settings, tokens = run.recipe.student, max_length(run)
    run.seed_everything(settings)
    teacher, tokenizer = load_network(run.stage("fit_teacher"))
    heads, shape = teacher.heads, shape_of(settings)
    try:
        encoder, _ = encoder_from_teacher(
            shape,
            teacher.encoder,
            positions=tokens,
            pad=int(tokenizer.pad_token_id or 0),
            factorized=True,
            dropout=settings.dropout,
            attention_dropout=settings.attention_dropout,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from None
    network = Network(encoder, heads, pooling=settings.pooling, dropout=0.0)
    matching = matched(run, network, tokenizer, tokens)
    encode = TextTokenizer(tokenizer, tokens)
    held_out = encode(load_split(run.stage("prepare"), "validation")["text"])
    train = distilled(run, heads, encode, folder)
    figures = learn(
        run,
        folder,
        "student",
        network,
        train,
        Examples(held_out, {"embedding": teacher_logits(run, "validation")}),
        settings,
        epochs=defaults.start_epochs(int(train.tokens.lengths.sum())),
        lr=defaults.student_lr(shape.hidden, learnt=False),
        distillation=MSE,
        matching=matching,
    )
    if run.accelerator.is_main_process:
        made, start = folder / "start", run.folder / "start"
        made.mkdir(exist_ok=True)
        taught = {
            "teacher": run.recipe.teacher.encoder,
            "teacher_sha256": weights_sha256(run.recipe.teacher.encoder, run.recipe.teacher.sha256),
            "pooling": settings.pooling,
            "max_length": tokens,
        }
        save_start(made, encoder, {**taught, "validation": figures["validation"]})
        shutil.rmtree(start, ignore_errors=True)
        made.rename(start)
    return figures
