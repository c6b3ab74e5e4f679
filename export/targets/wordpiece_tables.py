"""A WordPiece tokenizer as tables: what becomes of every character, every word's pieces, the frame.

The tables are asked of the tokenizer itself, one character at a time. That is the whole truth for BERT's
own normalizer and word splitter, which look at no neighbours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tokenizers import Tokenizer

from export.targets.writer import TargetError

CHUNK = 4096
LAST = 0x110000
SURROGATES = range(0xD800, 0xE000)
# Planes of one kind but for the last two, unassigned or of private use: the first character speaks for all.
UNIFORM = (*range(4, 14), 15, 16)


@dataclass(frozen=True)
class Spelling:
    """What a tokenizer does, as data.

    Attributes:
        characters: What stands for each character that does not stand for itself: words part at spaces.
            Empty where the character is dropped.
        dropped: Ranges (first, last) of code points that are dropped, beside those of `characters`.
        vocabulary: The id of each piece.
        special: Tokens that are found in the raw text and kept whole.
        unknown: The piece of a word that has no pieces.
        prefix: What marks a piece inside a word.
        longest: Letters of a word; a longer one is unknown.
        before: Ids that open every text.
        after: Ids that close it.
    """

    characters: dict[str, str]
    dropped: tuple[tuple[int, int], ...]
    vocabulary: dict[str, int]
    special: tuple[str, ...]
    unknown: str
    prefix: str
    longest: int
    before: tuple[int, ...]
    after: tuple[int, ...]


def spelling_of(tokenizer: Tokenizer, where: str) -> Spelling:
    """The tables of a tokenizer.

    Raises:
        TargetError: It is not of WordPiece with BERT's normalizer and word splitter; beginning with `where`.
    """
    document = json.loads(tokenizer.to_str())
    kinds = tuple((document[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model"))
    if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece"):
        found = ", ".join(map(str, kinds))
        raise TargetError(
            f"{where}: text-in-graph reads BERT's WordPiece alone, got {found} (take another target)"
        )
    odd = [t["content"] for t in document["added_tokens"] if t["normalized"] or not _plain(t)]
    if odd:
        raise TargetError(f"{where}: added tokens {odd} are not found as they stand (take another target)")
    model = document["model"]
    characters, dropped = _characters(tokenizer)
    before, after = _frame(tokenizer, model["vocab"])
    return Spelling(
        characters=characters,
        dropped=dropped,
        vocabulary={**model["vocab"], **{t["content"]: t["id"] for t in document["added_tokens"]}},
        special=tuple(t["content"] for t in document["added_tokens"]),
        unknown=model["unk_token"],
        prefix=model["continuing_subword_prefix"],
        longest=model["max_input_chars_per_word"],
        before=before,
        after=after,
    )


def _plain(token: dict[str, object]) -> bool:
    return not (token["lstrip"] or token["rstrip"] or token["single_word"])


def _characters(tokenizer: Tokenizer) -> tuple[dict[str, str], tuple[tuple[int, int], ...]]:
    """What stands for each character, and the uniform planes that are dropped."""
    table: dict[str, str] = {}
    dropped: list[tuple[int, int]] = []
    for plane in range(LAST >> 16):
        first = plane << 16
        if plane in UNIFORM:
            if _spelt(tokenizer, [chr(first)]) == [""]:
                dropped.append((first, first + 0xFFFD))
            continue
        for start in range(first, first + 0x10000, CHUNK):
            chunk = [chr(code) for code in range(start, start + CHUNK) if code not in SURROGATES]
            spelt = zip(chunk, _spelt(tokenizer, chunk), strict=True)
            table.update((character, found) for character, found in spelt if character != found)
    return table, tuple(dropped)


def _spelt(tokenizer: Tokenizer, characters: list[str]) -> list[str]:
    """What stands for each character between two letters, words parted by single spaces."""
    if not characters:
        return []
    text = tokenizer.normalizer.normalize_str("\n".join(f"q{character}z" for character in characters))
    words = " ".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return words[1:-1].split("z q")


def _frame(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and behind every text."""
    word = next(piece for piece in vocabulary if piece.isalpha() and piece.islower() and piece.isascii())
    whole, inner = (tokenizer.encode(word, add_special_tokens=special).ids for special in (True, False))
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return tuple(whole[:start]), tuple(whole[start + len(inner) :])
    return tuple(whole), ()
