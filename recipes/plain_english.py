"""Write unique plain English sentences, one per line, for `distill pretrain`.

    dpkg -L wordnet-base dict-gcide dict-foldoc dict-jargon anarchism debian-handbook > files.txt
    python recipes/plain_english.py < files.txt > plain.txt

The sources are Debian packages: the definitions and examples of WordNet, three dictionaries and two books.
They give about 640,000 sentences, shuffled with a fixed seed.
"""

from __future__ import annotations

import argparse
import gzip
import html
import random
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

FEWEST_WORDS, MOST_WORDS, MOST_CHARACTERS = 3, 45, 260
LETTERS = 0.8  # minimum share of letters and spaces

END = re.compile(r"(?<=[.!?;])[\"')\]]?\s+(?=[A-Za-z\"'(])")
PARAGRAPH = re.compile(r"\n\s*\n")
BLOCK = re.compile(r"</?(?:p|li|h\d|div|td|dd|dt|br)\b[^>]*>", re.IGNORECASE)
NO_PROSE = re.compile(r"<(script|style|pre)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
EXAMPLE = re.compile(r'"([^"]+)"')
DICTIONARY_MARKUP = (
    (re.compile(r"\[[^\]]*\]"), " "),  # etymology, author
    (re.compile(r"--[A-Z][\w. ]{1,20}(\s*\([^)]*\))?\.?\s*$"), ""),  # source of a quotation
    (re.compile(r"^\S+ \\[^\\]*\\[\s,;]*((&|[a-z]{1,4}\.)\s*)*"), ""),  # pronunciation and part of speech
    (re.compile(r"^(\d+\.|\([a-z]\))\s*"), ""),  # number of the sense
    (re.compile(r"^\([A-Z][\w.]*\)\s*"), ""),  # subject field
)


def wordnet(text: str) -> Iterator[str]:
    """The definition and the examples of each line, without the licence text."""
    for line in text.splitlines():
        _, bar, gloss = line.partition(" | ")
        if bar and not line.startswith("  "):
            yield re.sub(r"[;\s]*;[;\s]*", "; ", EXAMPLE.sub("", gloss)).strip("; ")
            yield from EXAMPLE.findall(gloss)


def dictionary(text: str) -> Iterator[str]:
    """The sentences of each paragraph, without dictionary markup."""
    for paragraph in PARAGRAPH.split(text):
        meaning = " ".join(paragraph.split())
        for pattern, replacement in DICTIONARY_MARKUP:
            meaning = pattern.sub(replacement, meaning.strip())
        yield from END.split(meaning)


def page(text: str) -> Iterator[str]:
    """The sentences of each HTML block."""
    for block in BLOCK.split(NO_PROSE.sub(" ", text)):
        yield from END.split(" ".join(html.unescape(re.sub(r"<[^>]+>", "", block)).split()))


def sentences(path: Path) -> Iterator[str]:
    """The sentences of a file of a known type in English, else nothing.

    Raises:
        OSError, EOFError, zlib.error: The file cannot be read or is incomplete.
    """
    if path.name.endswith(".dict.dz"):
        yield from dictionary(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
    elif path.parent.name == "wordnet" and path.stem == "data":
        yield from wordnet(path.read_text(encoding="utf-8", errors="replace"))
    elif path.suffix == ".html" and path.parent.name in ("html", "en-US"):
        yield from page(path.read_text(encoding="utf-8", errors="replace"))


def plain(texts: Iterable[str]) -> list[str]:
    """The unique texts that look like a sentence, shuffled with a fixed seed."""
    kept: dict[str, None] = {}
    for text in texts:
        sentence = " ".join(re.sub(r"[{}\[\]_]", "", text).strip(" -*").split())
        letters = sum(c.isalpha() or c == " " for c in sentence)
        if (
            FEWEST_WORDS <= len(sentence.split()) <= MOST_WORDS
            and len(sentence) <= MOST_CHARACTERS
            and letters >= LETTERS * len(sentence)
        ):
            kept[sentence] = None
    shuffled = list(kept)
    random.Random(0).shuffle(shuffled)
    return shuffled


def main() -> None:
    """Print the sentences of the files listed on standard input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.parse_args()
    paths = sorted(path for line in sys.stdin if (path := Path(line.rstrip("\n"))).is_file())
    texts: list[str] = []
    for path in paths:
        try:
            texts += sentences(path)
        except (OSError, EOFError, zlib.error) as error:
            parser.error(f"{path}: cannot be read: {error} (reinstall its package)")
    unique = plain(texts)
    if not unique:
        parser.error(
            "standard input: no file with plain English, expected the output of `dpkg -L wordnet-base`"
        )
    sys.stdout.writelines(f"{sentence}\n" for sentence in unique)


if __name__ == "__main__":
    main()
