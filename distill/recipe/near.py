"""The nearest known word, for error messages."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

LONG = 200  # characters


def near(word: str, known: Any) -> str:
    """` (did you mean 'x'?)` for the nearest of the known words, or nothing, as for a very long word."""
    if len(word) > LONG:
        return ""
    match = get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
