"""Names, labels and other text of a run, as plain text in HTML, in Markdown and on a terminal."""

from __future__ import annotations

import re
from html import escape
from typing import Any

JOINERS = "\u200c\u200d"  # of letters and emoji; they steer nothing

_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)")


def one_line(text: object) -> str:
    """The text in one line, with U+FFFD for characters that steer a terminal."""
    line = " ".join(str(text).split())
    return "".join(letter if letter.isprintable() or letter in JOINERS else "\ufffd" for letter in line)


def markdown(text: object) -> str:
    """The text, of which Markdown renders every character as it is; also in a table."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def code(text: object) -> str:
    """The text as a code span; its fence is longer than any in the text."""
    line = one_line(text)
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def html(value: Any) -> Any:
    """A JSON value whose strings, keys included, are escaped and in one line."""
    if isinstance(value, dict):
        return {html(key): html(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [html(item) for item in value]
    return escape(one_line(value)) if isinstance(value, str) else value
