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
TOLERANCE = 1.0  # of the solver; 0.01 takes twice the time, and the metrics are the same to 0.002
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
    try:
        model = TfIdf(heads, texts["train"], labels["train"])
    except ValueError:  # no labelled text, or none with a word
        return {}
    answers = model.answers(heads, texts, labels)
    return {name: Floor(model.train_texts[name], answers[name]) for name in model.regressions}


class TfIdf:
    """TF-IDF, and a logistic regression for each label of the heads that have labelled training texts.

    Attributes:
        regressions: By head.
        train_texts: The number of texts that each was fitted on.
    """

    def __init__(self, heads: Sequence[Head], texts: Sequence[str], labels: Mapping[str, Array]) -> None:
        """Fit on labelled texts.

        Args:
            heads: single_label or multi_label heads.
            texts: Training texts.
            labels: Of each head, as in `metrics.quality`.

        Raises:
            ValueError: No text is labelled, or none has a word.
        """
        lengths = np.array([len(text) for text in texts])
        known = {head.name: labelled(labels[head.name], head) for head in heads}
        rows = _sample(np.flatnonzero(np.any([*known.values()], axis=0)), lengths, MOST)
        self.vectorizer = _vectorizer()
        features = self.vectorizer.fit_transform([texts[i] for i in rows]).tocsr()
        self.regressions: dict[str, Regression] = {}
        self.train_texts: dict[str, int] = {}
        for head in heads:
            own = np.flatnonzero(known[head.name][rows])
            own = _sample(own, lengths[rows], MOST_TIMES_LABELS // len(head.labels))
            if len(own):
                self.regressions[head.name] = Regression(head, features[own], labels[head.name][rows[own]])
                self.train_texts[head.name] = len(own)

    def logits(self, texts: Sequence[str]) -> dict[str, Array]:
        """The logits of each head, `[texts, labels]`."""
        features = self.vectorizer.transform(texts)
        return {name: regression.logits(features) for name, regression in self.regressions.items()}

    def answers(
        self,
        heads: Sequence[Head],
        texts: Mapping[str, Sequence[str]],
        labels: Mapping[str, Mapping[str, Array]],
    ) -> dict[str, dict[str, Answers]]:
        """The answers of each fitted head to validation and test, calibrated on validation.

        The arguments are those of `floors`.
        """
        logits = {split: self.logits(texts[split]) for split in ("validation", "test")}
        found: dict[str, dict[str, Answers]] = {}
        for head in heads:
            if head.name in self.regressions:
                own = {split: values[head.name] for split, values in logits.items()}
                fitted = calibrate(head, own["validation"], labels["validation"][head.name]).to_json()
                found[head.name] = {split: Answers(head, x, **fitted) for split, x in own.items()}
        return found

    @property
    def parameters(self) -> int:
        """The number of weights: of the features, of the labels."""
        weights = sum(one.weights.size + one.bias.size for one in self.regressions.values())
        return weights + len(self.vectorizer.get_feature_names_out())

    @property
    def size_bytes(self) -> int:
        """The bytes of the weights in float32 and of the n-grams in UTF-8."""
        words = sum(len(name.encode()) for name in self.vectorizer.get_feature_names_out())
        return 4 * self.parameters + words


def _sample(rows: Array, lengths: Array, most: int) -> Array:
    """The rows, or as many of them at random as have at most so many characters together."""
    order = np.random.default_rng(0).permutation(rows)
    return np.sort(order[np.cumsum(lengths[order]) <= most])


def _vectorizer() -> Any:
    """TF-IDF of word 1-2-grams and character 2-5-grams."""
    shared: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), **shared),
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
