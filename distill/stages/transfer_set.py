"""The transfer set: the texts that the teacher labels and the student learns from.

The training texts come first, then their augmented texts, the unlabelled texts, and theirs. Each text occurs
once, and none occurs in validation or test.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.augment.augmenter import WEIGHTS, Augmenter, Weights, split_punctuation, words_of
from distill.augment.neighbours import nearest_words
from distill.data.dataset import write_texts
from distill.data.tokens import chunks
from distill.recipe import defaults
from distill.run import Run
from distill.stages import artifacts
from export.text import strip_text
from teachers.soft_labels import text_digests

Array = NDArray[Any]
NEAREST = 15  # near words a word
SourcedText = tuple[str, int]  # a text and the number of its source


class Copies(NamedTuple):
    """The number of augmented texts per text.

    Attributes:
        train: Of the training texts, by source; one number where the recipe lists no sources.
        unlabelled: Of the unlabelled texts.
    """

    train: tuple[int, ...]
    unlabelled: int


def copies(run: Run[Any]) -> Copies:
    """The augmented texts per text: the recipe's number, or as many as the tokens of the texts allow."""
    given, mixture = run.recipe.augment.copies, artifacts.mixture(run, artifacts.split(run, "train"))
    sources, others = len(artifacts.sources(run)) or 1, len(artifacts.split(run, "unlabeled"))
    if given is not None and not (given and others):
        return Copies((given,) * sources, 0)
    lengths, unlabelled = _lengths(run, "train"), _lengths(run, "unlabeled", most=defaults.TRANSFER_TOKENS)
    tokens, other_tokens = int(lengths.sum()), int(unlabelled.sum())
    if given is None and mixture:
        texts, own = (np.bincount(mixture.sources, some, sources).tolist() for some in (None, lengths))
        *found, last = defaults.mixed_copies([*own, other_tokens], [*texts, others], artifacts.mixing(run))
        return Copies((*found,), last)
    count = defaults.copies(tokens, other_tokens) if given is None else given
    return Copies((count,) * sources, defaults.unlabelled_copies(count, tokens, other_tokens))


def _lengths(run: Run[Any], split: str, most: float = math.inf) -> Array:
    """The tokens that the teacher reads of each text of a split, up to `most` tokens in all."""
    network, tokenizer = artifacts.teacher_network(run)
    encode = network.text_encoder(tokenizer, artifacts.max_length(run))
    found = [np.zeros(0, np.int64)]
    for texts in chunks(artifacts.split(run, split)["text"]):
        found.append(encode(texts).lengths)
        most -= int(found[-1].sum())
        if most < 0:
            break
    return np.concatenate(found)


def make_augmenter(run: Run[Any], count: Copies, weights: Weights = WEIGHTS) -> Augmenter | None:
    """What makes the augmented texts of a run; None if there are none.

    Args:
        run: Whose texts and teacher.
        count: Augmented texts per text; texts that have none lend no words.
        weights: Of the sources of augmented texts: noise, near words and mixing.
    """
    if not any((*count.train, count.unlabelled)):
        return None
    texts = artifacts.texts(run, "train")
    if count.unlabelled:
        texts += artifacts.texts(run, "unlabeled")
    network, tokenizer = artifacts.teacher_network(run)
    words = [sys.intern(word) for text in texts for word in words_of(text)]
    cores = {split_punctuation(word)[1] for word in {*words}}
    return Augmenter(
        run.recipe.augment,
        run.recipe.seed,
        mask_token=tokenizer.mask_token or "",
        words=words,
        texts=texts,
        near=nearest_words(network.encoder, tokenizer, NEAREST, cores | {core.lower() for core in cores}),
        weights=weights,
    )


def write_transfer_set(run: Run[Any], folder: Path, augmenter: Augmenter | None, count: Copies) -> None:
    """Write the transfer set to `transfer.arrow` in a folder, with the column `text`.

    Where the recipe lists several sources, also with the column `source`. That of an augmented text is the
    source of its text; unlabelled texts are one more source.

    Args:
        run: Whose training and unlabelled texts.
        folder: Of the stage.
        augmenter: Makes the augmented texts; None if there are none.
        count: Augmented texts per text.
    """
    rows = ({"text": text, "source": source} for text, source in _each_once(run, augmenter, count))
    sourced = artifacts.mixture(run, artifacts.split(run, "train")) is not None
    write_texts(folder / "transfer", rows, sourced=sourced)


def _each_once(run: Run[Any], augmenter: Augmenter | None, count: Copies) -> Iterator[SourcedText]:
    texts, unlabelled = artifacts.texts(run, "train"), artifacts.split(run, "unlabeled")["text"]
    mixture, counts = artifacts.mixture(run, artifacts.split(run, "train")), (*count.train, count.unlabelled)
    sources = mixture.sources.tolist() if mixture else [0] * len(texts)
    yield from zip(texts, sources, strict=True)
    # an augmented text that occurs in validation or test would leak the teacher's answer
    held_out = (artifacts.texts(run, name) for name in ("validation", "test"))
    seen = {digest for some in (texts, *held_out) for digest in text_digests(some)}
    last = len(count.train)
    others = itertools.chain(
        _augmented(run, texts, sources, augmenter, counts),
        ((text, last) for text in unlabelled),
        _augmented(run, unlabelled, [last] * len(unlabelled), augmenter, counts),
    )
    for augmented, source in others:
        # soft labels are keyed by the text as it is tokenised; a span may begin with a mark of no width
        text = strip_text(augmented)
        digest = text_digests([text])[0]
        if text and digest not in seen:
            seen.add(digest)
            yield text, source


def _augmented(
    run: Run[Any],
    texts: Sequence[str],
    sources: Sequence[int],
    augmenter: Augmenter | None,
    counts: Sequence[int],
) -> Iterator[SourcedText]:
    """The augmented texts of texts, as many of each as its source has."""
    if augmenter is None or not any(counts[source] for source in {*sources}):
        return
    with run.progress(len(texts), "augment", "text") as bar:
        for text, source in zip(texts, sources, strict=True):
            yield from ((one, source) for one in augmenter.augmented(text, counts[source]))
            bar.update()
