"""Noised copies of a text for the teacher to label: words masked, dropped, replaced, or cut to a span.

A copy depends on the seed, the text and its number alone, so that it is the same after a crash and in
any order. Masking, replacing and sampling spans follow Tang et al. 2019 (arXiv:1903.12136, 3.2).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence

from distill.recipe import Augment


def augmented_copies(
    text: str, words: Sequence[str], mask_token: str, settings: Augment, seed: int
) -> Iterator[str]:
    """The noised copies of a text, `settings.copies` at most: those that changed nothing are left out.

    Args:
        text: The clean text.
        words: Words to replace with, drawn evenly; a word that stands twice is drawn twice as often.
        mask_token: Of the teacher's tokenizer; with none ("") masked words are dropped.
        settings: Shares of words.
        seed: Of the run.
    """
    source = text.split()
    clean = " ".join(source)
    for number in range(settings.copies):
        key = hashlib.blake2b(f"{seed}/{number}/{text}".encode(), digest_size=8).digest()
        noise = random.Random(int.from_bytes(key, "big"))
        kept = source
        if len(source) > 3 and noise.random() < settings.span:
            size = noise.randint(max(2, len(source) // 3), len(source) - 1)
            start = noise.randint(0, len(source) - size)
            kept = source[start : start + size]
        copy = " ".join(w for w in (_noised(word, words, mask_token, settings, noise) for word in kept) if w)
        if copy and copy != clean:
            yield copy


def _noised(word: str, words: Sequence[str], mask_token: str, settings: Augment, noise: random.Random) -> str:
    draw = noise.random()
    if draw < settings.mask:
        return mask_token
    draw -= settings.mask
    if draw < settings.drop:
        return ""
    draw -= settings.drop
    if words and draw < settings.replace:
        return noise.choice(words)
    return word
