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

from distill.augment.augmenter import WEIGHTS, Augmenter, Weights, split_punctuation, words_of
from distill.augment.neighbours import nearest_words
from distill.data.dataset import write_texts
from distill.data.tokens import chunks
from distill.recipe import defaults
from distill.run import Run
from distill.stages import artifacts
from export.text import strip_text
from teachers.soft_labels import text_digests

NEAREST = 15  # near words a word


class Copies(NamedTuple):
    """The number of augmented texts per text.

    Attributes:
        train: Of the training texts.
        unlabelled: Of the unlabelled texts.
    """

    train: int
    unlabelled: int


def copies(run: Run[Any]) -> Copies:
    """The augmented texts per text: the recipe's number, or as many as the tokens of the texts allow."""
    given = run.recipe.augment.copies
    if given is not None and not (given and len(artifacts.split(run, "unlabeled"))):
        return Copies(given, 0)
    tokens, unlabelled = _tokens(run, "train"), _tokens(run, "unlabeled", most=defaults.TRANSFER_TOKENS)
    count = defaults.copies(tokens, unlabelled) if given is None else given
    return Copies(count, defaults.unlabelled_copies(count, tokens, unlabelled))


def _tokens(run: Run[Any], split: str, most: float = math.inf) -> int:
    """The tokens that the teacher reads of the texts of a split, counted up to `most`."""
    network, tokenizer = artifacts.teacher_network(run)
    encode = network.text_encoder(tokenizer, artifacts.max_length(run))
    tokens = 0
    for texts in chunks(artifacts.split(run, split)["text"]):
        tokens += int(encode(texts).lengths.sum())
        if tokens > most:
            break
    return tokens


def make_augmenter(run: Run[Any], count: Copies, weights: Weights = WEIGHTS) -> Augmenter | None:
    """What makes the augmented texts of a run; None if there are none.

    Args:
        run: Whose texts and teacher.
        count: Augmented texts per text; texts that have none lend no words.
        weights: Of the sources of augmented texts: noise, near words and mixing.
    """
    if not count.train:
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

    Args:
        run: Whose training and unlabelled texts.
        folder: Of the stage.
        augmenter: Makes the augmented texts; None if there are none.
        count: Augmented texts per text.
    """
    write_texts(folder / "transfer", ({"text": text} for text in _each_once(run, augmenter, count)))


def _each_once(run: Run[Any], augmenter: Augmenter | None, count: Copies) -> Iterator[str]:
    texts, unlabelled = artifacts.texts(run, "train"), artifacts.split(run, "unlabeled")["text"]
    yield from texts
    # an augmented text that occurs in validation or test would leak the teacher's answer
    held_out = (artifacts.texts(run, name) for name in ("validation", "test"))
    seen = {digest for some in (texts, *held_out) for digest in text_digests(some)}
    others = itertools.chain(
        _augmented(run, texts, augmenter, count.train),
        unlabelled,
        _augmented(run, unlabelled, augmenter, count.unlabelled),
    )
    # soft labels are keyed by the text as it is tokenised; a span may begin with a mark of no width
    for text in filter(None, map(strip_text, others)):
        digest = text_digests([text])[0]
        if digest not in seen:
            seen.add(digest)
            yield text


def _augmented(run: Run[Any], texts: Sequence[str], augmenter: Augmenter | None, count: int) -> Iterator[str]:
    if augmenter is None or not count:
        return
    with run.progress(len(texts), "augment", "text") as bar:
        for text in texts:
            yield from augmenter.augmented(text, count)
            bar.update()
