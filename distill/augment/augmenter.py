"""Augmented texts: noised, with words replaced by near ones, or mixed with another text.

Each augmented text comes from one source, sampled by weight. It depends on the seed, the text and its number
alone, so it is the same after a crash and in any order.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from unicodedata import category

from distill.recipe.data_section import Augment

MAX_WORDS = 512  # read from the beginning of a text, several times what a teacher reads
Weights = tuple[float, float, float]  # of the sources noise, near words and mixing
WEIGHTS: Weights = (1.0, 1.0, 0.5)
NEAR_WORDS = 0.3  # share of words replaced by a near one, on average
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


def join_words(words: Iterable[str]) -> str:
    """The words as a text, with spaces except between letters of a script that has none."""
    text = " ".join(words)
    return text if text.isascii() else GLUED.sub("", text)


@dataclass(frozen=True)
class Augmenter:
    """Makes augmented texts.

    Attributes:
        settings: Shares of words and of spans.
        seed: Of the run.
        mask_token: The teacher's; if empty, masked words are removed.
        words: Replacements, sampled uniformly; a word that occurs twice is sampled twice as often.
        texts: Texts to mix with.
        near: The nearest words of each word; a word that is missing is looked up in lower case.
        weights: Of the sources noise, near words and mixing.
    """

    settings: Augment
    seed: int
    mask_token: str = ""
    words: Sequence[str] = ()
    texts: Sequence[str] = ()
    near: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weights: Weights = WEIGHTS

    def augmented(self, text: str, count: int) -> Iterator[str]:
        """Up to `count` augmented texts; those that equal the text are left out."""
        words = words_of(text)
        unchanged = join_words(words)
        words = words[:MAX_WORDS]
        for number in range(count):
            key = hashlib.blake2b(f"{self.seed}/{number}/{text}".encode(), digest_size=8).digest()
            chance = random.Random(int.from_bytes(key, "big"))
            source = chance.choices(SOURCES, self.weights)[0]
            result = join_words(filter(None, source(self, words, chance)))
            if result and result != unchanged:
                yield result


def _noised(augmenter: Augmenter, words: list[str], chance: random.Random) -> Iterator[str]:
    """Words masked, removed or replaced, and spans cut out (Tang et al. 2019, arXiv:1903.12136, 3.2)."""
    settings = augmenter.settings
    if len(words) > 3 and chance.random() < settings.span:
        size = chance.randint(max(2, len(words) // 3), len(words) - 1)
        start = chance.randint(0, len(words) - size)
        words = words[start : start + size]
    for word in words:
        draw = chance.random()
        if draw < settings.mask:
            yield augmenter.mask_token
        elif (draw := draw - settings.mask) < settings.drop:
            continue
        elif augmenter.words and draw - settings.drop < settings.replace:
            yield chance.choice(augmenter.words)
        else:
            yield word


def _with_near_words(augmenter: Augmenter, words: list[str], chance: random.Random) -> Iterator[str]:
    """Words replaced by near ones (TinyBERT, Jiao et al. 2020, arXiv:1909.10351, algorithm 1).

    The share of words is sampled uniformly between 0 and twice NEAR_WORDS, so that some augmented texts stay
    close to the text and others do not.
    """
    share = 2 * NEAR_WORDS * chance.random()
    for word in words:
        before, core, after = split_punctuation(word)
        near = augmenter.near.get(core) or augmenter.near.get(core.lower())
        replaces = near and chance.random() < share
        yield before + chance.choice(near) + after if near and replaces else word


def _mixed(augmenter: Augmenter, words: list[str], chance: random.Random) -> list[str]:
    """The beginning of the text and a span of another, in either order."""
    if not augmenter.texts:
        return words
    other = words_of(chance.choice(augmenter.texts))[:MAX_WORDS]
    beginning = words[: chance.randint(1, len(words))]
    start = chance.randint(0, max(0, len(other) - 2))
    span = other[start : start + chance.randint(2, max(2, len(other)))]
    return beginning + span if chance.random() < 0.5 else span + beginning


def split_punctuation(word: str) -> tuple[str, str, str]:
    """The punctuation before a word, the word, and the punctuation after it."""
    letters = [place for place, character in enumerate(word) if character.isalnum() or character == "_"]
    if not letters:
        return word, "", ""
    first, end = letters[0], letters[-1] + 1
    return word[:first], word[first:end], word[end:]


Source = Callable[[Augmenter, list[str], random.Random], Iterable[str]]
SOURCES: tuple[Source, Source, Source] = (_noised, _with_near_words, _mixed)
