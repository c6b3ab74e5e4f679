"""Write the texts of the Unix program fortune as a data set: the text and the file that contains it.

    dpkg -L fortunes fortunes-min | python recipes/fortune_cookies.py DIR

The Debian packages fortunes and fortunes-min contain about 15,000 jokes, quotations and verses in 39 files,
which were not written as categories. The split into train, validation and test is random with a fixed seed.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PARTS = {"test": 1 / 6, "validation": 1 / 4, "train": 1}  # end of each part, as a share of all texts
SHORTEST = 20  # minimum characters of a text
FEWEST = 40  # minimum texts of a file


def rows(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Unique texts with the names of their files, shuffled with a fixed seed."""
    file_of: dict[str, str] = {}
    for path in sorted(paths):
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            if len(text := " ".join(text.split())) >= SHORTEST:
                file_of[text] = path.name
    shuffled = list(file_of.items())
    random.Random(0).shuffle(shuffled)
    counts = Counter(name for _, name in shuffled)
    return [row for row in shuffled if counts[row[1]] >= FEWEST]


def main() -> None:
    """Write DIR/train.csv, validation.csv and test.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args().folder
    paths = [Path(line.rstrip("\n")) for line in sys.stdin]
    texts = rows(path for path in paths if "fortunes" in path.parts and not path.suffix and path.is_file())
    if not texts:
        parser.error(
            "standard input: no file of fortunes, expected the output of `dpkg -L fortunes fortunes-min`"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        start = 0
        for name, share in PARTS.items():
            stop = int(len(texts) * share)
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "category"), *texts[start:stop]])
            start = stop
    except OSError as error:
        parser.error(f"{folder}: {error.strerror} (choose another folder)")


if __name__ == "__main__":
    main()
