"""Copies of a text for the teacher to label: noised, with near or masked words, or mixed with another text.

Each copy comes of one source, drawn by the sources' shares. A copy depends on the seed, the text and
its number alone, so that it is the same after a crash and in any order.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from unicodedata import category

from distill.recipe.data_section import Augment

MOST_WORDS = 512  # of a text, from its beginning, that copies are made of: some times what a teacher reads
# letters of scripts that put no spaces between words, and the marks on them
LETTERS = (
    "\u3001-\u30ff\u3400-\u9fff\uff01-\uff9f\U00020000-\U0003ffff"  # kana, ideographs, wide forms
    "\u0e01-\u0edf\u1000-\u109f\u1780-\u17d3"  # Thai and Lao, Burmese, Khmer
)
MARKS = "".join(c for c in map(chr, range(0x0E01, 0x17D4)) if category(c).startswith("M"))
UNSPACED = re.compile(f"[{LETTERS}][{MARKS}]*")
GLUED = re.compile(f"(?<=[{LETTERS}]) (?=[{LETTERS}])")


def words_of(text: str) -> list[str]:
    """The words of a text; letters of a script without spaces are words of their own."""
    return (text if text.isascii() else UNSPACED.sub(r" \g<0> ", text)).split()


def joined(words: Iterable[str]) -> str:
    """The text of words: with spaces, but for those between letters of a script that has none."""
    return _glued(" ".join(words))


def _glued(text: str) -> str:
    return text if text.isascii() else GLUED.sub("", text)


@dataclass(frozen=True)
class Augmenter:
    """What copies are made with.

    Attributes:
        settings: Shares of the sources and of words.
        seed: Of the run.
        mask_token: Of the teacher's tokenizer; with none ("") masked words are dropped.
        words: Words for noise, drawn evenly; one that stands twice is drawn twice as often.
        texts: Texts to mix with.
        near: The nearest words of each word; one that is not there is looked up in lower case.
    """

    settings: Augment
    seed: int
    mask_token: str = ""
    words: Sequence[str] = ()
    texts: Sequence[str] = ()
    near: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def copies(self, text: str, count: int) -> Iterator[str]:
        """The copies of a text, `count` at most: those that changed nothing are left out."""
        words = words_of(text)
        clean = joined(words)
        words = words[:MOST_WORDS]
        shares = [getattr(self.settings, name) for name in SOURCES]
        for number in range(count if any(shares) else 0):
            key = hashlib.blake2b(f"{self.seed}/{number}/{text}".encode(), digest_size=8).digest()
            chance = random.Random(int.from_bytes(key, "big"))
            source = chance.choices(list(SOURCES.values()), shares)[0]
            made = source(self, words, chance)
            copy = joined(word for word in made if word)
            if copy and copy != clean:
                yield copy


def _noised(augmenter: Augmenter, words: list[str], chance: random.Random) -> list[str]:
    """Words masked, dropped or replaced, and spans cut out (Tang et al. 2019, arXiv:1903.12136, 3.2)."""
    settings, kept = augmenter.settings, words
    if len(words) > 3 and chance.random() < settings.span:
        size = chance.randint(max(2, len(words) // 3), len(words) - 1)
        start = chance.randint(0, len(words) - size)
        kept = words[start : start + size]
    copy = []
    for word in kept:
        draw = chance.random()
        if draw < settings.mask:
            copy.append(augmenter.mask_token)
        elif (draw := draw - settings.mask) < settings.drop:
            continue
        elif augmenter.words and draw - settings.drop < settings.replace:
            copy.append(chance.choice(augmenter.words))
        else:
            copy.append(word)
    return copy


def _neighboured(augmenter: Augmenter, words: list[str], chance: random.Random) -> list[str]:
    """Words replaced by near ones (TinyBERT, Jiao et al. 2020, arXiv:1909.10351, algorithm 1).

    The share of words is drawn evenly between none and twice `near_words`, so that some copies stay
    close to the text and others go far.
    """
    share = 2 * augmenter.settings.near_words * chance.random()
    copy = []
    for word in words:
        before, core, after = _parted(word)
        near = augmenter.near.get(core) or augmenter.near.get(core.lower())
        if near and chance.random() < share:
            word = before + chance.choice(near) + after
        copy.append(word)
    return copy


def _mixed(augmenter: Augmenter, words: list[str], chance: random.Random) -> list[str]:
    """A beginning of the text and a span of another, or the other way about."""
    if not augmenter.texts:
        return words
    other = words_of(chance.choice(augmenter.texts))[:MOST_WORDS]
    mine = words[: chance.randint(1, len(words))]
    start = chance.randint(0, max(0, len(other) - 2))
    theirs = other[start : start + chance.randint(2, max(2, len(other)))]
    return mine + theirs if chance.random() < 0.5 else theirs + mine


def _parted(word: str) -> tuple[str, str, str]:
    """What stands before a word, the word, and what stands behind it."""
    letters = [place for place, character in enumerate(word) if character.isalnum() or character == "_"]
    if not letters:
        return word, "", ""
    first, behind = letters[0], letters[-1] + 1
    return word[:first], word[first:behind], word[behind:]


# by the name of their share in the recipe
SOURCES: dict[str, Callable[[Augmenter, list[str], random.Random], list[str]]] = {
    "noise": _noised,
    "neighbours": _neighboured,
    "mix": _mixed,
}
