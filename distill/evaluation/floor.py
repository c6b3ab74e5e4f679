"""The floor of a head: logistic regression on TF-IDF, which a network must beat to be worth its cost.

The features are TF-IDF of word 1-2-grams and of character 2-5-grams within words, with sublinear counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

from distill.evaluation.analysis import Answers
from distill.evaluation.calibration import calibrate
from distill.evaluation.metrics import Array, labelled
from distill.heads import Head

C = 10.0  # inverse of the regularisation
TOLERANCE = 0.3  # of the solver; a smaller one changes accuracy by less than a thousandth
NEVER = 10.0  # the logit of a label that all texts have; the negative of it where none has it

# characters of training texts, and those times labels; of more texts, a random sample is taken
MOST, MOST_TIMES_LABELS = 5_000_000, 200_000_000

Features = Any  # a sparse matrix [texts, features]


@dataclass(frozen=True)
class Floor:
    """What the floor of a head reaches.

    Attributes:
        train_texts: The labelled training texts that it has learnt from.
        answers: Its calibrated answers to the texts of each split.
    """

    train_texts: int
    answers: Mapping[str, Answers]


def floors(
    heads: Sequence[Head], texts: Mapping[str, Sequence[str]], labels: Mapping[str, Mapping[str, Array]]
) -> dict[str, Floor]:
    """The floor of each head that has labelled training texts with words, calibrated on validation.

    Args:
        heads: single_label or multi_label heads.
        texts: Of train, validation and test.
        labels: Of each head on each split, as in `metrics.quality`.
    """
    lengths = np.array([len(text) for text in texts["train"]])
    known = {head.name: labelled(labels["train"][head.name], head) for head in heads}
    rows = _sample(np.flatnonzero(np.any([*known.values()], axis=0)), lengths, MOST)
    vectorizer = _vectorizer()
    try:
        train = vectorizer.fit_transform([texts["train"][i] for i in rows]).tocsr()
    except ValueError:  # no text, or none with a word
        return {}
    features = {split: vectorizer.transform(texts[split]) for split in ("validation", "test")}
    found = {}
    for head in heads:
        own = np.flatnonzero(known[head.name][rows])
        own = _sample(own, lengths[rows], MOST_TIMES_LABELS // len(head.labels))
        if not len(own):
            continue
        regression = Regression(head, train[own], labels["train"][head.name][rows[own]])
        logits = {split: regression.logits(matrix) for split, matrix in features.items()}
        fitted = calibrate(head, logits["validation"], labels["validation"][head.name])
        found[head.name] = Floor(
            len(own),
            {split: Answers(head, x, fitted.temperature, fitted.thresholds) for split, x in logits.items()},
        )
    return found


def _sample(rows: Array, lengths: Array, most: int) -> Array:
    """The rows, or as many of them at random as have at most so many characters together."""
    order = np.random.default_rng(0).permutation(rows)
    return np.sort(order[np.cumsum(lengths[order]) <= most])


def _vectorizer() -> Any:
    """TF-IDF of word 1-2-grams and character 2-5-grams."""
    shared: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
    return make_union(
        # one letter is a word in many languages
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b", **shared),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared),
    )


class Regression:
    """Logistic regressions of one head, each label against the rest."""

    def __init__(self, head: Head, features: Features, labels: Array) -> None:
        """Fit on labelled texts.

        Args:
            head: A single_label or multi_label head.
            features: Of the texts.
            labels: Class indices `[texts]`, or 0 and 1 `[texts, labels]`.
        """
        features = features.astype(np.float64)  # as the solver has it
        self.bias = np.zeros(len(head.labels), np.float32)
        self.learnt: list[int] = []  # labels that some texts have and some do not
        weights = []
        for label in range(len(head.labels)):
            y = labels == label if labels.ndim == 1 else labels[:, label] == 1
            if y.all() or not y.any():
                self.bias[label] = NEVER if y.any() else -NEVER
                continue
            model = LogisticRegression(C=C, solver="liblinear", dual=True, tol=TOLERANCE, random_state=0)
            model.fit(features, y)
            self.learnt.append(label)
            weights.append(model.coef_[0].astype(np.float32))
            self.bias[label] = model.intercept_[0]
        self.weights = np.stack(weights, -1) if weights else np.zeros((features.shape[1], 0), np.float32)

    def logits(self, features: Features) -> Array:
        """The logits `[texts, labels]`."""
        found = np.tile(self.bias, (features.shape[0], 1))
        found[:, self.learnt] += features @ self.weights
        return found
