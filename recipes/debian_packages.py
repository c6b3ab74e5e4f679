"""Write the descriptions of Debian packages as a data set: one line of text, section, tags.

    apt-cache dumpavail | python recipes/debian_packages.py DIR

Debian 12 has about 15,000 source packages with tags. One binary package of each is used. The split into
train, validation and test is random with a fixed seed. A section has 24 to 1,377 training texts. A text has
any number of tags, including none.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

PARTS = {"test": 3000, "validation": 1000, "train": 6000}
FACETS = ("role", "interface", "use", "works-with")
FEWEST_OF_SECTION, FEWEST_OF_TAG = 60, 100
NEEDED = {"Package", "Description", "Section", "Tag"}


def packages(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The fields of each package, with continuation lines joined."""
    fields: dict[str, str] = {}
    key = ""
    for line in lines:
        if not line.strip():
            yield fields
            fields = {}
        elif line.startswith(" "):
            fields[key] = fields.get(key, "") + " " + line.strip()
        else:
            key, _, fields[key] = line.rstrip("\n").partition(": ")
    yield fields


def rows(records: Iterable[dict[str, str]]) -> list[tuple[str, str, list[str]]]:
    """Text, section and tags of one tagged package per source, shuffled with a fixed seed."""
    kept, seen = [], set()
    for fields in records:
        if not fields.keys() >= NEEDED:
            continue
        source = fields.get("Source", fields["Package"]).split()[0]
        text = fields["Description"].partition("  ")[0].strip()  # some lines continue after two spaces
        if source in seen or text.lower() in seen:
            continue
        seen |= {source, text.lower()}
        tags = [tag for tag in fields["Tag"].split(", ") if tag.split("::")[0] in FACETS]
        kept.append((text, fields["Section"].split("/")[-1], tags))
    random.Random(5).shuffle(kept)
    return kept


def main() -> None:
    """Write DIR/train.csv, validation.csv and test.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args().folder
    labelled = rows(packages(line.decode("utf-8", "replace") for line in sys.stdin.buffer))
    sections = Counter(section for _, section, _ in labelled)
    tags = Counter(tag for *_, text_tags in labelled for tag in text_tags)
    lines = [
        (text, section, "|".join(sorted(tag for tag in text_tags if tags[tag] >= FEWEST_OF_TAG)))
        for text, section, text_tags in labelled
        if sections[section] >= FEWEST_OF_SECTION
    ]
    if len(lines) < sum(PARTS.values()):
        parser.error(
            f"standard input: {len(lines)} usable packages, {sum(PARTS.values())} needed "
            "(give it the output of `apt-cache dumpavail`)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in PARTS.items():
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "section", "tags"), *lines[:size]])
            del lines[:size]
    except OSError as error:
        parser.error(f"{folder}: {error.strerror} (choose another folder)")


if __name__ == "__main__":
    main()
