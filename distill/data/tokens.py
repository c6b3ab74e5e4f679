"""Texts as token ids, and the batches they are read in.

All ids lie in one flat memory-mapped column, so that a batch is one gather, without Python a row, and
a transfer set of millions of texts costs no memory. Batches hold texts of like length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Array = NDArray[Any]
CHUNK = 8192  # texts in memory at once, of those on disk
SLICE = 2_000_000  # characters that the tokeniser works on at once


class Tokens:
    """Token ids of many texts: `ids` flat, text i at `ids[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, ids: Array, offsets: Array, pad: int) -> None:
        self.ids, self.offsets, self.pad = ids, offsets, pad
        self.lengths = np.diff(offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Array) -> dict[str, Array]:
        """The `input_ids` and `attention_mask` of rows, int64 `[rows, longest]`, padded on the right."""
        reach = np.arange(int(self.lengths[rows].max()))
        inside = reach < self.lengths[rows][:, None]
        where = self.offsets[rows][:, None] + reach
        ids = np.where(inside, self.ids[np.minimum(where, len(self.ids) - 1)], self.pad)
        return {"input_ids": ids.astype(np.int64), "attention_mask": inside.astype(np.int64)}


class TextTokenizer:
    """The fast tokeniser of a Hugging Face tokenizer, cutting texts at `max_length` tokens."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.enable_truncation(max_length)
        self.backend.no_padding()
        self.max_length = max_length
        self.pad = int(tokenizer.pad_token_id or 0)
        self.unknown: int | None = tokenizer.unk_token_id

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The tokens of texts, in memory."""
        # the tokeniser holds all of a batch's texts in full, also what is cut off
        rows = [encoding.ids for some in _slices(texts) for encoding in self.backend.encode_batch_fast(some)]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        ids = np.fromiter((i for row in rows for i in row), np.int32, int(offsets[-1]))
        return Tokens(ids, offsets, self.pad)

    def unknown_share(self, tokens: Tokens) -> float:
        """The share of tokens, special ones aside, that stand for what the vocabulary cannot spell."""
        special = self.backend.num_special_tokens_to_add(is_pair=False) * len(tokens)
        return float((tokens.ids == self.unknown).sum() / max(1, len(tokens.ids) - special))

    def to_disk(self, chunks: Iterable[Sequence[str]], path: Path) -> Tokens:
        """The tokens of texts given in chunks, their ids memory-mapped from `path`."""
        lengths = []
        with path.open("wb") as file:
            for texts in chunks:
                tokens = self(texts)
                file.write(tokens.ids.tobytes())
                lengths.append(tokens.lengths)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return Tokens(np.memmap(path, np.int32, mode="r"), offsets, self.pad)


def chunks(texts: Sequence[str] | Any, size: int = CHUNK) -> Iterable[Sequence[str]]:
    """A sequence of texts (or a column of a data set on disk) in slices of `size`."""
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _slices(texts: Iterable[str]) -> Iterable[list[str]]:
    """Texts in lists of at most SLICE characters, or one text."""
    some: list[str] = []
    size = 0
    for text in texts:
        if some and size + len(text) > SLICE:
            yield some
            some, size = [], 0
        some.append(text)
        size += len(text)
    if some:
        yield some


def shuffled_batches(lengths: Array, size: int, seed: int, epoch: int) -> list[Array]:
    """An epoch's batches of row numbers, each of like lengths, in an order that (seed, epoch) fixes.

    Rows are shuffled, sorted by length within pools of 50 batches, and the batches shuffled: padding
    stays low and every epoch mixes anew.

    Args:
        lengths: Of every row.
        size: Rows a batch.
        seed: Of the order.
        epoch: Likewise.
    """
    random = np.random.default_rng([seed, epoch])
    rows = random.permutation(len(lengths))
    batches = []
    for start in range(0, len(rows), 50 * size):
        pool = rows[start : start + 50 * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def length_sorted_batches(lengths: Array, tokens: int) -> list[Array]:
    """Batches of row numbers for inference, longest first, each of at most `tokens` padded tokens."""
    rows = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(rows):
        size = max(1, tokens // max(1, int(lengths[rows[start]])))
        batches.append(rows[start : start + size])
        start += size
    return batches
