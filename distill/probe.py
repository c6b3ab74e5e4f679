"""Tries the encoders of a recipe before anything is trained.

Teacher and student are built as the stages build them. Untrained, they compute, are saved, loaded and
exported, so that an encoder that a later stage could not use is an error at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distill.heads import Head
from distill.models.base import Batch, TextClassifier, on_device
from distill.models.families import new_network
from distill.models.saved_networks import load_classifier, load_settings, save_settings
from distill.models.sequence_classifier import MergedTeacher, own_outputs
from distill.recipe.schema import Job, Pretraining, Recipe
from distill.run import LOG
from distill.stages.pretrain import embedding_network, new_student
from distill.stages.student_init import initial_student, prune
from distill.stages.train import feature_matching, label_positions
from export.runtime.session import open_graph
from export.runtime.tokenizer import CachedTokenizer
from students.factorized_embeddings import fold
from teachers.checkpoints import EncoderError, network_folder
from teachers.encoders import first_sentences, load_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Loaded = tuple[TextClassifier, PreTrainedTokenizerFast]

MAX_TOKENS = 512  # of the longest text
SHORT = "Where is my parcel? It is late."
TEXTS = [" ".join([SHORT] * times) for times in (1, 4, MAX_TOKENS // 4)]
TOLERANCE = 1e-4  # share of the largest value


def probe(
    recipe: Job, teacher: Path | None = None, heads: Sequence[Head] = (), *, export: bool = True
) -> None:
    """Try teacher and student on a few texts; log what the user should know of the initialisation.

    Args:
        recipe: A distillation or a pretraining.
        teacher: The folder of the teacher, if it is trained.
        heads: The heads of the data, if they are known; by default those that the recipe describes.
        export: Whether the student's ONNX graph is tried too; that of a plain BERT always can be made.

    Raises:
        EncoderError: An encoder cannot be loaded, or a stage could not use it.
        RecipeError: The recipe's student cannot be made from its teacher.
        LabelError: A packed network cannot read a label or a hypothesis.
    """
    if isinstance(recipe, Recipe):
        _try_merged(recipe, heads)
        heads = heads or _heads(recipe)
    name = next(iter(getattr(recipe.teacher, "networks", ())), recipe.teacher.encoder)
    with _one_line(name):
        network, tokenizer = _teacher(recipe, teacher, heads)
        settings = recipe if isinstance(recipe, Pretraining) else recipe.teacher
        tokens = network.usable_length(getattr(settings, "max_length", None) or MAX_TOKENS)
        _check(name, network, tokenizer, tokens)
    if isinstance(recipe, Pretraining):
        with _one_line("student"):
            encoder = new_student(recipe, network, tokenizer, tokens)
            _student(recipe, "student", encoder, tokenizer, (network, tokenizer), network.heads, tokens)
        return
    assert isinstance(recipe, Recipe)
    name = recipe.student.encoder or "student"
    with _one_line(name):
        tokens = recipe.export.max_length or tokens
        positions = tokens + label_positions(recipe.student, heads)
        initial = initial_student(recipe, lambda: (network, tokenizer), positions)
        own = initial.tokenizer
        if isinstance(size := recipe.student.vocabulary, int):
            own, _ = prune(initial, np.zeros(initial.encoder.config.vocab_size, np.int64), size)
        student = _student(recipe, name, initial.encoder, own, (network, tokenizer), heads, tokens)
        if export:
            _check_export(name, student, own, tokens)
    if initial.note:
        LOG.info(initial.note)


def _teacher(recipe: Job, folder: Path | None, heads: Sequence[Head]) -> Loaded:
    """The teacher before its training, or a trained one from its folder."""
    settings = recipe.teacher
    if networks := getattr(settings, "networks", ()):
        folder = network_folder(networks[0])
    if folder:
        network, tokenizer = load_classifier(folder)
        if network.heads:
            return network, tokenizer
        assert isinstance(recipe, Recipe)  # the encoder is lent, and other teachers know the heads
        return new_network(recipe.teacher, network.encoder, heads), tokenizer
    encoder, tokenizer = load_encoder(settings.encoder, sha256=settings.sha256, layers=settings.layers)
    if isinstance(recipe, Recipe):
        return new_network(recipe.teacher, encoder, heads), tokenizer
    return embedding_network(encoder, settings.pooling), tokenizer


def _try_merged(recipe: Recipe, heads: Sequence[Head]) -> None:
    """Try the classifiers of `merge`, with the labels of their heads as far as they are known."""
    if not (merge := recipe.teacher.merge):
        return
    known = {head.name: head for head in heads}
    for name, models in merge.items():
        own, labels = recipe.heads[name], recipe.heads[name].names
        known.setdefault(name, Head(name, own.kind, labels or own_outputs(name, models[0]).labels))
    with _one_line("teacher.merge"):
        MergedTeacher(merge, [*known.values()], None).try_out(TEXTS)


def _heads(recipe: Recipe) -> list[Head]:
    """The heads with the labels that the recipe lists, or one, as any vocabulary can read one."""
    return [
        Head(
            name,
            head.kind,
            head.names or ("yes",),
            hypothesis=head.hypothesis or "",
            descriptions=head.descriptions or {} if head.names else {},
        )
        for name, head in recipe.heads.items()
    ]


def _student(
    recipe: Job,
    name: str,
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    teacher: Loaded,
    heads: Sequence[Head],
    tokens: int,
) -> TextClassifier:
    """The student before its training, checked."""
    student = new_network(recipe.student, encoder, heads)
    tokens = student.usable_length(tokens)
    matching = feature_matching(recipe.match, lambda: teacher, student, tokenizer, tokens)
    if matching is not None:
        matching(_batches(student, tokenizer, tokens)[1])
    fold(encoder)
    _check(name, student, tokenizer, tokens)
    return student


def _check(name: str, network: TextClassifier, tokenizer: PreTrainedTokenizerFast, tokens: int) -> None:
    """Refuse a network that could not be trained, saved or loaded.

    Args:
        name: Of the encoder, for messages.
        network: The network.
        tokenizer: Its tokenizer.
        tokens: The number of tokens read of a text.

    Raises:
        EncoderError: The network depends on padding, ignores part of a text, or is another after loading.
    """
    rows = len(network.encoder.get_input_embeddings().weight)
    if (top := max(tokenizer.get_vocab().values())) >= rows:
        raise EncoderError(
            f"{name}: its tokenizer has token ids up to {top}, its embeddings have {rows} rows "
            "(resize the embeddings, or remove the tokens that were added)"
        )
    for key, weight in network.named_parameters():
        if not weight.isfinite().all():
            raise EncoderError(f"{name}: {key} is not finite (save the encoder again)")
    network.eval()
    alone, padded, longest = _batches(network, tokenizer, tokens)
    logits = network(alone)
    logits.sum().backward()
    network.zero_grad()
    other = alone["input_ids"].clone()
    other[0, -1] = (other[0, -1] + 1) % rows
    storages: dict[int, str] = {}
    for key, tensor in network.state_dict().items():
        first = storages.setdefault(tensor.untyped_storage().data_ptr(), key)
        if first != key and tensor.numel():
            raise EncoderError(f"{name}: {first} and {key} share their memory (name another encoder)")
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        if not (logits.isfinite().all() and network(longest).isfinite().all()):
            raise EncoderError(f"{name}: its hidden states are not finite (name another encoder)")
        hidden = _hidden_states(network, alone)
        if not _same(hidden[:1], _hidden_states(network, padded)[:1, : hidden.shape[1]]):
            raise EncoderError(
                f"{name}: the hidden states of a text change with its padding, which the attention mask "
                "excludes (name another encoder)"
            )
        if _same(logits, network({**alone, "input_ids": other}), tolerance=0):
            advice = (
                "set pooling: mean" if network.settings().get("pooling") == "cls" else "name another encoder"
            )
            raise EncoderError(f"{name}: its logits do not depend on the last token of a text ({advice})")
        save_settings(network, tokenizer, Path(folder))
        again, _ = load_settings(Path(folder))
        again.load_state_dict(network.state_dict())
        if not _same(logits, again(alone)):
            raise EncoderError(
                f"{name}: saved and loaded, it computes other hidden states (name another encoder)"
            )
        path = Path(folder, "tokenizer.json")
        served = CachedTokenizer(path.read_bytes(), min(tokens, MAX_TOKENS), path)
        [ids] = served([SHORT])
        if ids != alone["input_ids"][0, : len(ids)].tolist():
            raise EncoderError(f"{name}: its tokenizer.json gives other tokens (save its tokenizer again)")


def _check_export(
    name: str, student: TextClassifier, tokenizer: PreTrainedTokenizerFast, tokens: int
) -> None:
    """Refuse a student whose ONNX graph cannot be made or computes other logits."""
    from export.graph.bert import is_plain_bert
    from export.graph.to_onnx import to_onnx

    if is_plain_bert(student) or student.family == "packed":  # graphs that are built, not traced
        return
    outputs = [f"logits_{head.name}" for head in student.heads]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        to_onnx(student, outputs, path := Path(folder, "model.onnx"), positions=tokens)
        graph = open_graph(path.read_bytes(), path)
        for batch in _batches(student, tokenizer, tokens):
            found = graph.run(outputs, {key: tensor.numpy() for key, tensor in batch.items()})
            if not _same(student(batch), torch.from_numpy(np.concatenate(found, -1)), 10 * TOLERANCE):
                raise EncoderError(f"{name}: its ONNX graph computes other logits (name another encoder)")


def _batches(network: TextClassifier, tokenizer: PreTrainedTokenizerFast, tokens: int) -> list[Batch]:
    """A short text alone, the same beside a longer one, and a long text, as the network reads them."""
    texts = network.text_encoder(tokenizer, min(tokens, MAX_TOKENS))(TEXTS)
    rows = ([0], [0, 1], [2])
    return [on_device(texts.batch(np.array(some)), torch.device("cpu")) for some in rows]


def _hidden_states(network: TextClassifier, batch: Batch) -> Tensor:
    """The encoder's last hidden states of the texts, `[batch, length, width]`."""
    states: Tensor = network.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    return states


def _same(values: Tensor, others: Tensor, tolerance: float = TOLERANCE) -> bool:
    return bool((values - others).abs().max() <= tolerance * values.abs().max())


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what a library raises into an EncoderError of one line."""
    try:
        yield
    except Exception as error:  # transformers, torch and tokenizers have no common base
        if isinstance(error, ModuleNotFoundError) or hasattr(error, "exit_code"):
            raise
        raise EncoderError(
            f"{name}: cannot be used: {first_sentences(error)} (name another encoder)"
        ) from error
