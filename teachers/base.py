"""The protocol of a teacher: whatever can label a text.

A teacher knows some heads and gives their logits. It need not be a network. Two further roles belong to
encoders alone and are kept apart: initialising the student (`students`) and lending it a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray


class Teacher(Protocol):
    """Whatever can label a text."""

    @property
    def digest(self) -> str:
        """The identity of the teacher: two teachers that could answer differently have different digests."""

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """The labels of each head that the teacher knows, in the order of its logits."""

    def logits(self, texts: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """The logits of each head that the teacher knows, float32 `[texts, labels]`."""
