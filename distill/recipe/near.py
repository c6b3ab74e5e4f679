"""The nearest known word, for error messages."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any


def near(word: str, known: Any) -> str:
    """` (did you mean 'x'?)` for the nearest of the known words, or nothing."""
    match = get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
