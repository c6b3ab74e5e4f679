"""When a head abstains: what is promised holds, by simulation; which score is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from distill.evaluation.abstention import (
    Texts,
    _ends,
    covering,
    fit_abstention,
    lower_bound,
    promised,
    separation,
    single_confidence,
)
from distill.evaluation.analysis import answered
from distill.heads import UNLABELLED, Head
from distill.recipe.data_section import Abstain
from export.bundle.manifest import Abstain as Rule

HEAD = Head("topic", "single_label", ("a", "b", "c"))


def test_the_lower_bound_is_that_of_clopper_and_pearson():
    # the smallest rate at which so many right answers are not too many, by the definition
    for right, texts in ((149, 149), (290, 300), (40, 60), (1, 5)):
        bound = float(lower_bound(right, texts, 0.95))
        assert binom.sf(right - 1, texts, bound) == pytest.approx(0.05)
    assert lower_bound(0, 10, 0.95) == 0
    assert lower_bound(148, 148, 0.95) < 0.98 <= lower_bound(149, 149, 0.95)


def test_the_bounds_of_all_thresholds_together_have_the_confidence():
    draw, ends = np.random.default_rng(1), np.arange(10, 1001, 10)
    single = single_confidence(tuple(ends), 0.98, 0.95)
    assert 1 - 0.05 / 100 > single > 0.95, "stricter than one bound, less strict than Bonferroni"
    wrong = draw.binomial(10, 0.02, (4000, 100)).cumsum(-1)
    passing = (lower_bound(ends - wrong, ends, single) >= 0.98).any(-1)
    assert 0.03 < passing.mean() < 0.06
    alone = (lower_bound(ends - wrong, ends, 0.95) >= 0.98).any(-1)
    assert alone.mean() > 0.12, "which is why one bound does not do"
    assert single_confidence((1000,), 0.98, 0.95) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("kind", ["calibrated", "flat", "noisy top"])
def test_a_promise_holds_for_the_texts_to_come(kind):
    """Of many validation sets, at most one in twenty has a threshold whose true accuracy is lower."""
    draw, broken, found = np.random.default_rng(2), 0, 0
    accuracy, texts = 0.9, 300
    p = np.sort(draw.beta(6, 1, 200_000))[::-1]
    rate = {"calibrated": p, "flat": np.full(len(p), 0.9), "noisy top": np.minimum(p, 0.93)}[kind]
    true = np.cumsum(rate) / np.arange(1, len(p) + 1)  # the accuracy of the texts above each score
    for _ in range(400):
        rows = draw.choice(len(p), texts, replace=False)
        threshold = promised(p[rows], draw.random(texts) < rate[rows], accuracy, 0.95)
        if threshold:
            found += 1
            above = np.searchsorted(-p, -threshold.value, side="right")
            # in the flat case every threshold is exactly at the promised rate, which counts as broken
            broken += true[above - 1] <= accuracy + 1e-12 if kind == "flat" else true[above - 1] < accuracy
    assert broken <= 400 * 0.05 + 2 * np.sqrt(400 * 0.05 * 0.95)
    if kind == "calibrated":
        assert found > 300


def test_the_largest_coverage_that_validation_proves():
    scores = np.linspace(1, 0, 1000)
    right = np.r_[np.ones(700, bool), np.zeros(300, bool)]
    found = promised(scores, right, 0.98, 0.95)
    assert 700 <= found.answered <= 714 and found.right == 700 and found.bound >= 0.98
    assert scores[found.answered - 1] >= found.value > scores[found.answered]
    assert promised(scores, ~right, 0.98, 0.95) is None
    assert promised(scores[:100], right[:100], 0.98, 0.95) is None, "too few texts for any promise"
    assert promised(scores[:0], right[:0], 0.98, 0.95) is None
    whole = promised(scores, np.ones(1000, bool), 0.98, 0.95)
    assert whole.answered == 1000 and whole.value <= scores[-1]


def test_texts_of_one_score_are_answered_together():
    scores = np.repeat([0.9, 0.5], 500)
    ends, _ = _ends(scores)
    assert ends.tolist() == [500, 1000]
    found = promised(scores, np.repeat([True, False], 500), 0.98, 0.95)
    assert found.answered == 500 and 0.5 < found.value <= 0.9
    assert promised(np.ones(300), np.ones(300, bool), 0.98, 0.95).answered == 300


def test_a_coverage_needs_no_promise():
    scores, right = np.arange(100.0), np.ones(100, bool)
    found = covering(scores, right, 0.95)
    assert found.answered == 95 and 4 < found.value <= 5 and found.bound is None
    assert covering(scores, right, 1).answered == 100
    assert covering(np.ones(10), right[:10], 0.5).answered == 10
    assert covering(scores[:0], right[:0], 0.5) is None


def test_separation_is_the_area_under_the_curve():
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(1, 1, 300).round(1), draw.normal(0, 1, 200).round(1)
    expected = roc_auc_score(np.repeat([1, 0], [300, 200]), np.concatenate([inside, outside]))
    assert separation(inside, outside) == pytest.approx(expected)
    assert separation(inside, outside[:0]) is None and separation(inside[:0], outside) is None


def split(texts, outside=None, seed=0):
    """A head whose logits are calibrated at temperature 2; one text in ten is unlabelled."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1, (texts, 3)) + np.eye(3)[draw.integers(0, 3, texts)] * draw.uniform(
        3, 20, (texts, 1)
    )
    labels = np.array([draw.choice(3, p=row) for row in softmax(logits / 2, -1)])
    labels[::10] = UNLABELLED
    return Texts(logits, labels, outside)


