"""Write the fortunes of Unix's fortune as a data set: a text, and the file it stands in.

    dpkg -L fortunes fortunes-min | python recipes/fortune_cookies.py DIR

Debian's packages fortunes and fortunes-min have some 15,000: jokes, quotations and verses of 39 files that
were never meant to be told apart. Which go to train, validation and test is drawn.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PARTS = {"test": 1 / 6, "validation": 1 / 4, "train": 1}  # where each ends
SHORTEST = 20  # characters of a text
FEWEST = 40  # texts of a file


def rows(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Texts, each once, with the names of their files, in an order drawn once."""
    found: dict[str, str] = {}
    for path in sorted(paths):
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            if len(text := " ".join(text.split())) >= SHORTEST:
                found[text] = path.name
    drawn = list(found.items())
    random.Random(0).shuffle(drawn)
    counts = Counter(name for _, name in drawn)
    return [row for row in drawn if counts[row[1]] >= FEWEST]


def main() -> None:
    """Write DIR/train.csv, validation.csv and test.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args().folder
    paths = [Path(line.rstrip("\n")) for line in sys.stdin]
    found = rows(path for path in paths if "fortunes" in path.parts and not path.suffix and path.is_file())
    if not found:
        parser.error("standard input: names no file of fortunes (give it `dpkg -L fortunes fortunes-min`)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        start = 0
        for name, share in PARTS.items():
            stop = int(len(found) * share)
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "category"), *found[start:stop]])
            start = stop
    except OSError as error:
        parser.error(f"{folder}: {error.strerror} (name another folder)")


if __name__ == "__main__":
    main()
