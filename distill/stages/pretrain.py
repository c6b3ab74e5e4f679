"""The stages of `distill pretrain`: a pretrained student, taught by an encoder as it is.

The job is a distillation whose only head is the teacher's embedding of a text. No teacher is trained: its
"logits" are its pooled hidden states. The student learns to give them through a projection that is
discarded at the end.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from accelerate.utils import set_seed

from distill.data.dataset import load_split, write_texts
from distill.data.prepare import unlabelled
from distill.data.rows import RowIssues
from distill.data.sources import DataError
from distill.heads import Head
from distill.models.base import TextClassifier
from distill.models.checkpoints import shape_of
from distill.models.classifier import MultiHeadClassifier
from distill.models.saved_networks import save_classifier
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Distillation, Pretraining
from distill.run import Run
from distill.stages import artifacts
from distill.stages.train import chosen, distilled, feature_matching, seed_of, with_defaults
from distill.storage import write_json
from distill.training.loop import Examples, TrainingJob, fit
from export.bundle.atomic import replacing_folder
from students.init_from_teacher import encoder_from_teacher
from students.pretrained import save_start
from teachers.checkpoints import weights_sha256
from teachers.encoders import load_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HELD_OUT = 50  # one text in 50 is validation
MSE = Distillation(soft_weight=1.0, loss="mse")


def prepare_texts(run: Run[Pretraining], folder: Path) -> dict[str, Any]:
    """Write the plain texts, each once, and hold some out."""
    dropped, leaked = RowIssues(), RowIssues()
    try:
        texts = unlabelled(run.recipe.data, {}, dropped, leaked)
        total = write_texts(folder / "texts", ({"text": one.text} for one in texts))
    finally:
        dropped.log("dropped")
        write_json(run.folder / "data_report.json", {"dropped": dropped.kinds})
    if total < 2 * HELD_OUT:
        raise DataError(
            f"data.unlabeled: {total} texts, expected at least {2 * HELD_OUT} (give more plain text)"
        )
    every = load_split(folder, "texts")["text"]
    splits = {
        "train": ({"text": t} for i, t in enumerate(every) if i % HELD_OUT),
        "validation": ({"text": t} for t in every[::HELD_OUT]),
        "test": iter(()),
        "unlabeled": iter(()),
    }
    rows = {name: write_texts(folder / name, texts) for name, texts in splits.items()}
    (folder / "texts.arrow").unlink()
    return {"rows": rows}


def keep_teacher(run: Run[Pretraining], folder: Path) -> dict[str, Any]:
    """Save the teacher as it is, with a head that gives its embedding of a text."""
    settings = run.recipe.teacher
    encoder, tokenizer = load_encoder(settings.encoder, sha256=settings.sha256, layers=settings.layers)
    network = embedding_network(encoder, settings.pooling)
    if run.accelerator.is_main_process:
        save_classifier(network, tokenizer, folder)
    return {
        "hidden": int(encoder.config.hidden_size),
        "max_length": network.usable_length(run.recipe.max_length),
    }


def embedding_network(encoder: PreTrainedModel, pooling: Literal["cls", "mean"]) -> MultiHeadClassifier:
    """A network whose only head gives the encoder's own embedding of a text, its pooled hidden states."""
    hidden = int(encoder.config.hidden_size)
    heads = (Head("embedding", "embedding", tuple(map(str, range(hidden)))),)
    network = MultiHeadClassifier(encoder, heads, pooling=pooling, dropout=0.0)
    with torch.no_grad():
        cast(torch.nn.Linear, network.linear["logits_embedding"]).weight.copy_(torch.eye(hidden))
    return network


def new_student(
    recipe: Pretraining, teacher: TextClassifier, tokenizer: PreTrainedTokenizerFast, positions: int
) -> PreTrainedModel:
    """A student's encoder before pretraining, its embeddings a projection of the teacher's.

    Raises:
        RecipeError: The student is too wide for its teacher.
    """
    try:
        encoder, _ = encoder_from_teacher(
            shape_of(recipe.student),
            teacher.encoder,
            positions=positions,
            pad=int(tokenizer.pad_token_id or 0),
            factorized=True,
            dropout=recipe.student.dropout,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return encoder


def pretrain_student(run: Run[Pretraining], folder: Path) -> dict[str, Any]:
    """Teach a new student the teacher's embeddings, and save it in `start/` of the run."""
    settings, tokens = run.recipe.student, artifacts.max_length(run)
    seed = seed_of(run, settings)
    set_seed(seed)
    teacher_network = partial(artifacts.teacher_network, run)
    teacher, tokenizer = teacher_network()
    encoder = new_student(run.recipe, teacher, tokenizer, tokens)
    network = MultiHeadClassifier(encoder, teacher.heads, pooling=settings.pooling, dropout=0.0)
    device = run.accelerator.device
    matching = feature_matching(run.recipe.match, teacher_network, network, tokenizer, tokens, device)
    encode = network.text_encoder(tokenizer, tokens)
    training = distilled(run, {}, encode, folder)
    validation = Examples(
        encode(artifacts.texts(run, "validation")), artifacts.teacher_logits(run, "validation")
    )
    settings = with_defaults(
        settings,
        epochs=defaults.pretraining_epochs(int(training.texts.lengths.sum())),
        lr=defaults.student_lr(encoder.config.hidden_size, trained_layers=False),
    )
    job = TrainingJob(
        "student",
        training,
        validation,
        settings,
        seed,
        folder / "scratch",
        MSE,
        run.recipe.checkpoint_every,
    )
    with run.tracked("student"):
        metrics = fit(network, job, run.accelerator, matching=matching)
    if run.accelerator.is_main_process:
        about = {
            "teacher": run.recipe.teacher.encoder,
            "teacher_sha256": weights_sha256(run.recipe.teacher.encoder, run.recipe.teacher.sha256),
            "pooling": settings.pooling,
            "max_length": tokens,
        }
        with replacing_folder(run.folder / "start") as start:
            save_start(start, encoder, {**about, "validation": metrics["validation"]})
    return metrics | {"seed": seed, "chosen": {"student": chosen(run.recipe.student, settings)}}
