"""Write the definitions and example sentences of WordNet as plain text, one a line, for `distill pretrain`.

    python recipes/wordnet_sentences.py FOLDER_OF_data.noun_ETC > wordnet.txt

WordNet 3 (wordnet.princeton.edu; Debian's package wordnet-base puts it in /usr/share/wordnet) explains some
150,000 words in some 160,000 short sentences: broad plain English that belongs to no task.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

EXAMPLE = re.compile(r'"([^"]+)"')
FEWEST_WORDS = 3


def sentences(line: str) -> Iterator[str]:
    """The definition and the examples in a line of a data file; nothing of its licence's lines."""
    _, bar, gloss = line.partition(" | ")
    if line.startswith("  ") or not bar:
        return
    definition = re.sub(r"[;\s]*;[;\s]*", "; ", EXAMPLE.sub("", gloss)).strip("; \n")
    for text in (definition, *EXAMPLE.findall(gloss)):
        if len(text.split()) >= FEWEST_WORDS:
            yield text.strip()


def main() -> None:
    """Print each sentence once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    if not (paths := sorted(folder.glob("data.*"))):
        parser.error(f"{folder}: holds no data.noun, data.verb, data.adj and data.adv of WordNet")
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    for text in dict.fromkeys(text for line in lines for text in sentences(line)):
        print(text)


if __name__ == "__main__":
    main()
