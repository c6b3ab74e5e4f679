"""How a student is initialised: from a checkpoint, a pretrained student, its teacher, or at random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distill.data.tokens import TextTokenizer, chunks
from distill.models.base import Array
from distill.models.checkpoints import default_initialisation, shape_of
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.stages.train import MANY_UNKNOWN, TeacherNetwork
from students.init_from_teacher import encoder_from_teacher
from students.pretrained import load_start
from students.pretrained_files import is_start, read_about
from students.prune_vocabulary import needed_pieces, prune_encoder, prune_tokenizer
from students.shapes import Shape, build_encoder
from teachers.checkpoints import weights_sha256
from teachers.encoders import load_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class InitialStudent(NamedTuple):
    """A student's encoder before training.

    Attributes:
        encoder: The encoder.
        tokenizer: Its tokenizer.
        description: How it is initialised.
        trained_layers: Whether its layers are trained already.
        note: What the user should know about the initialisation, if anything.
    """

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    description: str
    trained_layers: bool
    note: str | None = None


def checkpoint(recipe: Recipe) -> str | None:
    """The encoder that gives the student weights and tokenizer; None if its teacher lends the tokenizer."""
    student = recipe.student
    start = student.encoder or student.start or default_initialisation(recipe)
    return start if student.encoder or not (is_start(start) or start in ("teacher", "random")) else None


def initial_student(recipe: Recipe, teacher_network: TeacherNetwork, positions: int) -> InitialStudent:
    """The student's encoder and tokenizer as the recipe initialises them.

    Args:
        recipe: Of the student.
        teacher_network: Gives the teacher and its tokenizer, where the initialisation needs them.
        positions: The number of positions of a new encoder; fewer if the teacher has fewer.

    Raises:
        RecipeError: The recipe's settings do not fit each other or the teacher.
        EncoderError: The checkpoint cannot be loaded.
    """
    student, shape = recipe.student, shape_of(recipe.student)
    start = student.encoder or student.start or default_initialisation(recipe)
    if checkpoint(recipe):
        instead = "--set student.start=teacher" if not student.encoder else "leave student.encoder out"
        encoder, tokenizer = load_encoder(
            start, dropout=student.dropout, attention_dropout=0.0, instead=instead
        )
        if not student.encoder:
            _check_shape(start, encoder.config, shape)
        return InitialStudent(encoder, tokenizer, f"checkpoint: {start}", trained_layers=True)
    network, tokenizer = teacher_network()
    teacher, pad = network.encoder, int(tokenizer.pad_token_id or 0)
    fresh: dict[str, Any] = {
        "positions": network.positions(positions),
        "pad": pad,
        "dropout": student.dropout,
    }
    note = None
    if start == "teacher":
        try:
            encoder, taken = encoder_from_teacher(shape, teacher, **fresh)
        except ValueError as error:
            if student.start:
                raise RecipeError(str(error)) from None
            reason = str(error).removeprefix("student.start: teacher: ").partition(" (")[0]
            start, note = "random", f"student.start: random, since the teacher cannot initialise it: {reason}"
        else:
            trained = any(piece.startswith("layer") for piece in taken)
            return InitialStudent(encoder, tokenizer, "teacher: " + ", ".join(taken), trained)
    if start == "random":
        words = len(teacher.get_input_embeddings().weight)
        encoder = build_encoder(shape, vocabulary=words, **fresh)
        return InitialStudent(encoder, tokenizer, "random", trained_layers=False, note=note)
    note = _check_start(recipe, Path(start), shape)
    try:
        encoder = load_start(Path(start), teacher, **fresh)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return InitialStudent(encoder, tokenizer, f"pretrained student: {start}", trained_layers=False, note=note)


def prune(student: InitialStudent, counts: Array, size: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Prune a student's encoder in place; returns its tokenizer, and the ids of the pieces that are kept.

    Args:
        student: The student.
        counts: Number of occurrences of each piece in the texts.
        size: The number of word pieces to keep.

    Raises:
        RecipeError: The size is too small or too large, or the tokenizer is not WordPiece.
    """
    try:
        kept = needed_pieces(student.tokenizer, counts, size)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    prune_encoder(student.encoder, kept)
    return prune_tokenizer(student.tokenizer, kept), kept


def prune_vocabulary(
    run: Run[Recipe], student: InitialStudent, size: int, tokens: int
) -> tuple[PreTrainedTokenizerFast, dict[str, Any]]:
    """Keep the word pieces that the transfer set needs; returns the tokenizer, and the effect on test.

    Args:
        run: Whose transfer set and test split.
        student: Its encoder is pruned in place.
        size: The number of word pieces to keep.
        tokens: The number of tokens read of a text.
    """
    whole = TextTokenizer(student.tokenizer, tokens)
    counts = np.zeros(student.encoder.config.vocab_size, np.int64)
    for texts in chunks(artifacts.transfer_set(run)["text"]):
        counts += np.bincount(whole(texts).ids, minlength=len(counts))
    pruned, kept = prune(student, counts, size)
    texts = artifacts.texts(run, "test")
    before, after = whole(texts), TextTokenizer(pruned, tokens)(texts)
    return pruned, {
        "pieces": len(kept),
        "of": len(counts),
        "used_by_transfer_set": int((counts > 0).sum()),
        "test_tokens_dropped": float((~np.isin(before.ids, kept)).mean()),
        "test_tokens_more": len(after.ids) / len(before.ids) - 1,
    }


def check_coverage(run: Run[Recipe], encode: TextTokenizer, description: str, teachers: float) -> None:
    """Refuse a student of another language than its teacher's.

    Args:
        run: Whose recipe and validation texts.
        encode: The student's.
        description: How the student is initialised.
        teachers: The share of tokens that the teacher's vocabulary does not cover.

    Raises:
        RecipeError: Its vocabulary covers far fewer tokens than the teacher's.
    """
    share = encode.unknown_share(encode(artifacts.texts(run, "validation")))
    if share > teachers + MANY_UNKNOWN:
        key = "encoder" if run.recipe.student.encoder else "start"
        raise RecipeError(
            f"student.{key}: {description}: its vocabulary does not cover {share:.0%} of the validation "
            f"texts' tokens, the teacher's {teachers:.0%} (name another, or use student.start: teacher)"
        )


def _check_shape(start: str, config: Any, shape: Shape) -> None:
    """Refuse a checkpoint of another shape than the student's."""
    loaded = Shape(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    if loaded != shape:
        raise RecipeError(
            f"student.start: {start} has {loaded.layers} layers of width {loaded.hidden}, expected "
            f"{shape.layers} of {shape.hidden} (set student.size, or student.encoder: {start})"
        )


def _check_start(recipe: Recipe, folder: Path, shape: Shape) -> str | None:
    """Refuse a pretrained student of another shape; a note if another teacher taught it."""
    try:
        loaded, about = read_about(folder)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if loaded != shape:
        raise RecipeError(f"student.start: {folder} is {loaded}, expected {shape} (set student.size)")
    settings, taught_by = recipe.teacher, about.get("teacher")
    if settings.networks:
        return None
    identity = weights_sha256(settings.encoder, settings.sha256) or settings.encoder
    if identity == (about.get("teacher_sha256") or taught_by):
        return None
    return f"student.start: {folder} was taught by {taught_by}, the teacher is {settings.encoder}"
