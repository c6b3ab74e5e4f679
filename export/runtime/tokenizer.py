"""Tokenises texts as the tokenizer.json of a bundle does, with a cache of words.

A BERT tokenizer first splits a text at white space and punctuation. Word ids do not depend on context, so
they are cached. Other tokenizers process whole texts.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from math import prod
from pathlib import Path
from reprlib import repr as short
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from export.bundle.manifest import MAX_TOKENS, BundleError
from export.text import strip_text

MAX_WORD = 1000  # characters of a word that WordPiece splits, in time that grows with their square
MAX_LABEL = 4000  # characters of a label with its description, or of a hypothesis
MAX_GROWTH = 1000  # characters that a normalizer may make of one
_PROBES = (
    "",
    "a",
    "where is my parcel? " * 200,
    "\u5305\u88f9 \U0001f600\u200d \u00fcnbekannt \ufb03 \x00",
    "x" * 5000,
)
_CACHE_SIZE = 32_768  # words; about 8 MB
_MAX_CACHED = 40  # characters of a cached word
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)  # the tokenizer removes these and joins their neighbours
_AGAIN = "(build the bundle again)"
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
        BundleError: See `open_tokenizer`.
    """

    def __init__(self, data: bytes, max_length: int, where: Path) -> None:
        self._where = where
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
        """The token ids of each text, stripped as the training texts are.

        Raises:
            BundleError: The tokenizer fails.
        """
        texts = [*map(strip_text, texts)]
        try:
            if self._words is not None:
                return [self._encode(text, self._words) for text in texts]
            if self._process == os.getpid():
                return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
            # a forked process has none of the tokenizer's threads, for which a batch would wait forever
            return [self._tokenizer.encode(text).ids for text in texts]
        except BaseException as error:
            raise _bundle_error(self._where, "cannot tokenise a text", error) from error

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


class LabelTokenizer:
    """The token ids of labels, each begun by [CLS], and of hypotheses; cached between calls.

    Args:
        data: The content of a tokenizer.json.
        max_length: Maximum number of tokens of a label or hypothesis.
        where: Path of the file, for messages.

    Raises:
        BundleError: See `open_tokenizer`.
    """

    def __init__(self, data: bytes, max_length: int, where: Path) -> None:
        self._where, self._max_length = where, max_length
        self._tokenizer = open_tokenizer(data, MAX_TOKENS, where)
        self._first = self._tokenizer.encode("").ids[:1]
        self._cache: dict[str, tuple[int, ...]] = {}

    def label(self, text: str) -> tuple[int, ...]:
        """The token ids of a label.

        Raises:
            ValueError: It has too many tokens or characters.
        """
        return self._limited("labels", text, (*self._first, *self._ids("labels", text)))

    def hypothesis(self, text: str) -> tuple[int, ...]:
        """The token ids of a hypothesis.

        Raises:
            ValueError: It has too many tokens or characters.
        """
        return self._limited("hypothesis", text, self._ids("hypothesis", text))

    def _ids(self, where: str, text: str) -> tuple[int, ...]:
        if len(text) > MAX_LABEL:
            size = f"has {len(text)} characters, expected at most {MAX_LABEL}"
            raise ValueError(f"{where}: {short(text)} {size} (shorten it)")
        if (ids := self._cache.get(text)) is None:
            try:
                ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
            except BaseException as error:
                raise _bundle_error(self._where, "cannot tokenise a label", error) from error
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[text] = ids
        return ids

    def _limited(self, where: str, text: str, ids: tuple[int, ...]) -> tuple[int, ...]:
        if len(ids) > self._max_length:
            size = f"has {len(ids)} tokens, expected at most {self._max_length}"
            raise ValueError(f"{where}: {short(text)} {size} (shorten it)")
        return ids


def open_tokenizer(data: bytes, max_length: int, where: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, which truncates to `max_length` tokens and does not pad.

    Args:
        data: The content of the file.
        max_length: Maximum number of tokens of a text.
        where: Path of the file, for messages.

    Raises:
        BundleError: The file is not a tokenizer, `max_length` leaves no room for words, the tokenizer fails
            on a few texts or gives them more tokens, or a short text may take gigabytes or hours.
    """
    with _native(where, "not a tokenizer"):
        tokenizer = Tokenizer.from_buffer(data)
        special = tokenizer.num_special_tokens_to_add(False)
        growth = _growth(_state(tokenizer.normalizer))
        repeats = _repeats(_state(tokenizer.post_processor))
        word = getattr(tokenizer.model, "max_input_chars_per_word", 0)
    if max_length <= special:  # tokenizers would then not truncate at all
        problem = f"adds {special} special tokens, so max_length {max_length} leaves no room"
        raise BundleError(f"{where}: {problem} (export with a larger export.max_length)")
    if growth > MAX_GROWTH or word > MAX_WORD or repeats > 1:
        problem = (
            f"makes {growth:g} characters of one, splits words of {word} and repeats a text {repeats} times"
        )
        raise BundleError(f"{where}: {problem}, expected at most {MAX_GROWTH}, {MAX_WORD} and 1 {_AGAIN}")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    with _native(where, "cannot tokenise a text"):
        longest = max(len(tokenizer.encode(text).ids) for text in _PROBES)
    if longest > max_length:
        raise BundleError(f"{where}: gives {longest} tokens, expected at most {max_length} {_AGAIN}")
    return tokenizer


@contextmanager
def _native(where: Path, problem: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        raise _bundle_error(where, problem, error) from error


def _bundle_error(where: Path, problem: str, error: BaseException) -> BundleError:
    """The error of tokenizers, a plain Exception or a panic, which is none, as BundleError; raises others."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
    return BundleError(f"{where}: {problem}: {' '.join(str(error).split())[:500]} {_AGAIN}")


def _state(part: Any) -> dict[str, Any]:
    """The JSON of a part of a tokenizer."""
    return dict(json.loads(part.__getstate__())) if part else {"type": None}


def _repeats(processor: dict[str, Any]) -> int:
    """How often a post-processor repeats a text. The overflow of truncation grows with this power."""
    if processor["type"] == "Sequence":
        return prod(map(_repeats, processor["processors"]))
    if processor["type"] == "TemplateProcessing":
        return sum("Sequence" in piece for piece in processor["single"])
    return 1


def _growth(normalizer: dict[str, Any]) -> float:
    """How many characters a normalizer, as JSON, makes of one at most; constant additions left out."""
    if normalizer["type"] == "Sequence":
        return prod(map(_growth, normalizer["normalizers"]))
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"]
        # a regular expression may match nothing, and then the content is added
        added = len(normalizer["content"]) / max(1, len(pattern["String"])) if "String" in pattern else None
        return max(1, added) if added is not None else 1 + len(normalizer["content"])
    if normalizer["type"] == "Precompiled":
        return max(map(len, b64decode(normalizer["precompiled_charsmap"]).split(b"\0")))
    return 1


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
