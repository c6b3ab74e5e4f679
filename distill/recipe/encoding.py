"""Names of encodings. Needs no extra."""

from __future__ import annotations

import contextlib


def is_encoding(name: object) -> bool:
    """Whether Python can read text in an encoding of this name."""
    with contextlib.suppress(LookupError, UnicodeError, ValueError):
        # those of host names, idna and punycode, cannot mark what is invalid
        return isinstance(name, str) and "text".encode(name).decode(name, "backslashreplace") == "text"
    return False
