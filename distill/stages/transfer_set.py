"""The transfer set: the texts that the teacher labels and the student learns from.

The training texts come first, then augmented texts, then the unlabelled texts. Each text occurs once, and
none occurs in validation or test.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.augment.augmenter import WEIGHTS, Augmenter, Weights, split_punctuation, words_of
from distill.augment.neighbours import nearest_words
from distill.data.dataset import write_texts
from distill.data.tokens import chunks
from distill.recipe import defaults
from distill.recipe.data_section import Augment
from distill.run import Run
from distill.stages import artifacts
from export.text import strip_text
from teachers.soft_labels import text_digests

NEAREST = 15  # near words a word


def copies(run: Run[Any]) -> int:
    """The number of augmented texts per training text: the recipe's, or as many as their tokens allow."""
    settings: Augment = run.recipe.augment
    if settings.copies is not None:
        return settings.copies
    network, tokenizer = artifacts.teacher_network(run)
    encode = network.text_encoder(tokenizer, artifacts.max_length(run))
    texts = chunks(artifacts.texts(run, "train"))
    return defaults.copies(sum(int(encode(some).lengths.sum()) for some in texts))


def make_augmenter(run: Run[Any], weights: Weights = WEIGHTS) -> Augmenter:
    """What makes the augmented texts of a run.

    Args:
        run: Whose training texts and teacher.
        weights: Of the sources of augmented texts: noise, near words and mixing.
    """
    texts = artifacts.texts(run, "train")
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


def write_transfer_set(run: Run[Any], folder: Path, augmenter: Augmenter | None, count: int) -> None:
    """Write the transfer set to `transfer.arrow` in a folder, with the column `text`.

    Args:
        run: Whose training and unlabelled texts.
        folder: Of the stage.
        augmenter: Makes the augmented texts; None if there are none.
        count: Augmented texts per training text.
    """
    texts = artifacts.texts(run, "train")
    augmented = _augmented(run, texts, augmenter, count) if augmenter else iter(())
    write_texts(folder / "transfer", ({"text": text} for text in _each_once(run, texts, augmented)))


def _augmented(run: Run[Any], texts: list[str], augmenter: Augmenter, count: int) -> Iterator[str]:
    with run.progress(len(texts), "augment", "text") as bar:
        for text in texts:
            yield from augmenter.augmented(text, count)
            bar.update()


def _each_once(run: Run[Any], texts: list[str], augmented: Iterator[str]) -> Iterator[str]:
    yield from texts
    # an augmented text that occurs in validation or test would leak the teacher's answer
    held_out = (artifacts.texts(run, name) for name in ("validation", "test"))
    seen = {digest for some in (texts, *held_out) for digest in text_digests(some)}
    # soft labels are keyed by the text as it is tokenised; a span may begin with a mark of no width
    stripped = filter(None, map(strip_text, augmented))
    for text in itertools.chain(stripped, artifacts.split(run, "unlabeled")["text"]):
        digest = text_digests([text])[0]
        if digest not in seen:
            seen.add(digest)
            yield text
