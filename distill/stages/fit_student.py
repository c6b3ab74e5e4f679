"""The stage fit_student, a function (run, its folder) -> figures: the student's encoder and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.tokens import Array, TextTokenizer, Tokens, chunks
from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.models.checkpoints import shape_of, usual_start
from distill.models.classifier import Network, load_network
from distill.models.predict import predict_logits
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages.fit_teacher import max_length, open_soft_labels
from distill.stages.selection import kept_rows
from distill.stages.train import MANY_UNKNOWN, finish, labelled, learn
from distill.training.checkpoint import load_tensors, save_tensors
from distill.training.learner import Matching, load_matching
from distill.training.loop import Examples
from students.factorized_embeddings import fold
from students.init_from_teacher import encoder_from_teacher
from students.pretrained import load_start
from students.pretrained_files import is_start, read_about
from students.prune_vocabulary import needed_pieces, prune_encoder, prune_tokenizer
from students.shapes import Shape, build_encoder
from teachers.checkpoints import weights_sha256
from teachers.encoders import load_encoder, load_tokenizer
from teachers.soft_labels import text_digests


def fit_student(run: Run, folder: Path) -> dict[str, Any]:
    """Distil the student on the transfer set."""
    settings = run.recipe.student
    run.seed_everything(settings)
    heads = load_heads(run.stage("prepare"))
    tokens = run.recipe.export.max_length or max_length(run)
    encoder, tokenizer, start = _student_encoder(run, tokens)
    figures: dict[str, Any] = {"start": start.said}
    if isinstance(settings.vocabulary, int):
        tokenizer, figures["vocabulary"] = _pruned(run, encoder, tokenizer, settings.vocabulary, tokens)
    network = Network(encoder, heads, pooling=settings.pooling, dropout=settings.dropout)
    tokenizer.model_max_length = network.reads(tokens)
    if tokenizer.model_max_length != max_length(run):
        run.say(
            f"student: reads {tokenizer.model_max_length} tokens of a text, its teacher {max_length(run)}"
        )
    encode = TextTokenizer(tokenizer, tokenizer.model_max_length)
    validation, test = (labelled(run, split, heads, encode) for split in ("validation", "test"))
    _spells(run, encode, validation.tokens, start)
    matching = matched(run, network, tokenizer, tokenizer.model_max_length)
    train = distilled(run, heads, encode, folder)
    figures |= learn(
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
        split: predict_logits(network, examples.tokens, run.accelerator, exact=True)
        for split, examples in (("validation", validation), ("test", test))
    }
    if run.accelerator.is_main_process:
        save_tensors(folder / "logits.safetensors", {k: torch.from_numpy(v) for k, v in logits.items()}, {})
    return figures | finish(run, network, tokenizer, folder)


def matched(run: Run, network: Network, tokenizer: Any, tokens: int) -> Matching | None:
    """What is matched inside a student of a run and its teacher; see `load_matching`."""
    teacher, device = run.stage("fit_teacher"), run.accelerator.device
    return load_matching(teacher, network, tokenizer, tokens, run.recipe.match, device)


def student_logits(run: Run, split: str) -> Array:
    """The student's logits of validation or test, float32 `[texts, sum of labels]`, computed in float32."""
    found: Array = load_tensors(run.stage("fit_student") / "logits.safetensors")[0][split].numpy()
    return found


def distilled(run: Run, heads: tuple[Head, ...], encode: TextTokenizer, folder: Path) -> Examples:
    """What is kept of the transfer set as examples: hard labels where there are any, soft ones everywhere."""
    transfer = _transfer(run)
    soft = open_soft_labels(run)
    hard: dict[str, Array] = {}
    for name, labels in hard_labels(load_split(run.stage("prepare"), "train"), heads).items():
        shape = (len(transfer), *labels.shape[1:])
        hard[name] = np.full(shape, UNLABELLED if labels.ndim == 1 else UNKNOWN, labels.dtype)
        hard[name][: len(labels)] = labels  # the training texts come first
    scratch = folder / "scratch" / f"process-{run.accelerator.process_index}"
    scratch.mkdir(parents=True, exist_ok=True)
    tokens = encode.to_disk(chunks(transfer["text"]), scratch / "tokens.bin")
    digests = (text_digests(texts) for texts in chunks(transfer["text"]))
    logits = soft.to_disk(digests, scratch / "logits.bin")
    copies = transfer.select_columns("copy").with_format("numpy")[:]["copy"]
    return Examples(tokens, hard, logits, np.flatnonzero(~copies))


