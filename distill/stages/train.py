"""What the stages that train share: examples, settings with defaults, feature matching."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from distill.data.tokens import chunks
from distill.evaluation import metrics
from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.models.base import Array, TextClassifier, TextEncoder
from distill.models.packing import reserved_positions
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Match, Training
from distill.run import Run
from distill.stages import artifacts
from distill.training.feature_matching import FeatureMatching
from distill.training.loop import Examples
from export.runtime.cpus import available_cores
from teachers.soft_labels import text_digests

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TeacherNetwork = Callable[[], "tuple[TextClassifier, PreTrainedTokenizerFast]"]
MANY_UNKNOWN = 0.05  # share of tokens that a vocabulary does not cover
T = TypeVar("T", bound=Training)


def limit_threads() -> None:
    """Compute on no more threads than the process has cores; `OMP_NUM_THREADS` takes precedence."""
    if "OMP_NUM_THREADS" not in os.environ:  # torch follows the affinity mask, but no container's quota
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def with_defaults(settings: T, **defaults: Any) -> T:
    """The settings with these values where the recipe leaves them open."""
    return settings.model_copy(
        update={key: value for key, value in defaults.items() if getattr(settings, key) is None}
    )


def chosen(given: Training, used: Training) -> dict[str, Any]:
    """The settings that the recipe leaves open, with the values that are used."""
    values = {name: getattr(used, name) for name in type(given).model_fields if getattr(given, name) is None}
    return {name: value for name, value in values.items() if value is not None}


def seed_of(run: Run[Any], settings: Training) -> int:
    """The seed of a training: its own, or the recipe's."""
    return int(run.recipe.seed if settings.seed is None else settings.seed)


def labelled(run: Run[Any], split: str, encode: TextEncoder, rows: Array | None = None) -> Examples:
    """The labelled texts of a split, or some of them."""
    mixture, texts = artifacts.mixture(run, artifacts.split(run, split)), artifacts.texts(run, split)
    labels = artifacts.labels(run, split)
    if rows is not None:
        texts, mixture = [texts[row] for row in rows.tolist()], mixture and mixture.of(rows)
        labels = {head: own[rows] for head, own in labels.items()}
    return Examples(encode(texts), labels, mixture=mixture)


def labelled_rows(run: Run[Any], split: str, heads: Sequence[Head]) -> Array | None:
    """The texts of a split with a label of one of the heads; None for all texts, or where there are none."""
    labels = artifacts.labels(run, split)
    known = np.any([metrics.labelled(labels[head.name], head) for head in heads], 0)
    return None if known.all() or not known.any() else np.flatnonzero(known)


def label_positions(settings: Training, heads: Sequence[Head]) -> int:
    """The positions that a network's encoder needs beyond those of the texts."""
    return reserved_positions(heads) if settings.network == "packed" else 0


def in_training(network: TextClassifier, examples: Examples, settings: Training) -> Examples:
    """The examples as the network reads them in training."""
    negatives = settings.negatives or defaults.NEGATIVES
    texts = network.training_texts(examples.texts, examples.hard, examples.soft, negatives)
    return replace(examples, texts=texts)


def compared(
    run: Run[Any], side: str, validation: Examples, settings: T, teacher: Mapping[str, Array]
) -> tuple[Examples, T]:
    """What epochs are compared on, and the settings with the metric for it.

    A head without labels in validation has its teacher's logits there instead, and the agreement with them as
    its metric.

    Args:
        run: Whose heads.
        side: `teacher` or `student`.
        validation: Texts and hard labels.
        settings: Of the training.
        teacher: The logits on validation of what teaches it, for the heads that it knows.
    """
    unlabelled = {
        head.name: teacher[head.name]
        for head in artifacts.heads(run)
        if head.name in teacher and not metrics.labelled(validation.hard[head.name], head).any()
    }
    name = (settings.metric or "").partition(".")[0]
    if name in unlabelled:
        run.info(
            f"{side}.metric: head {name!r} has no labels in validation, so epochs are compared by its "
            "agreement with the teacher"
        )
        settings = settings.model_copy(update={"metric": f"{name}.agreement"})
    return replace(validation, hard={**validation.hard, **unlabelled}, soft=teacher), settings


def distilled(run: Run[Any], hard: Mapping[str, Array], encode: TextEncoder, folder: Path) -> Examples:
    """The transfer set: hard labels where there are any, soft labels everywhere.

    Args:
        run: Whose transfer set and soft labels.
        hard: The labels of the training texts, which come first in the transfer set.
        encode: The student's text encoder.
        folder: Of the stage; token ids and logits are memory-mapped from its `scratch`.
    """
    transfer = artifacts.transfer_set(run)
    every: dict[str, Array] = {}
    for name, labels in hard.items():
        shape = (len(transfer), *labels.shape[1:])
        every[name] = np.full(shape, UNLABELLED if labels.ndim == 1 else UNKNOWN, labels.dtype)
        every[name][: len(labels)] = labels
    scratch = folder / "scratch" / f"process-{run.accelerator.process_index}"
    scratch.mkdir(parents=True, exist_ok=True)
    texts = encode.to_disk(chunks(transfer["text"]), scratch / "tokens.bin")
    digests = (text_digests(some) for some in chunks(transfer["text"]))
    mixture, masked = artifacts.mixture(run, transfer), None
    soft = artifacts.soft_labels(run)
    if mixture and run.recipe.distillation.fill is False:
        # a head is taught by the texts of the sources that label it, and by unlabelled texts; one that no
        # source labels, by all texts
        labelled = [source["labelled"] for source in artifacts.sources(run)]
        taught = {head: np.array([bool(one[head]["train"]) for one in labelled]) for head in soft.heads}
        masked = {head: np.append(~own, False)[mixture.sources] for head, own in taught.items() if own.any()}
    return Examples(texts, every, soft.to_disk(digests, scratch, masked), mixture)


def feature_matching(
    match: Match,
    teacher_network: TeacherNetwork,
    network: TextClassifier,
    tokenizer: PreTrainedTokenizerFast,
    tokens: int,
    device: torch.device | None = None,
) -> FeatureMatching | None:
    """The feature matching of a student with its teacher, None if the recipe asks for none.

    Args:
        match: The section of the recipe.
        teacher_network: Gives the teacher and its tokenizer.
        network: The student.
        tokenizer: The student's.
        tokens: The number of tokens that the student reads of a text.
        device: What the teacher computes on; by default the CPU.

    Raises:
        RecipeError: Student and teacher cannot read the same tokens, or the layers do not fit.
    """
    if not match.hidden:
        return None
    teacher, other = teacher_network()
    if tokenizer.get_vocab() != other.get_vocab():
        raise RecipeError(
            "match: the student's vocabulary differs from the teacher's, and both must read the same tokens "
            "(choose a student.encoder or student.start of the teacher's vocabulary, or leave match out)"
        )
    if (limit := teacher.usable_length(tokens)) < tokens:
        raise RecipeError(
            f"match: the student reads {tokens} tokens of a text, the teacher has {limit} positions, and "
            f"both must read the same tokens (set export.max_length to {limit} at most, or leave match out)"
        )
    return FeatureMatching(network.encoder, teacher.encoder.to(device), match)
