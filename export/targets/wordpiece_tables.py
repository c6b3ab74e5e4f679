"""Describes a WordPiece tokenizer as tables: replaced characters, the vocabulary, special tokens.

The tables are built by running the tokenizer on every character. This is exact for BERT's normalizer and
pre-tokenizer, which process each character independently of its neighbours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from export.targets.writer import TargetError

CHUNK = 4096
PLANES, PLANE_SIZE = 17, 0x10000
SURROGATES = range(0xD800, 0xE000)
# unassigned or private planes: except for the last two, their characters are normalised alike
UNIFORM = (*range(4, 14), 15, 16)


@dataclass(frozen=True)
class WordPieceTables:
    """A WordPiece tokenizer as data.

    Attributes:
        characters: Replacement of each character that normalisation changes: words are separated by spaces,
            removed characters have an empty replacement.
        removed: Ranges (first, last) of further code points that are removed.
        vocabulary: Id of each piece.
        special: Tokens that are matched in the raw text.
        unknown: Token of a word that the vocabulary does not cover.
        prefix: Prefix of pieces inside a word.
        max_word: Maximum number of characters of a word; longer words are unknown.
        before: Ids at the start of every text.
        after: Ids at the end of every text.
    """

    characters: dict[str, str]
    removed: tuple[tuple[int, int], ...]
    vocabulary: dict[str, int]
    special: tuple[str, ...]
    unknown: str
    prefix: str
    max_word: int
    before: tuple[int, ...]
    after: tuple[int, ...]


def wordpiece_tables(tokenizer: Tokenizer, where: str) -> WordPieceTables:
    """The tables of a tokenizer.

    Raises:
        TargetError: The tokenizer is not WordPiece with BERT's normalizer and pre-tokenizer; the message
            begins with `where`.
    """
    document = json.loads(tokenizer.to_str())
    kinds = tuple((document[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model"))
    if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece"):
        got = ", ".join(map(str, kinds))
        raise TargetError(
            f"{where}: text-in-graph supports only BERT's WordPiece, got {got} (choose another target)"
        )
    added: list[dict[str, Any]] = document["added_tokens"]
    options = ("normalized", "lstrip", "rstrip", "single_word")
    if unsupported := [token["content"] for token in added if any(token[option] for option in options)]:
        raise TargetError(
            f"{where}: added tokens {unsupported} are not matched verbatim (choose another target)"
        )
    model = document["model"]
    characters, removed = _characters(tokenizer)
    before, after = _special_ids(tokenizer, model["vocab"])
    return WordPieceTables(
        characters=characters,
        removed=removed,
        vocabulary={**model["vocab"], **{token["content"]: token["id"] for token in added}},
        special=tuple(token["content"] for token in added),
        unknown=model["unk_token"],
        prefix=model["continuing_subword_prefix"],
        max_word=model["max_input_chars_per_word"],
        before=before,
        after=after,
    )


def _characters(tokenizer: Tokenizer) -> tuple[dict[str, str], tuple[tuple[int, int], ...]]:
    """The replacements of characters, and the uniform planes that are removed."""
    table: dict[str, str] = {}
    removed: list[tuple[int, int]] = []
    for first in range(0, PLANES * PLANE_SIZE, PLANE_SIZE):
        if first // PLANE_SIZE in UNIFORM:
            if _normalise(tokenizer, [chr(first)]) == [""]:
                removed.append((first, first + 0xFFFD))
            continue
        for start in range(first, first + PLANE_SIZE, CHUNK):
            chunk = [chr(code) for code in range(start, start + CHUNK) if code not in SURROGATES]
            pairs = zip(chunk, _normalise(tokenizer, chunk), strict=True)
            table.update((old, new) for old, new in pairs if old != new)
    return table, tuple(removed)


def _normalise(tokenizer: Tokenizer, characters: list[str]) -> list[str]:
    """The replacement of each character between two letters, with words separated by single spaces."""
    if not characters:
        return []
    text = tokenizer.normalizer.normalize_str("\n".join(f"q{character}z" for character in characters))
    words = " ".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return words[1:-1].split("z q")


def _special_ids(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer adds before and after every text."""
    word = next(piece for piece in vocabulary if piece.isalpha() and piece.islower() and piece.isascii())
    whole, inner = (tokenizer.encode(word, add_special_tokens=special).ids for special in (True, False))
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return tuple(whole[:start]), tuple(whole[start + len(inner) :])
    return tuple(whole), ()