def test_fitting_a_head():
    splits = {"validation": split(3000), "test": split(3000, seed=1)}
    found = fit_abstention(HEAD, Abstain(accuracy=0.98), 2.0, splits)
    assert found["score"] == "probability" and found["auroc"]["test"] == {"probability": None, "energy": None}
    rule = Rule(**found["rule"])
    assert (rule.accuracy, rule.confidence) == (0.98, 0.95) and found["bound"] >= 0.98
    own = found["answered"]["validation"]
    assert own == {**answered(HEAD, splits["validation"].logits, splits["validation"].labels, 2.0, rule),
                   "oos_refused": None}  # fmt: skip
    assert own["texts"] == 2700 and own["coverage"] == rule.coverage == own["answered"] / 2700
    assert own["accuracy"] > own["accuracy_on_all"] and 0.3 < own["coverage"] < 1
    p = softmax(splits["test"].logits / 2, -1).max(-1)
    assert found["answered"]["test"]["answered"] == (p >= rule.threshold)[splits["test"].labels >= 0].sum()
    assert fit_abstention(HEAD, Abstain(accuracy=0.9999), 2.0, splits)["rule"] is None
    half = fit_abstention(HEAD, Abstain(coverage=0.5), 2.0, splits)["rule"]
    assert half["accuracy"] is None and half["coverage"] == 0.5
    alone = fit_abstention(HEAD, None, 2.0, splits)
    assert alone["rule"] is None and alone["answered"] == {}


def test_the_score_that_separates_texts_of_no_class_is_chosen():
    draw = np.random.default_rng(5)
    # one large logit above small ones: probability tells nothing, energy tells all
    small = np.stack([np.full(200, 3.0), *draw.normal(-5, 1, (2, 200))], -1)
    splits = {"validation": split(500, small), "test": split(500, small, 1)}
    found = fit_abstention(HEAD, Abstain(coverage=0.9), 2.0, splits)
    aurocs = found["auroc"]["validation"]
    assert found["score"] == max(aurocs, key=aurocs.get) == found["rule"]["score"] == "energy"
    assert found["answered"]["test"]["oos_refused"] > 0.9
    flat = draw.normal(6, 0.3, (200, 3))
    splits = {"validation": split(500, flat), "test": split(500)}
    found = fit_abstention(HEAD, Abstain(coverage=0.9), 2.0, splits)
    assert found["score"] == "probability" and found["answered"]["test"]["oos_refused"] is None
