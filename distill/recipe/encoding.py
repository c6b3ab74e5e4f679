"""Names of encodings. Needs no extra."""

from __future__ import annotations

import contextlib


def is_encoding(name: object) -> bool:
    """Whether Python can read text in an encoding of this name."""
    with contextlib.suppress(LookupError, UnicodeError, ValueError):
        return isinstance(name, str) and bool("text".encode(name))
    return False
