"""Augmented texts: words masked, removed or replaced, and spans cut out (Tang et al. 2019).

An augmented text depends on the seed, the text and its number alone, so it is the same after a crash and in
any order.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from unicodedata import category

from distill.recipe.data_section import Augment

MAX_WORDS = 512  # read from the beginning of a text, several times what a teacher reads
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
    """Makes augmented texts (Tang et al. 2019, arXiv:1903.12136, section 3.2).

    Attributes:
        settings: Shares of words and of spans.
        seed: Of the run.
        mask_token: The teacher's; if empty, masked words are removed.
        words: Replacements, sampled uniformly; a word that occurs twice is sampled twice as often.
    """

    settings: Augment
    seed: int
    mask_token: str = ""
    words: Sequence[str] = ()

    def augmented(self, text: str, count: int) -> Iterator[str]:
        """Up to `count` augmented texts; those that equal the text are left out."""
        words = words_of(text)
        unchanged = join_words(words)
        words = words[:MAX_WORDS]
        for number in range(count):
            key = hashlib.blake2b(f"{self.seed}/{number}/{text}".encode(), digest_size=8).digest()
            result = join_words(filter(None, self._noised(words, random.Random(int.from_bytes(key, "big")))))
            if result and result != unchanged:
                yield result

    def _noised(self, words: list[str], chance: random.Random) -> Iterator[str]:
        settings = self.settings
        if len(words) > 3 and chance.random() < settings.span:
            size = chance.randint(max(2, len(words) // 3), len(words) - 1)
            start = chance.randint(0, len(words) - size)
            words = words[start : start + size]
        for word in words:
            draw = chance.random()
            if draw < settings.mask:
                yield self.mask_token
            elif (draw := draw - settings.mask) < settings.drop:
                continue
            elif self.words and draw - settings.drop < settings.replace:
                yield chance.choice(self.words)
            else:
                yield word
