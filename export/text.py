"""What a text and a label are: training and serving tokenise the same characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from reprlib import repr as short

# what str.strip removes, then marks of no width and the byte order mark
_ENDS = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
)


def strip_text(text: str) -> str:
    """The text as it is tokenised: without white space and characters of no width at both ends."""
    return text.strip(_ENDS)


def label_text(label: str, description: str | None = None) -> str:
    """A label as a packed network reads it: underscores are spaces, a description follows after a colon."""
    name = " ".join(label.replace("_", " ").split()) or label
    meaning = " ".join((description or "").split())
    return f"{name}: {meaning}" if meaning else name


def check_texts(texts: object) -> list[str]:
    """The texts as a list. Raises ValueError unless all are str that UTF-8 can encode."""
    if isinstance(texts, str):
        listed = [texts]
    elif isinstance(texts, (bytes, bytearray, Mapping, Set)) or not isinstance(texts, Iterable):
        raise ValueError(f"texts: must be str or a list of str, got {type(texts).__name__}")
    elif getattr(texts, "ndim", 1) != 1:  # a data frame would give the names of its columns
        kind = f"{type(texts).__name__} of shape {texts.shape}"  # type: ignore[attr-defined]
        raise ValueError(f"texts: must be str or a list of str, got {kind} (choose one column)")
    else:
        listed = list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            problem = f"must be str, got {type(text).__name__} {short(text)}"
            if str(text) in ("None", "nan", "<NA>", "NaT"):
                problem += " (drop missing texts, or replace them with '')"
            raise ValueError(f"texts: position {position}: {problem}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"character {error.start} is half a surrogate pair (decode with errors='replace')"
            raise ValueError(f"texts: position {position}: {half}") from error
    return listed
