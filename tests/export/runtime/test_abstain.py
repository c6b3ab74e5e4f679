"""Heads that abstain: answers below a threshold have no label."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp

from export.bundle.files import write_bundle
from export.bundle.manifest import ENERGY, MANIFEST, PROBABILITY, Abstain, Manifest
from export.runtime.classifier import Classifier

Rules = dict[str, Abstain]


@pytest.fixture(scope="module")
def scores(classifier: Classifier, texts: list[str]) -> dict[str, np.ndarray]:
    """Both scores of the head intent, computed from its definition."""
    return {
        PROBABILITY: classifier.predict_proba(texts, "intent").max(-1),
        ENERGY: logsumexp(classifier.logits(texts)["intent"].astype(float) / 1.5, axis=-1),
    }


def abstaining(folder: Path, manifest: Manifest, contents: dict[str, bytes], rule: Abstain) -> Classifier:
    heads = (replace(manifest.heads[0], abstain=rule), *manifest.heads[1:])
    write_bundle(folder, replace(manifest, heads=heads), contents)
    return Classifier.load(folder, threads=1)


def middle(scores: Sequence[float]) -> float:
    """A threshold that half of the texts reach."""
    ranked = np.unique(scores)
    return float(ranked[len(ranked) // 2 - 1 : len(ranked) // 2 + 1].mean())


@pytest.mark.parametrize("score", [PROBABILITY, ENERGY])
def test_an_answer_below_the_threshold_has_no_label(
    score, scores, classifier, texts, manifest, contents, tmp_path
):
    rule = Abstain(score, middle(scores[score]), 0.98, 0.95, 0.5)
    found = abstaining(tmp_path / "bundle", manifest, contents, rule)
    assert found.manifest.heads[0].abstain == rule
    answers, own = found(texts), classifier(texts)
    sure = scores[score] >= rule.threshold
    assert 0.3 < sure.mean() < 0.7
    for answer, before, is_sure, value in zip(answers, own, sure, scores[score], strict=True):
        assert answer["flags"] == before["flags"]
        if is_sure:
            assert answer["intent"] == before["intent"]
        else:
            assert answer["intent"] == {"label": None, "score": pytest.approx(value, abs=1e-5)}
    labels = [one["intent"]["label"] if is_sure else None for one, is_sure in zip(own, sure, strict=True)]
    assert found.predict(texts, "intent") == labels
    assert [one["label"] for one in found.predict_intent(texts)] == labels
    assert found.predict(texts)["intent"] == labels
    row = int(np.flatnonzero(~sure)[0])
    assert found.predict(texts[row], "intent") is None and found(texts[row])["intent"]["label"] is None
    # what shows every label does not abstain
    assert found(texts, scores=True) == classifier(texts, scores=True)
    assert found(texts, top_k=1, abstain=False) == classifier(texts, top_k=1)
    np.testing.assert_array_equal(
        found.predict_proba(texts, "intent"), classifier.predict_proba(texts, "intent")
    )
    assert None not in found.classes_["intent"]
    assert copy.copy(found)(texts) == answers


def test_a_call_may_answer_all_or_set_another_threshold(
    scores, classifier, texts, manifest, contents, tmp_path
):
    rule = Abstain(ENERGY, middle(scores[ENERGY]))
    found = abstaining(tmp_path / "bundle", manifest, contents, rule)
    own = classifier(texts)
    assert found(texts, abstain=False) == own
    assert found.predict(texts, abstain=False) == classifier.predict(texts)
    assert found.predict_intent(texts, abstain=False) == classifier.predict_intent(texts)
    stricter = float(np.quantile(scores[ENERGY], 0.8))
    labels = found.predict(texts, "intent", thresholds={"intent": stricter})
    assert [label is not None for label in labels] == (scores[ENERGY] >= stricter).tolist()
    both = found(texts, thresholds={"intent": stricter, "flags": 0}, abstain=False)
    assert [one["intent"]["label"] for one in both] == labels and len(both[0]["flags"]) == 2
    assert found(texts, thresholds={"intent": -1e9}) == own
    assert found(texts, thresholds={"flags": 0.6}) != own, "the bundle's rule stays"
    with pytest.raises(ValueError, match="'intent': must be a number from -1e"):
        found("a", thresholds={"intent": float("nan")})


def test_a_bundle_without_a_rule_abstains_where_the_caller_sets_a_threshold(scores, classifier, texts):
    threshold = middle(scores[PROBABILITY])
    labels = classifier.predict(texts, "intent", thresholds={"intent": threshold})
    assert [label is not None for label in labels] == (scores[PROBABILITY] >= threshold).tolist()
    assert None not in classifier.predict(texts, "intent", thresholds={"intent": 0})


def test_a_manifest_without_a_rule_is_that_of_earlier_versions(bundle, manifest, contents, tmp_path):
    assert "abstain" not in (bundle / MANIFEST).read_text("utf-8")
    rule = Abstain(PROBABILITY, 0.9, 0.98, 0.95, 0.8)
    abstaining(tmp_path / "bundle", manifest, contents, rule)
    written = json.loads((tmp_path / "bundle" / MANIFEST).read_text("utf-8"))
    assert written["format_version"] == 1
    assert written["heads"][0]["abstain"] == {
        "score": "probability",
        "threshold": 0.9,
        "accuracy": 0.98,
        "confidence": 0.95,
        "coverage": 0.8,
    }
    assert "abstain" not in written["heads"][1]
