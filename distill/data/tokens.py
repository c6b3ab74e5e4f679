"""Token ids of texts, and batches of them.

The ids of all texts are one flat array, which may be memory-mapped: a batch is one gather, and a transfer
set of millions of texts needs little memory. Batches group texts of similar length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Array = NDArray[Any]
CHUNK = 8192  # texts in memory while reading from disk
SLICE = 2_000_000  # characters that are tokenised at once


class Tokens:
    """Token ids of many texts.

    Attributes:
        ids: The ids of all texts, int32 `[tokens]`.
        offsets: int64 `[texts + 1]`. Text i is `ids[offsets[i]:offsets[i + 1]]`.
        lengths: Number of tokens of each text, int64 `[texts]`.
        pad: The id that fills a batch up.
    """

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
    """The fast backend of a Hugging Face tokenizer. Texts are truncated to `max_length` tokens."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.enable_truncation(max_length)
        self.backend.no_padding()
        self.max_length = max_length
        self.pad = int(tokenizer.pad_token_id or 0)
        self.unknown: int | None = tokenizer.unk_token_id

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The tokens of texts, in memory."""
        # in slices, because the backend keeps whole texts in memory, including what it truncates
        rows = [encoding.ids for some in _slices(texts) for encoding in self.backend.encode_batch_fast(some)]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        ids = np.fromiter((i for row in rows for i in row), np.int32, int(offsets[-1]))
        return Tokens(ids, offsets, self.pad)

    def unknown_share(self, tokens: Tokens) -> float:
        """The share of unknown tokens among all but the special tokens."""
        special = self.backend.num_special_tokens_to_add(is_pair=False) * len(tokens)
        return float((tokens.ids == self.unknown).sum() / max(1, len(tokens.ids) - special))

    def to_disk(self, chunks: Iterable[Sequence[str]], path: Path) -> Tokens:
        """The tokens of texts that come in chunks. The ids are written to `path` and memory-mapped."""
        lengths = []
        with path.open("wb") as file:
            for texts in chunks:
                tokens = self(texts)
                file.write(tokens.ids.tobytes())
                lengths.append(tokens.lengths)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return Tokens(np.memmap(path, np.int32, mode="r"), offsets, self.pad)


def chunks(texts: Sequence[str] | Any, size: int = CHUNK) -> Iterable[Sequence[str]]:
    """Slices of `size` texts of a sequence, or of a column of a data set on disk."""
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _slices(texts: Iterable[str]) -> Iterable[list[str]]:
    """Lists of texts of at most SLICE characters together, or of one longer text."""
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


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources, and the share of each source in an epoch.

    Attributes:
        sources: The number of the source of each row, `[rows]`.
        shares: The share of each source, `[sources]`; those of sources without rows go to the others.
    """

    sources: Array
    shares: Array

    def rows(self, seed: int, epoch: int) -> Array:
        """The rows of an epoch, as many as there are rows in all, source by source.

        The epochs read a source in one permutation after another, so no row is read a second time before
        every other row of its source. They depend on seed and epoch alone.
        """
        sizes = np.bincount(self.sources, minlength=len(self.shares))
        shares = np.where(sizes > 0, self.shares, 0.0)
        # rounded so that the epochs have the same sum
        ends = np.rint(np.cumsum(shares) / shares.sum() * len(self.sources)).astype(np.int64)
        parts = []
        for source, count in enumerate(np.diff(ends, prepend=0).tolist()):
            own, first, last = np.flatnonzero(self.sources == source), epoch * count, (epoch + 1) * count
            for turn in range(first // len(own), -(-last // len(own))) if count else ():
                order = own[np.random.default_rng([seed, source, turn]).permutation(len(own))]
                start = turn * len(own)
                parts.append(order[max(0, first - start) : last - start])
        return np.concatenate(parts)

    def of(self, rows: Array) -> Mixture:
        """The mixture of some of the rows."""
        return Mixture(self.sources[rows], self.shares)


def shuffled_batches(
    lengths: Array, size: int, seed: int, epoch: int, mixture: Mixture | None = None
) -> list[Array]:
    """The batches of an epoch, each an array of row numbers, in an order that depends on seed and epoch.

    Rows are shuffled, sorted by length within pools of 50 batches, and the batches are shuffled. Padding
    stays low, and every epoch has other batches.

    Args:
        lengths: Number of tokens of each row.
        size: Number of rows in a batch.
        seed: Seed of the order.
        epoch: Number of the epoch.
        mixture: The rows of each epoch; by default every row once.
    """
    random = np.random.default_rng([seed, epoch])
    rows = random.permutation(len(lengths))
    if mixture is not None:
        rows = mixture.rows(seed, epoch)[rows]
    batches = []
    for start in range(0, len(rows), 50 * size):
        pool = rows[start : start + 50 * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def length_sorted_batches(lengths: Array, tokens: int) -> list[Array]:
    """Batches for inference, each an array of row numbers.

    Args:
        lengths: Number of tokens of each row.
        tokens: The most tokens in a batch, with padding. A longer row is a batch by itself.

    Returns:
        The batches, longest rows first.
    """
    rows = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(rows):
        size = max(1, tokens // max(1, int(lengths[rows[start]])))
        batches.append(rows[start : start + size])
        start += size
    return batches
