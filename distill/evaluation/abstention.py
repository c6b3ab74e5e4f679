"""When a single_label head abstains: the lowest score that validation allows it to answer.

A promise of accuracy rests on an exact binomial bound. The threshold of the largest coverage is chosen among
many, and luck would choose with it. So the bound of each is at a higher confidence, that at which a head that
is right exactly at the promised rate, whatever the threshold, passes at one of them with a probability of
1 - confidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import bdtr
from scipy.stats import beta, rankdata

from distill.evaluation.analysis import answered
from distill.evaluation.metrics import Array, labelled
from distill.heads import Head
from distill.recipe.data_section import Abstain
from export.bundle.manifest import ENERGY, PROBABILITY
from export.bundle.manifest import Abstain as Rule
from export.runtime.probabilities import confidence as score_of

SCORES = (PROBABILITY, ENERGY)
STEPS = 100  # thresholds that are tried, at equal steps of coverage
DRAWS = 20_000  # heads of the promised accuracy, from which the confidence of the bounds follows


@dataclass(frozen=True)
class Threshold:
    """A threshold and what validation says of the texts that reach it.

    Attributes:
        value: The lowest score that is answered.
        answered: Number of texts that reach it.
        right: Number of these that are answered right.
        bound: Lower bound of their accuracy; None if no accuracy is promised.
    """

    value: float
    answered: int
    right: int
    bound: float | None = None


def lower_bound(right: Array | int, texts: Array | int, confidence: float) -> Array:
    """The one-sided lower bound of an accuracy (Clopper and Pearson 1934), of counts `[n]`."""
    right = np.asarray(right)
    with np.errstate(invalid="ignore"):
        bound = beta.ppf(1 - confidence, right, np.asarray(texts) - right + 1)
    return np.where(right == 0, 0.0, bound)


def promised(scores: Array, right: Array, accuracy: float, confidence: float) -> Threshold | None:
    """The threshold of the largest coverage whose answered texts have the accuracy, at the confidence.

    Args:
        scores: Of the texts, `[n]`; a higher score is more certain.
        right: Whether each is answered right, bools `[n]`.
        accuracy: To promise.
        confidence: Of the promise: the probability that the threshold keeps it.

    Returns:
        None if no threshold can be promised.
    """
    ends, ranked = _ends(scores)
    if not len(ends):
        return None
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])[ends - 1]
    bounds = lower_bound(hits, ends, single_confidence(tuple(ends.tolist()), accuracy, confidence))
    if not (passed := np.flatnonzero(bounds >= accuracy)).size:
        return None
    best = passed[-1]
    return Threshold(_middle(ranked, ends[best]), int(ends[best]), int(hits[best]), float(bounds[best]))


def covering(scores: Array, right: Array, coverage: float) -> Threshold | None:
    """The threshold that a share of the texts reaches, at least; None without texts. Arrays as `promised`."""
    ranked = np.sort(scores)[::-1]
    if not len(ranked):
        return None
    last = ranked[int(np.ceil(coverage * len(ranked))) - 1]
    count = int((ranked >= last).sum())
    value = _middle(ranked, count)
    return Threshold(value, count, int(right[scores >= value].sum()))


@lru_cache
def single_confidence(ends: tuple[int, ...], accuracy: float, confidence: float) -> float:
    """The confidence at which the bounds of all thresholds together have `confidence`.

    Args:
        ends: Number of texts that reach each threshold, ascending.
        accuracy: To promise.
        confidence: Of the promise.
    """
    draw = np.random.default_rng(0)
    luckiest = np.ones(DRAWS)
    wrong = np.zeros(DRAWS, np.int64)
    for start, end in pairwise((0, *ends)):
        wrong += draw.binomial(end - start, 1 - accuracy, DRAWS)
        p_values = bdtr(np.arange(wrong.max() + 1), end, 1 - accuracy)
        luckiest = np.minimum(luckiest, p_values[wrong])
    values = np.sort(luckiest)
    # at most the share 1 - confidence of the heads has more luck than this; a little less, as values repeat
    luck = values[int((1 - confidence) * DRAWS)] * (1 - 1e-6)
    return float(1 - min(luck, 1 - confidence))


def separation(inside: Array, outside: Array) -> float | None:
    """AUROC: the probability that a text of a class has a higher score than a text of none.

    It is None if there are no texts of either kind.

    Args:
        inside: Scores of texts that have a class, `[n]`.
        outside: Scores of texts that have none, `[m]`.
    """
    if not len(inside) or not len(outside):
        return None
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)].sum()
    return float((ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


@dataclass(frozen=True)
class Texts:
    """What a head answers to the texts of a split, and to those of no class.

    Attributes:
        logits: `[texts, labels]`.
        labels: Class indices `[texts]`, as in `metrics.quality`.
        outside: Logits of texts of no class, `[n, labels]`; None without any.
    """

    logits: Array
    labels: Array
    outside: Array | None = None


def fit_abstention(
    head: Head, wanted: Abstain | None, temperature: float, texts: Mapping[str, Texts]
) -> dict[str, Any]:
    """When a head abstains, from validation, and how this does on test.

    The score is that which separates the texts of no class best on validation; without such texts, or at a
    tie, the probability.

    Args:
        head: A single_label head.
        wanted: What the recipe asks for; None measures the scores alone.
        temperature: Calibration temperature of the head.
        texts: Of validation and test.

    Returns:
        `{"wanted": {...}, "score": name, "auroc": {SPLIT: {SCORE: x}}, "rule": {...}, "bound": x,
        "answered": {SPLIT: {...}}}`, as JSON. `rule` is None if there is no such threshold. `answered` is
        what `analysis.answered` says, and `oos_refused`, the share of the texts of no class without an
        answer.
    """
    aurocs = {split: _aurocs(head, some, temperature) for split, some in texts.items()}
    chosen = max(SCORES, key=lambda name: aurocs["validation"][name] or 0.0)
    asked = wanted and wanted.model_dump(mode="json", exclude_none=True)
    found: dict[str, Any] = {"wanted": asked, "score": chosen, "auroc": aurocs}
    found |= {"rule": None, "bound": None, "answered": {}}
    if wanted is None:
        return found
    validation = texts["validation"]
    known = labelled(validation.labels, head)
    logits, labels = validation.logits[known], validation.labels[known]
    scores, right = score_of(logits / temperature, chosen), logits.argmax(-1) == labels
    if wanted.coverage is not None:
        threshold, rule = covering(scores, right, wanted.coverage), Rule(chosen, 0.0)
    else:
        assert wanted.accuracy is not None
        threshold = promised(scores, right, wanted.accuracy, wanted.confidence)
        rule = Rule(chosen, 0.0, wanted.accuracy, wanted.confidence)
    if threshold is None:
        return found
    rule = replace(rule, threshold=threshold.value, coverage=threshold.answered / len(labels))
    found |= {"rule": asdict(rule), "bound": threshold.bound}
    for split, some in texts.items():
        found["answered"][split] = {
            **answered(head, some.logits, some.labels, temperature, rule),
            "oos_refused": None
            if some.outside is None or not len(some.outside)
            else float((score_of(some.outside / temperature, chosen) < rule.threshold).mean()),
        }
    return found


def _aurocs(head: Head, texts: Texts, temperature: float) -> dict[str, float | None]:
    if texts.outside is None:
        return dict.fromkeys(SCORES)
    known = labelled(texts.labels, head)
    return {
        name: separation(
            score_of(texts.logits[known] / temperature, name), score_of(texts.outside / temperature, name)
        )
        for name in SCORES
    }


def _ends(scores: Array) -> tuple[Array, Array]:
    """The numbers of texts that reach the thresholds to try, ascending, and the scores in descending order.

    They are at equal steps of coverage, moved to the end of equal scores.
    """
    ranked = np.sort(scores)[::-1]
    if not len(ranked):
        return np.empty(0, np.int64), ranked
    wanted = np.ceil(np.arange(1, STEPS + 1) * len(ranked) / STEPS).astype(int) - 1
    separable = np.append(np.flatnonzero(ranked[1:] < ranked[:-1]), len(ranked) - 1)
    return np.unique(separable[np.searchsorted(separable, wanted)]) + 1, ranked


def _middle(ranked: Array, count: int) -> float:
    """A score between the first `count` of those in descending order and the next."""
    last = float(ranked[count - 1])
    if count == len(ranked):
        return last
    following = float(ranked[count])
    middle = (last + following) / 2
    return rounded if following < (rounded := round(middle, 6)) <= last else middle
