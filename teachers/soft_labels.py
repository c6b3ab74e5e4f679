"""Soft labels on disk: a teacher's logits of each head, float16, keyed by the digest of the text.

They lie in shards of a few thousand rows, each a safetensors file that appears complete or not at all, in one
folder a teacher. The name of a shard holds the digest of its content, by which a damaged one is left out. A
text is labelled once: the rows survive shuffling, more epochs, another student, another temperature, a crash.
Only the digests are held in memory. A head that the teacher does not know is absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

Array = NDArray[Any]
DIGEST = np.dtype("S16")  # 16 bytes of blake2b; trailing zero bytes compare as equal, which does no harm


class SoftLabelsError(Exception):
    """Texts that have no soft labels."""

    exit_code = 2


def text_digests(texts: Sequence[str]) -> Array:
    """The digest of each text, `[texts]` of 16 bytes."""
    digests = (hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts)
    return np.fromiter(digests, DIGEST, len(texts))


class SoftLabels:
    """The soft labels of one teacher in one folder; `add` writes what `logits` reads.

    Attributes:
        damaged: The shards whose content is not what was written, which are not read.
    """

    def __init__(self, folder: Path, heads: Mapping[str, int]) -> None:
        """Open a folder, or create it.

        Args:
            folder: Of this teacher alone.
            heads: The number of labels of each head that the teacher knows.
        """
        self.folder, self.heads = folder, dict(heads)
        folder.mkdir(parents=True, exist_ok=True)
        self.damaged: list[Path] = []
        self._shards: list[dict[str, Array]] = []
        self._names: set[str] = set()
        self._known, self._row = np.empty(0, DIGEST), np.empty(0, np.int64)
        self._starts = np.empty(0, np.int64)
        self.refresh()

    def refresh(self) -> None:
        """Open the shards that were written since, here or by another process."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name not in self._names:
                self._names.add(path.name)
                if path.stem.removeprefix("shard-") == _digest(path.read_bytes()):
                    self._open(path)
                else:
                    self.damaged.append(path)

    def __len__(self) -> int:
        return len(self._known)

    def missing(self, digests: Array) -> Array:
        """Which of the digests have no row yet, `[digests]` of bool."""
        where = np.searchsorted(self._known, digests)
        found = np.take(self._known, where, mode="clip") == digests if len(self) else np.zeros(1, bool)
        return np.asarray(~np.broadcast_to(found, digests.shape))

    def add(self, digests: Array, logits: Mapping[str, Array]) -> None:
        """Write rows as a new shard: digests `[texts]`, logits of each head `[texts, labels]`."""
        shapes = {head: part.shape for head, part in logits.items()}
        if shapes != (expected := {head: (len(digests), labels) for head, labels in self.heads.items()}):
            raise ValueError(f"{self.folder}: logits are {shapes}, expected {expected}")
        # contiguous, as safetensors writes memory as it lies, whatever the strides
        tensors: dict[str, Array] = {
            f"logits.{head}": np.ascontiguousarray(x, np.float16) for head, x in logits.items()
        }
        tensors["digests"] = np.frombuffer(digests.tobytes(), np.uint8).reshape(-1, DIGEST.itemsize)
        content = save(tensors)
        path = self.folder / f"shard-{_digest(content)}.safetensors"
        temporary = self.folder / f".shard.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._names.add(path.name)
        self._open(path)

    def rows(self, digests: Array) -> Array:
        """The row number of each digest, for `logits`.

        Raises:
            SoftLabelsError: A digest has no row.
        """
        if missing := int(self.missing(digests).sum()):
            raise SoftLabelsError(
                f"{self.folder}: {missing} texts have no soft labels (run the recipe again with --from label)"
            )
        return np.asarray(self._row[np.searchsorted(self._known, digests)])

    def logits(self, rows: Array) -> dict[str, Array]:
        """The logits of rows, `{head: float16 [rows, labels]}`, read from disk."""
        found = {head: np.empty((len(rows), labels), np.float16) for head, labels in self.heads.items()}
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard):
            here = shard == number
            for head, part in self._shards[number].items():
                found[head][here] = part[rows[here] - self._starts[number]]
        return found

    def to_disk(
        self, digests: Iterable[Array], folder: Path, masked: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """The logits of texts in order, `{head: float16 [texts, labels]}`, memory-mapped from a folder.

        A batch of rows is then one gather, whatever shards the rows are from.

        Args:
            digests: Of the texts, in chunks.
            folder: To write one file a head into.
            masked: The texts whose logits are to be NaN, `{head: [texts]}`.

        Raises:
            SoftLabelsError: A digest has no row.
        """
        paths = {head: folder / f"logits-{head}.bin" for head in self.heads}
        files = {head: path.open("wb") for head, path in paths.items()}
        try:
            start = 0
            for some in digests:
                for head, part in self.logits(self.rows(some)).items():
                    if masked is not None and head in masked:
                        part[masked[head][start : start + len(some)]] = np.nan
                    files[head].write(part.tobytes())
                start += len(some)
        finally:
            for file in files.values():
                file.close()
        return {
            head: np.asarray(np.memmap(path, np.float16, "r").reshape(-1, self.heads[head]))
            for head, path in paths.items()
        }

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            about = json.loads(file.read(size))
        begin = 8 + size
        arrays = {}
        types = {"digests": np.uint8} | {f"logits.{head}": np.float16 for head in self.heads}
        for name, dtype in types.items():
            offset, shape = begin + about[name]["data_offsets"][0], tuple(about[name]["shape"])
            arrays[name] = np.memmap(path, dtype, "r", offset, shape)
        self._shards.append({head: arrays[f"logits.{head}"] for head in self.heads})
        # merged into the sorted index, which costs one copy of it; sorting again costs minutes
        digests = np.frombuffer(arrays["digests"].tobytes(), DIGEST)
        order, start = np.argsort(digests, kind="stable"), len(self._known)
        where = np.searchsorted(self._known, digests[order], side="right")
        self._known = np.insert(self._known, where, digests[order])
        self._row = np.insert(self._row, where, order + start)
        self._starts = np.append(self._starts, start)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
