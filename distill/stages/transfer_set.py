"""The transfer set: the texts that the teacher labels and the student learns from.

The training texts first, then copies of them, then the unlabelled texts; each text but once, and none
that stands in validation or test.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.augment.augmenter import Augmenter, Gapped, words_of
from distill.data.dataset import load_split, write_texts
from distill.data.tokens import TextTokenizer, chunks
from distill.models.classifier import Network
from distill.recipe import defaults
from distill.run import Run, read_json, write_json
from teachers.masked_words import MaskedWords
from teachers.neighbours import nearest_words
from teachers.soft_labels import text_digests

FILLED = 256  # texts whose copies are filled at once


def transfer_set(run: Run, folder: Path, teacher: Network, tokenizer: Any, encode: TextTokenizer) -> Any:
    """The transfer set, memory-mapped columns `text` and `copy`; written to `folder` if it is not there yet.

    Args:
        run: Whose training and unlabelled texts.
        folder: Of the stage.
        teacher: Whose word embeddings say which words are near.
        tokenizer: The teacher's.
        encode: The same, as the teacher reads.
    """
    if run.accelerator.is_main_process and not (folder / "transfer").exists():
        texts = list(load_split(run.stage("prepare"), "train")["text"])
        settings = run.recipe.augment
        count = settings.copies
        if count is None:
            tokens = sum(int(encode(some).lengths.sum()) for some in chunks(texts))
            count = defaults.copies(tokens)
        augmenter = Augmenter(
            settings,
            run.recipe.seed,
            mask_token=tokenizer.mask_token or "",
            words=[sys.intern(w) for t in texts for w in words_of(t)] if count and settings.noise else (),
            texts=texts,
            near=nearest_words(teacher.encoder, tokenizer, settings.nearest)
            if count and settings.neighbours
            else {},
        )
        scratch = folder / "scratch"
        copies = _copies(run, scratch, texts, augmenter, count, encode.max_length) if count else iter(())
        write_texts(folder / "transfer", _rows(run, texts, copies), marks=["copy"])
    run.accelerator.wait_for_everyone()
    return load_split(folder, "transfer")


def _copies(
    run: Run, scratch: Path, clean: list[str], augmenter: Augmenter, count: int, max_length: int
) -> Iterator[str]:
    """The copies of the texts in order, their gaps filled; those of a few hundred texts are in memory.

    What fills the gaps lies in `scratch`, so that a run that was stopped does not predict it again.
    """
    settings, fill = augmenter.settings, None
    if settings.masked and settings.masked_lm:
        fill = MaskedWords(
            settings.masked_lm,
            sha256=settings.masked_sha256,
            top=settings.masked_top,
            max_length=max_length,
            device=run.accelerator.device,
        ).fill
    with run.progress(len(clean), "copies", "text") as bar:
        for number, texts in enumerate(chunks(clean, FILLED)):
            made = [copy for text in texts for copy in augmenter.copies(text, count)]
            words: list[list[str]] = []
            if fill:
                scratch.mkdir(exist_ok=True)
                path = scratch / f"filled-{number}.json"
                if not path.exists():
                    write_json(path, fill([copy for copy in made if isinstance(copy, Gapped)]))
                words = read_json(path)
            rest = iter(words)
            for copy in made:
                if not isinstance(copy, Gapped):
                    yield copy
                elif (found := next(rest)) != copy.words:
                    yield copy.filled(found)
            bar.update(len(texts))


def _rows(run: Run, clean: list[str], copies: Iterator[str]) -> Iterator[dict[str, Any]]:
    yield from ({"text": text, "copy": False} for text in clean)
    # a copy that stands in validation or test would carry its teacher's answer over
    held = (load_split(run.stage("prepare"), name)["text"] for name in ("validation", "test"))
    seen = {digest for texts in (clean, *held) for digest in text_digests(list(texts))}
    copied = ((copy, True) for copy in copies)
    unlabelled = ((text, False) for text in load_split(run.stage("prepare"), "unlabeled")["text"])
    for text, is_copy in itertools.chain(copied, unlabelled):
        digest = text_digests([text])[0]
        if digest not in seen:
            seen.add(digest)
            yield {"text": text, "copy": is_copy}
