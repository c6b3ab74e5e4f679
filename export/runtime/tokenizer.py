"""Texts into token ids, exactly as the bundle's tokenizer.json says, a word looked up instead of computed.

A BERT tokenizer parts a text at white space and punctuation before anything else looks at it, so a word's
ids never depend on its neighbours: each is asked of the tokenizer once and remembered. A tokenizer of any
other kind gets whole texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from export.bundle.manifest import BundleError

_REMEMBERED = 32_768  # words; about 8 MB
_LONGEST = 40  # characters of a word that is worth it
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # dropped, so the letters around them join
_CHUNKS = re.compile(r"[^ \t\n\r]+")


class TokenIds:
    """The token ids of texts, special tokens included, at most `max_length` of them a text.

    Attributes:
        last: the largest token id.
    """

    def __init__(self, path: Path, max_length: int) -> None:
        """Read tokenizer.json. Raises: BundleError, which names the file."""
        self._tokenizer = open_tokenizer(path, max_length)
        self.last = int(self._tokenizer.get_vocab_size()) - 1
        self._words: dict[str, list[int]] | None = None
        self._process = os.getpid()
        if not _parts_at_words(self._tokenizer):
            return
        probe = self._tokenizer.encode("a")
        where = [*probe.special_tokens_mask].index(0)
        self._before, self._after = probe.ids[:where], probe.ids[where + 1 :]
        self._end = max_length - len(self._after)
        self._lower = bool(self._tokenizer.normalizer.lowercase)
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        # what is lowered before it is asked must not become one of them
        ignore = re.IGNORECASE if self._lower else 0
        self._added = re.compile("|".join(map(re.escape, added)) or r"(?!)", ignore)
        self._words = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        if self._words is not None:
            return [self._of(text) for text in texts]
        if self._process == os.getpid():
            return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts))]
        # a fork has none of the tokenizer's threads, and a batch would wait for them for ever
        return [self._tokenizer.encode(text).ids for text in texts]

    def _of(self, text: str) -> list[int]:
        if self._added.search(text):  # words that are found before the text is parted
            return list(self._tokenizer.encode(text).ids)
        words, end = self._words, self._end
        assert words is not None
        ids = [*self._before]
        for word in self._parted(text):
            found = words.get(word)
            ids += self._asked(word, words) if found is None else found
            if len(ids) >= end:
                break
        return [*ids[:end], *self._after]

    def _parted(self, text: str) -> Iterable[str]:
        """What of the text can be read by itself: words, or all between two white spaces."""
        if text.isascii() and not _CONTROL.search(text):
            text = text.lower() if self._lower else text
            # the most of a text that is longer is cut off, so it is not parted all at once
            return _WORDS.findall(text) if len(text) < 4096 else map(_matched, _WORDS.finditer(text))
        return chain.from_iterable(
            _WORDS.findall(chunk.lower() if self._lower else chunk)
            if chunk.isascii() and not _CONTROL.search(chunk)
            else (chunk,)
            for chunk in map(_matched, _CHUNKS.finditer(text))
        )

    def _asked(self, word: str, words: dict[str, list[int]]) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(word) <= _LONGEST:
            if len(words) >= _REMEMBERED:
                words.clear()
            words[word] = ids
        return ids


def _matched(found: re.Match[str]) -> str:
    return found[0]


def open_tokenizer(path: Path, max_length: int) -> Tokenizer:
    """The tokenizer of tokenizer.json, set to truncate and not to pad. Raises: BundleError."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{path}: not a tokenizer: {error} (build the bundle again)") from error
    special = tokenizer.num_special_tokens_to_add(False)
    if max_length <= special:  # tokenizers would then not truncate at all
        problem = f"adds {special} special tokens, so max_length {max_length} leaves no room"
        raise BundleError(f"{path}: {problem} (export with a larger export.max_length)")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _parts_at_words(tokenizer: Tokenizer) -> bool:
    """Whether it is of BERT's kind: each word by itself, and no added token looks past the raw text."""
    kinds = (
        (tokenizer.normalizer, BertNormalizer),
        (tokenizer.pre_tokenizer, BertPreTokenizer),
        (tokenizer.model, WordPiece),
    )
    added = tokenizer.get_added_tokens_decoder().values()
    if not all(isinstance(*pair) for pair in kinds) or any(token.normalized for token in added):
        return False
    one, two = (tokenizer.encode(text) for text in ("a", "a a"))
    # what a post-processor puts around the words, it puts around any number of them
    where = [*one.special_tokens_mask, 0].index(0)
    word = one.ids[where : where + 1]
    return bool(word) and two.ids == [*one.ids[:where], *word, *word, *one.ids[where + 1 :]]
