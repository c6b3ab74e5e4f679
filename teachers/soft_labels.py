"""Soft labels on disk: a teacher's logits, one float16 row a text, keyed by the digest of the text.

They lie in shards of a few thousand rows, each one safetensors file that appears whole or not at all,
in a folder of one teacher. A text is labelled once: the rows survive shuffling, more epochs, another
student, another temperature, a crash. Only the digests are held in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[Any]
DIGEST = np.dtype("S16")  # 16 bytes of blake2b; trailing zero bytes compare as equal, harmlessly


def text_digests(texts: Sequence[str]) -> Array:
    """The digest of each text, `[texts]` of 16 bytes."""
    digests = (hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts)
    return np.fromiter(digests, DIGEST, len(texts))


class SoftLabels:
    """The soft labels of one teacher in one folder; what `add` writes, `logits` reads."""

    def __init__(self, folder: Path, width: int) -> None:
        """Open a folder, or begin one; `width` is the number of logits a text."""
        self.folder, self.width = folder, width
        folder.mkdir(parents=True, exist_ok=True)
        self._shards: list[Array] = []
        self._names: set[str] = set()
        self._next = 0  # number of the next shard; not their count, one may have been removed
        self._known, self._row = np.empty(0, DIGEST), np.empty(0, np.int64)
        self._starts = np.empty(0, np.int64)
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that were written since, here or by another process."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name not in self._names:
                self._open(path)

    def __len__(self) -> int:
        return len(self._known)

    def missing(self, digests: Array) -> Array:
        """Which of the digests have no row yet, `[digests]` of bool."""
        where = np.searchsorted(self._known, digests)
        found = np.take(self._known, where, mode="clip") == digests if len(self) else np.zeros(1, bool)
        return np.asarray(~np.broadcast_to(found, digests.shape))

    def add(self, digests: Array, logits: Array) -> None:
        """Write rows as a new shard: digests `[texts]`, logits `[texts, width]`."""
        if logits.shape != (expected := (len(digests), self.width)):
            raise ValueError(f"{self.folder}: logits are {logits.shape}, expected {expected}")
        path = self.folder / f"shard-{self._next:05d}.safetensors"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            raw = np.frombuffer(digests.tobytes(), np.uint8).reshape(-1, DIGEST.itemsize)
            # save_file writes memory as it lies, whatever the strides
            rows = np.ascontiguousarray(logits, np.float16)
            save_file({"digests": raw, "logits": rows}, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._open(path)

    def rows(self, digests: Array) -> Array:
        """The row number of each digest, to be given to `logits`.

        Raises:
            KeyError: A digest has no row.
        """
        if self.missing(digests).any():
            raise KeyError(f"{self.folder}: {int(self.missing(digests).sum())} texts have no soft label")
        return np.asarray(self._row[np.searchsorted(self._known, digests)])

    def logits(self, rows: Array) -> Array:
        """The logits of rows, float16 `[rows, width]`, read from disk."""
        found = np.empty((len(rows), self.width), np.float16)
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard):
            here = shard == number
            found[here] = self._shards[number][rows[here] - self._starts[number]]
        return found

    def to_disk(self, digests: Iterable[Array], path: Path) -> Array:
        """The logits of texts in their order, float16 `[texts, width]`, memory-mapped from `path`.

        Args:
            digests: Of the texts, in chunks.
            path: To write; a batch of rows then is one gather, whatever shards they came of.

        Raises:
            KeyError: A digest has no row.
        """
        with path.open("wb") as file:
            for some in digests:
                file.write(self.logits(self.rows(some)).tobytes())
        return np.asarray(np.memmap(path, np.float16, "r").reshape(-1, self.width))

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            about = json.loads(file.read(size))
        begin = 8 + size
        arrays = {}
        for name, dtype in (("digests", np.uint8), ("logits", np.float16)):
            offset, shape = begin + about[name]["data_offsets"][0], tuple(about[name]["shape"])
            arrays[name] = np.memmap(path, dtype, "r", offset, shape)
        self._next = int(path.stem.removeprefix("shard-")) + 1
        self._shards.append(arrays["logits"])
        self._names.add(path.name)
        # merged into the sorted index, which costs a copy of it where sorting anew costs minutes
        digests = np.frombuffer(arrays["digests"].tobytes(), DIGEST)
        order, start = np.argsort(digests, kind="stable"), len(self._known)
        where = np.searchsorted(self._known, digests[order], side="right")
        self._known = np.insert(self._known, where, digests[order])
        self._row = np.insert(self._row, where, order + start)
        self._starts = np.append(self._starts, start)
