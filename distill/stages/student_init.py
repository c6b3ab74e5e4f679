"""How a student is initialised: from a checkpoint, a pretrained student, its teacher, or at random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distill.data.tokens import TextTokenizer, Tokens, chunks
from distill.models.base import Array
from distill.models.checkpoints import default_initialisation, shape_of
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.stages.train import MANY_UNKNOWN
from students.init_from_teacher import encoder_from_teacher
from students.pretrained import load_start
from students.pretrained_files import is_start, read_about
from students.prune_vocabulary import needed_pieces, prune_encoder, prune_tokenizer
from students.shapes import Shape, build_encoder
from teachers.checkpoints import weights_sha256
from teachers.encoders import load_encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class InitialStudent(NamedTuple):
    """A student's encoder before training.

    Attributes:
        encoder: The encoder.
        tokenizer: Its tokenizer.
        description: How it is initialised.
        trained_layers: Whether its layers are trained already.
    """

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    description: str
    trained_layers: bool


def initial_student(run: Run[Recipe], positions: int) -> InitialStudent:
    """The student's encoder and tokenizer as the recipe initialises them.

    Args:
        run: Whose recipe and teacher.
        positions: The number of positions of a new encoder; fewer if the teacher has fewer.

    Raises:
        RecipeError: The recipe's settings do not fit each other or the teacher.
    """
    student, shape = run.recipe.student, shape_of(run.recipe.student)
    start = student.encoder or student.start or default_initialisation(run.recipe)
    if student.encoder or not (is_start(start) or start in ("teacher", "random")):
        encoder, tokenizer = load_encoder(start, dropout=student.dropout, attention_dropout=0.0)
        config = encoder.config
        loaded = Shape(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
        if student.encoder is None and loaded != shape:
            raise RecipeError(
                f"student.start: {start} has {loaded.layers} layers of width {loaded.hidden}, expected "
                f"{shape.layers} of {shape.hidden} (set student.size, or student.encoder: {start})"
            )
        return InitialStudent(encoder, tokenizer, f"checkpoint: {start}", trained_layers=True)
    network, tokenizer = artifacts.teacher_network(run)
    teacher, pad = network.encoder, int(tokenizer.pad_token_id or 0)
    fresh: dict[str, Any] = {
        "positions": network.usable_length(positions),
        "pad": pad,
        "dropout": student.dropout,
    }
    try:
        if start == "random":
            words = teacher.get_input_embeddings().num_embeddings
            encoder = build_encoder(shape, vocabulary=words, **fresh)
            return InitialStudent(encoder, tokenizer, "random", trained_layers=False)
        if start == "teacher":
            encoder, taken = encoder_from_teacher(shape, teacher, **fresh)
            trained = any(piece.startswith("layer") for piece in taken)
            return InitialStudent(encoder, tokenizer, "teacher: " + ", ".join(taken), trained)
        encoder = _pretrained(run, Path(start), shape, teacher, fresh)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return InitialStudent(encoder, tokenizer, f"pretrained student: {start}", trained_layers=False)


def check_vocabulary(recipe: Recipe) -> None:
    """Refuse a vocabulary size that no student could have, before a teacher is trained.

    Raises:
        RecipeError: It is too small, or the tokenizer is not WordPiece.
    """
    student, teacher = recipe.student, recipe.teacher
    if not isinstance(student.vocabulary, int):
        return
    start = student.encoder or student.start or default_initialisation(recipe)
    if is_start(start) or start in ("teacher", "random"):  # which use the teacher's tokenizer
        start = teacher.networks[0] if teacher.networks else teacher.encoder
    tokenizer = load_tokenizer(start)
    _needed_pieces(tokenizer, np.zeros(len(tokenizer), np.int64), student.vocabulary)


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
    kept = _needed_pieces(student.tokenizer, counts, size)
    prune_encoder(student.encoder, kept)
    pruned = prune_tokenizer(student.tokenizer, kept)
    texts = artifacts.texts(run, "test")
    before, after = whole(texts), TextTokenizer(pruned, tokens)(texts)
    return pruned, {
        "pieces": len(kept),
        "of": len(counts),
        "used_by_transfer_set": int((counts > 0).sum()),
        "test_tokens_dropped": float((~np.isin(before.ids, kept)).mean()),
        "test_tokens_more": len(after.ids) / len(before.ids) - 1,
    }


def check_coverage(run: Run[Recipe], encode: TextTokenizer, tokens: Tokens, description: str) -> None:
    """Refuse a checkpoint of another language than the teacher's.

    Args:
        run: Whose recipe and teacher.
        encode: The student's.
        tokens: Of the validation texts.
        description: How the student is initialised.

    Raises:
        RecipeError: Its vocabulary covers far fewer tokens than the teacher's.
    """
    share, teachers = encode.unknown_share(tokens), artifacts.unknown_tokens(run)
    if share > teachers + MANY_UNKNOWN:
        key = "encoder" if run.recipe.student.encoder else "start"
        raise RecipeError(
            f"student.{key}: {description}: its vocabulary does not cover {share:.0%} of the validation "
            f"texts' tokens, the teacher's {teachers:.0%} (name another, or use student.start: teacher)"
        )


def _needed_pieces(tokenizer: PreTrainedTokenizerFast, counts: Array, size: int) -> list[int]:
    try:
        return needed_pieces(tokenizer, counts, size)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _pretrained(
    run: Run[Recipe], folder: Path, shape: Shape, teacher: PreTrainedModel, fresh: dict[str, Any]
) -> PreTrainedModel:
    loaded, about = read_about(folder)
    if loaded != shape:
        raise RecipeError(f"student.start: {folder} is {loaded}, expected {shape} (set student.size)")
    settings, taught_by = run.recipe.teacher, about.get("teacher")
    identity = weights_sha256(settings.encoder, settings.sha256) or settings.encoder
    if not settings.networks and identity != (about.get("teacher_sha256") or taught_by):
        run.info(f"student.start: {folder} was taught by {taught_by}, the teacher is {settings.encoder}")
    return load_start(folder, teacher, **fresh)
