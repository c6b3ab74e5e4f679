"""Write a data set with few labels: a stratified sample of train, its other texts without labels.

    python recipes/few_labels.py DIR/sst2 OUT           # 300 labelled texts, and 150 for validation
    python recipes/few_labels.py DIR/clinc150 OUT --labelled 750 --validation 450 --column intent

DIR/sst2 holds train.csv, validation.csv and test.csv with a column `text`, OUT then the same and
unlabeled.txt.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


def stratified(labels: Sequence[str], count: int, seed: int) -> set[int]:
    """The rows of a sample with the shares of the labels, by largest remainders."""
    rows = list(range(len(labels)))
    random.Random(seed).shuffle(rows)
    of_label = defaultdict(list)
    for row in rows:
        of_label[labels[row]].append(row)
    shares = {label: count * len(own) / len(labels) for label, own in of_label.items()}
    taken = {label: int(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (taken[label] - shares[label], label))
    for label in by_remainder[: count - sum(taken.values())]:
        taken[label] += 1
    return {row for label, own in of_label.items() for row in own[: taken[label]]}


def main() -> None:
    """Write OUT/train.csv, validation.csv, test.csv and unlabeled.txt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--labelled", type=int, default=300, help="texts of train with labels")
    parser.add_argument("--validation", type=int, default=150, help="texts of validation")
    parser.add_argument("--column", help="of the labels; default: the first beside text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    splits = {}
    try:
        for name in ("train", "validation", "test"):
            with (options.folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
                splits[name] = list(csv.DictReader(file))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror} (name a folder with train, validation and test)")
    names = [*splits["train"][0]] if splits["train"] else []
    column = options.column or next((name for name in names if name != "text"), None)
    if column not in names or "text" not in names:
        parser.error(f"{options.folder / 'train.csv'}: has no column {column or 'text'!r} beside text")
    parts = dict(splits)
    for name, count in (("train", options.labelled), ("validation", options.validation)):
        if not 0 < count < len(splits[name]):
            parser.error(f"{name}: {count} of {len(splits[name])} texts (give fewer, one at least)")
        kept = stratified([row[column] for row in splits[name]], count, options.seed)
        parts[name] = [row for number, row in enumerate(splits[name]) if number in kept]
        if name == "train":
            others = [row["text"] for number, row in enumerate(splits[name]) if number not in kept]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        with (options.out / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    lines = [" ".join(text.split()) for text in others]
    (options.out / "unlabeled.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
