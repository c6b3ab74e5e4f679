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

from distill import defaults
from distill.augment import Augmenter
from distill.network import Network
from distill.prepared import load_split, write_texts
from distill.stage import Run
from distill.tokens import TextTokenizer, chunks
from teachers.neighbours import nearest_words
from teachers.soft_labels import text_digests


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
            words=[sys.intern(w) for t in texts for w in t.split()] if count and settings.noise else (),
            texts=texts,
            near=nearest_words(teacher.encoder, tokenizer, settings.nearest)
            if count and settings.neighbours
            else {},
        )
        write_texts(folder / "transfer", _rows(run, texts, augmenter, count), marks=["copy"])
    run.accelerator.wait_for_everyone()
    return load_split(folder, "transfer")


def _rows(run: Run, clean: list[str], augmenter: Augmenter, count: int) -> Iterator[dict[str, Any]]:
    yield from ({"text": text, "copy": False} for text in clean)
    # a copy that stands in validation or test would carry its teacher's answer over
    held = (load_split(run.stage("prepare"), name)["text"] for name in ("validation", "test"))
    seen = {digest for texts in (clean, *held) for digest in text_digests(list(texts))}
    copies = ((copy, True) for text in clean for copy in augmenter.copies(text, count))
    unlabelled = ((text, False) for text in load_split(run.stage("prepare"), "unlabeled")["text"])
    for text, copied in itertools.chain(copies, unlabelled):
        digest = text_digests([text])[0]
        if digest not in seen:
            seen.add(digest)
            yield {"text": text, "copy": copied}