def _transfer(run: Run) -> Any:
    """What is kept of the transfer set."""
    transfer, kept = load_split(run.stage("label"), "transfer"), kept_rows(run.stage("label"))
    return transfer if kept is None else transfer.select(kept)


class Start(NamedTuple):
    """How a student starts, in words, and whether its layers have learnt already."""

    said: str
    learnt: bool


def _student_encoder(run: Run, positions: int) -> tuple[Any, Any, Start]:
    """The student's encoder, its tokenizer, and how it starts.

    A fresh one has so many positions as are asked for, or as the teacher has.
    """
    student, shape = run.recipe.student, shape_of(run.recipe.student)
    rates: dict[str, Any] = {"dropout": student.dropout, "attention_dropout": student.attention_dropout}
    start = student.encoder or student.start or usual_start(run.recipe)
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
    fresh: dict[str, Any] = {"positions": network.reads(positions), "pad": pad, **rates}
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


def check_vocabulary(recipe: Recipe) -> None:
    """Refuse a vocabulary that no student could have before a teacher is trained for it.

    Raises:
        RecipeError: It is too small, or the tokenizer is not WordPiece.
    """
    student, teacher = recipe.student, recipe.teacher
    if not isinstance(student.vocabulary, int):
        return
    start = student.encoder or student.start or usual_start(recipe)
    if is_start(start) or start in ("teacher", "random"):  # reads as its teacher does
        start = teacher.networks[0] if teacher.networks else teacher.encoder
    tokenizer = load_tokenizer(start)
    _needed(tokenizer, np.zeros(len(tokenizer), np.int64), student.vocabulary)


def _needed(tokenizer: Any, counts: Array, size: int) -> list[int]:
    try:
        return needed_pieces(tokenizer, counts, size)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _pruned(run: Run, encoder: Any, tokenizer: Any, size: int, tokens: int) -> tuple[Any, dict[str, Any]]:
    """Leave encoder and tokenizer the pieces that the transfer set needs; what that changes on test."""
    whole = TextTokenizer(tokenizer, tokens)
    counts = np.zeros(encoder.config.vocab_size, np.int64)
    for texts in chunks(_transfer(run)["text"]):
        counts += np.bincount(whole(texts).ids, minlength=len(counts))
    kept = _needed(tokenizer, counts, size)
    prune_encoder(encoder, kept)
    pruned = prune_tokenizer(tokenizer, kept)
    texts = list(load_split(run.stage("prepare"), "test")["text"])
    before, after = whole(texts), TextTokenizer(pruned, tokens)(texts)
    dropped = ~np.isin(before.ids, kept)
    return pruned, {
        "pieces": len(kept),
        "of": len(counts),
        "used_by_transfer_set": int((counts > 0).sum()),
        "test_tokens_dropped": float(dropped.mean()),
        "test_tokens_more": len(after.ids) / len(before.ids) - 1,
    }


def _spells(run: Run, encode: TextTokenizer, tokens: Tokens, start: Start) -> None:
    """Refuse a checkpoint of another language than the teacher's."""
    share, teachers = encode.unknown_share(tokens), run.figures("fit_teacher").get("unknown_tokens", 0.0)
    if share > teachers + MANY_UNKNOWN:
        key = "encoder" if run.recipe.student.encoder else "start"
        raise RecipeError(
            f"student.{key}: {start.said}: its vocabulary cannot spell {share:.0%} of the validation texts' "
            f"tokens, the teacher's {teachers:.0%} (name another, or in its place student.start: teacher)"
        )


def _general_start(run: Run, folder: Path, shape: Shape, teacher: Any, fresh: dict[str, Any]) -> Any:
    found, about = read_about(folder)
    if found != shape:
        raise RecipeError(
            f"student.start: {folder} is {found}, the recipe asks for {shape} (set student.size)"
        )
    settings, taught_by = run.recipe.teacher, about.get("teacher")
    told_apart = weights_sha256(settings.encoder, settings.sha256) or settings.encoder
    if not settings.networks and told_apart != (about.get("teacher_sha256") or taught_by):
        run.say(f"student.start: {folder} was taught by {taught_by}, the teacher is {settings.encoder}")
    return load_start(folder, teacher, **fresh)
