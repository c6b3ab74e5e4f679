import numpy as np
import pytest

from distill.evaluation import floor
from distill.evaluation.floor import floors
from distill.heads import UNKNOWN, UNLABELLED, Head

SPLITS = {"train": (300, 0), "validation": (60, 1), "test": (90, 2)}


@pytest.fixture
def data(toy_corpus, toy_heads):
    corpora = {split: toy_corpus(*shape) for split, shape in SPLITS.items()}
    texts = {split: corpus.texts for split, corpus in corpora.items()}
    return toy_heads, texts, {split: corpus.labels for split, corpus in corpora.items()}


def test_the_floor_learns_what_words_tell(data) -> None:
    heads, texts, labels = data
    found = floors(heads, texts, labels)
    for head in heads:
        assert found[head.name].train_texts == 300
        answers = found[head.name].answers["test"]
        assert answers.quality(labels["test"][head.name])[head.first_metric] > 0.95
        assert answers.logits.shape == (90, len(head.labels))
        again = floors(heads, texts, labels)[head.name].answers["test"]
        assert np.array_equal(answers.logits, again.logits) and answers.thresholds == again.thresholds


def test_only_labelled_texts_are_learnt(data) -> None:
    heads, texts, labels = data
    train = {"intent": labels["train"]["intent"].copy(), "flags": labels["train"]["flags"].copy()}
    train["intent"][10:], train["flags"][:] = UNLABELLED, UNKNOWN
    found = floors(heads, texts, {**labels, "train": train})
    assert {name: one.train_texts for name, one in found.items()} == {"intent": 10}
    train["intent"][:] = UNLABELLED
    assert floors(heads, texts, {**labels, "train": train}) == {}


def test_texts_without_a_word_have_no_floor(data) -> None:
    heads, texts, labels = data
    assert floors(heads, {**texts, "train": ["!?"] * 300}, labels) == {}


def test_labels_that_all_texts_have_or_none(data) -> None:
    heads, texts, labels = data
    train = {"intent": np.full(300, 1), "flags": np.tile(np.array([1, 0], np.int8), (300, 1))}
    found = floors(heads, texts, {**labels, "train": train})
    assert (found["intent"].answers["test"].decisions == 1).all()
    assert (found["flags"].answers["test"].p > 0.5).all(0).tolist() == [True, False]
    train["intent"][0] = 2  # a label of one text
    found = floors([Head("intent", "single_label", ("a", "b", "c"))], texts, {**labels, "train": train})
    assert np.isfinite(found["intent"].answers["test"].logits).all()


def test_validation_without_labels(data) -> None:
    heads, texts, labels = data
    none = {"intent": np.full(60, UNLABELLED), "flags": np.full((60, 2), UNKNOWN, np.int8)}
    found = floors(heads, texts, {**labels, "validation": none})
    assert found["flags"].answers["test"].thresholds == (0.5, 0.5)


def test_a_sample_of_many_texts(data, monkeypatch) -> None:
    heads, texts, labels = data
    monkeypatch.setattr(floor, "MOST", sum(map(len, texts["train"])) // 2)
    monkeypatch.setattr(floor, "MOST_TIMES_LABELS", 2 * floor.MOST)
    found = {name: one.train_texts for name, one in floors(heads, texts, labels).items()}
    assert 140 < found["flags"] < 160 and 90 < found["intent"] < 110
