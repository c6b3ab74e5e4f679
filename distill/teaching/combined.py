"""Several teachers as one, and soft labels that are kept as a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from distill.models.base import Array
from teachers.base import Teacher
from teachers.soft_labels import SoftLabels, text_digests


class CombinedTeacher:
    """Several teachers as one (`teachers.base.Teacher`).

    Each text is labelled for each head by the first teacher that knows both. A teacher that knows a head but
    not a text gives it a row of NaN.

    Attributes:
        digest: Of the digests of the teachers, in order.
        labels: The labels of each head that any of them knows.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        """Combine teachers, the preferred first.

        Raises:
            ValueError: Two teachers know a head with other labels, or in another order.
        """
        self.teachers = teachers
        self.digest = combined_digest([one.digest for one in teachers])
        self.labels: dict[str, tuple[str, ...]] = {}
        for teacher in teachers:
            for head, labels in teacher.labels.items():
                if self.labels.setdefault(head, labels) != labels:
                    raise ValueError(f"head {head!r}: two teachers know it with other labels")

    def logits(self, texts: Sequence[str]) -> Mapping[str, Array]:
        """The logits of each head, float32 `[texts, labels]`; rows of NaN for texts that no teacher knows."""
        found = {
            head: np.full((len(texts), len(labels)), np.nan, np.float32)
            for head, labels in self.labels.items()
        }
        for teacher in self.teachers:
            own = [head for head in teacher.labels if unknown(found[head]).any()]
            rows = np.flatnonzero(np.any([unknown(found[head]) for head in own], 0)).tolist() if own else []
            if not rows:
                continue
            answers = teacher.logits([texts[row] for row in rows])
            for head in own:
                lacking = unknown(found[head][rows])
                found[head][np.array(rows)[lacking]] = answers[head][lacking]
        return found


def combined_digest(digests: Sequence[str]) -> str:
    """The digest of a `CombinedTeacher` of teachers with these digests, in order."""
    return hashlib.sha256("/".join(digests).encode()).hexdigest()


class KeptLabels:
    """Soft labels on disk as a teacher: it knows the texts that are there, and gives NaN for others."""

    def __init__(self, soft: SoftLabels, labels: Mapping[str, tuple[str, ...]]) -> None:
        """Open soft labels as a teacher.

        Args:
            soft: The soft labels.
            labels: The labels of its heads, in the order of the logits.
        """
        self.soft, self.labels = soft, labels
        names = sorted(path.name for path in soft.folder.glob("shard-*.safetensors"))
        self.digest = hashlib.sha256("/".join(names).encode()).hexdigest()

    def logits(self, texts: Sequence[str]) -> Mapping[str, Array]:
        """The kept logits of each head, float32 `[texts, labels]`."""
        digests = text_digests(texts)
        known = ~self.soft.missing(digests)
        found = {}
        for head, kept in self.soft.logits(self.soft.rows(digests[known])).items():
            found[head] = np.full((len(texts), kept.shape[1]), np.nan, np.float32)
            found[head][known] = kept
        return found


def unknown(logits: Array) -> Array:
    """The texts that a teacher does not know: a mask `[texts]` of the rows of NaN in logits."""
    return np.asarray(np.isnan(logits).any(-1))
