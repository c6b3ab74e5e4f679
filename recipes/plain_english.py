"""Write plain English sentences, one a line, each once, for `distill pretrain`.

    dpkg -L wordnet-base dict-gcide dict-foldoc dict-jargon anarchism debian-handbook > files.txt
    python recipes/plain_english.py < files.txt > plain.txt

Of these packages of Debian: the definitions and examples of WordNet, three dictionaries, two books. Some
640,000 sentences that belong to no task, in an order drawn once.
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
LETTERS = 0.8  # the least share of letters and blanks

END = re.compile(r"(?<=[.!?;])[\"')\]]?\s+(?=[A-Za-z\"'(])")
PARAGRAPH = re.compile(r"\n\s*\n")
BLOCK = re.compile(r"</?(?:p|li|h\d|div|td|dd|dt|br)\b[^>]*>", re.IGNORECASE)
NO_PROSE = re.compile(r"<(script|style|pre)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
EXAMPLE = re.compile(r'"([^"]+)"')
AROUND_A_MEANING = (  # in a dictionary
    (re.compile(r"\[[^\]]*\]"), " "),  # where the word comes from, who wrote this
    (re.compile(r"--[A-Z][\w. ]{1,20}(\s*\([^)]*\))?\.?\s*$"), ""),  # who is quoted
    (re.compile(r"^\S+ \\[^\\]*\\[\s,;]*((&|[a-z]{1,4}\.)\s*)*"), ""),  # how it is said and used
    (re.compile(r"^(\d+\.|\([a-z]\))\s*"), ""),  # its number
    (re.compile(r"^\([A-Z][\w.]*\)\s*"), ""),  # its field
)


def wordnet(text: str) -> Iterator[str]:
    """The definition and the examples of each line; nothing of its licence's lines."""
    for line in text.splitlines():
        _, bar, gloss = line.partition(" | ")
        if bar and not line.startswith("  "):
            yield re.sub(r"[;\s]*;[;\s]*", "; ", EXAMPLE.sub("", gloss)).strip("; ")
            yield from EXAMPLE.findall(gloss)


def dictionary(text: str) -> Iterator[str]:
    """The sentences of each paragraph, without what stands around a meaning."""
    for paragraph in PARAGRAPH.split(text):
        meaning = " ".join(paragraph.split())
        for pattern, instead in AROUND_A_MEANING:
            meaning = pattern.sub(instead, meaning.strip())
        yield from END.split(meaning)


def page(text: str) -> Iterator[str]:
    """The sentences of each block of HTML."""
    for block in BLOCK.split(NO_PROSE.sub(" ", text)):
        yield from END.split(" ".join(html.unescape(re.sub(r"<[^>]+>", "", block)).split()))


def sentences(path: Path) -> Iterator[str]:
    """All of a file, where it is of a kind that is known and in English.

    Raises:
        OSError, EOFError, zlib.error: It cannot be read, or is not whole.
    """
    if path.name.endswith(".dict.dz"):
        yield from dictionary(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
    elif path.parent.name == "wordnet" and path.stem == "data":
        yield from wordnet(path.read_text(encoding="utf-8", errors="replace"))
    elif path.suffix == ".html" and path.parent.name in ("html", "en-US"):
        yield from page(path.read_text(encoding="utf-8", errors="replace"))


def plain(found: Iterable[str]) -> list[str]:
    """Those that read like a sentence, each once, in an order drawn once."""
    kept: dict[str, None] = {}
    for text in found:
        sentence = " ".join(re.sub(r"[{}\[\]_]", "", text).strip(" -*").split())
        letters = sum(c.isalpha() or c == " " for c in sentence)
        if (
            FEWEST_WORDS <= len(sentence.split()) <= MOST_WORDS
            and len(sentence) <= MOST_CHARACTERS
            and letters >= LETTERS * len(sentence)
        ):
            kept[sentence] = None
    drawn = list(kept)
    random.Random(0).shuffle(drawn)
    return drawn


def main() -> None:
    """Print the sentences of the files that are listed on standard input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.parse_args()
    paths = sorted(path for line in sys.stdin if (path := Path(line.rstrip("\n"))).is_file())
    texts: list[str] = []
    for path in paths:
        try:
            texts += sentences(path)
        except (OSError, EOFError, zlib.error) as error:
            parser.error(f"{path}: cannot be read: {error} (install its package anew)")
    found = plain(texts)
    if not found:
        parser.error(
            "standard input: names no file of plain English (give it what `dpkg -L wordnet-base` prints)"
        )
    sys.stdout.writelines(f"{sentence}\n" for sentence in found)


if __name__ == "__main__":
    main()
