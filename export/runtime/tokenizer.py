"""Tokenises texts as the tokenizer.json of a bundle does, with a cache of words.

A BERT tokenizer first splits a text at white space and punctuation. Word ids do not depend on context, so
they are cached. Other tokenizers process whole texts.
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
from export.text import strip_text

_CACHE_SIZE = 32_768  # words; about 8 MB
_MAX_CACHED = 40  # characters of a cached word
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)  # the tokenizer removes these and joins their neighbours
_CHUNKS = re.compile(r"[^ \t\n\r]+")


class CachedTokenizer:
    """The token ids of texts, special tokens included, truncated to `max_length` tokens.

    Args:
        data: The content of a tokenizer.json.
        max_length: Maximum number of tokens of a text.
        where: Path of the file, for messages.

    Attributes:
        max_id: Largest token id.

    Raises:
        BundleError: The file is not a tokenizer, or `max_length` leaves no room for words.
    """

    def __init__(self, data: bytes, max_length: int, where: Path) -> None:
        self._tokenizer = open_tokenizer(data, max_length, where)
        self.max_id = int(self._tokenizer.get_vocab_size()) - 1
        self._words: dict[str, list[int]] | None = None
        self._process = os.getpid()
        if not _splits_into_words(self._tokenizer):
            return
        probe = self._tokenizer.encode("a")
        word = [*probe.special_tokens_mask].index(0)
        self._before, self._after = probe.ids[:word], probe.ids[word + 1 :]
        self._end = max_length - len(self._after)
        self._lowercase = bool(self._tokenizer.normalizer.lowercase)
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        # ignore case where lowercasing could turn a word into an added token
        flags = re.IGNORECASE if self._lowercase else 0
        self._added = re.compile("|".join(map(re.escape, added)) or r"(?!)", flags)
        self._words = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, stripped as the training texts are."""
        texts = [*map(strip_text, texts)]
        if self._words is not None:
            return [self._encode(text, self._words) for text in texts]
        if self._process == os.getpid():
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        # a forked process has none of the tokenizer's threads, for which a batch would wait forever
        return [self._tokenizer.encode(text).ids for text in texts]

    def _encode(self, text: str, cache: dict[str, list[int]]) -> list[int]:
        if self._added.search(text):  # the tokenizer finds added tokens before it splits the text
            return list(self._tokenizer.encode(text).ids)
        ids = [*self._before]
        for word in self._split(text):
            cached = cache.get(word)
            ids += self._encode_word(word, cache) if cached is None else cached
            if len(ids) >= self._end:
                break
        return [*ids[: self._end], *self._after]

    def _split(self, text: str) -> Iterable[str]:
        """The parts of a text that can be tokenised separately: words, or chunks between white space."""
        if text.isascii() and not _CONTROL.search(text):
            text = text.lower() if self._lowercase else text
            # most of a long text is truncated, so it is split lazily
            return _WORDS.findall(text) if len(text) < 4096 else map(re.Match.group, _WORDS.finditer(text))
        return chain.from_iterable(
            _WORDS.findall(chunk.lower() if self._lowercase else chunk)
            if chunk.isascii() and not _CONTROL.search(chunk)
            else (chunk,)
            for chunk in map(re.Match.group, _CHUNKS.finditer(text))
        )

    def _encode_word(self, word: str, cache: dict[str, list[int]]) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(word) <= _MAX_CACHED:
            if len(cache) >= _CACHE_SIZE:
                cache.clear()
            cache[word] = ids
        return ids


def open_tokenizer(data: bytes, max_length: int, where: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, which truncates to `max_length` tokens and does not pad.

    Args:
        data: The content of the file.
        max_length: Maximum number of tokens of a text.
        where: Path of the file, for messages.

    Raises:
        BundleError: The file is not a tokenizer, or `max_length` leaves no room for words.
    """
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, or a panic, which is none
        raise BundleError(f"{where}: not a tokenizer: {error} (build the bundle again)") from error
    special = tokenizer.num_special_tokens_to_add(False)
    if max_length <= special:  # tokenizers would then not truncate at all
        problem = f"adds {special} special tokens, so max_length {max_length} leaves no room"
        raise BundleError(f"{where}: {problem} (export with a larger export.max_length)")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _splits_into_words(tokenizer: Tokenizer) -> bool:
    """Whether words are tokenised independently and added tokens are matched verbatim, as by BERT."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
    kinds = (BertNormalizer, BertPreTokenizer, WordPiece)
    added = tokenizer.get_added_tokens_decoder().values()
    if not all(map(isinstance, parts, kinds)) or any(token.normalized for token in added):
        return False
    one, two = (tokenizer.encode(text) for text in ("a", "a a"))
    # the post-processor must add the same tokens around any number of words
    start = [*one.special_tokens_mask, 0].index(0)
    word = one.ids[start : start + 1]
    return bool(word) and two.ids == [*one.ids[:start], *word, *word, *one.ids[start + 1 :]]
