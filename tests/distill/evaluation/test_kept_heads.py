"""The gates of heads that a student keeps from an earlier run."""

import numpy as np

from distill.evaluation.calibration import Calibration
from distill.evaluation.kept_heads import check_kept
from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.recipe.schema import Gates

INTENT = Head("intent", "single_label", ("a", "b"))
FLAGS = Head("flags", "multi_label", ("x", "y"))
SAME = (Calibration(), Calibration())


def answers(labels: list[int]) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[labels] * 4


def test_an_unchanged_head_passes():
    labels = np.array([0, 1] * 50)
    found, refused = check_kept(INTENT, answers(labels), answers(labels), labels, SAME, Gates())
    assert refused == [] and found["noise"] == []
    assert (found["changed"], found["difference"], found["before"], found["after"]) == (0, 0, 1, 1)


def test_changed_decisions_and_a_drop_are_refused():
    labels = np.array([0, 1] * 500)
    now = labels.copy()
    now[:60] = 1 - now[:60]
    found, refused = check_kept(INTENT, answers(labels), answers(now), labels, SAME, Gates())
    assert found["changed"] == 0.06 and found["after"] == 0.94
    assert refused == [
        "kept head 'intent': 0.0600 of its decisions of 1000 texts of test changed, more than 0.03 "
        "(gates.kept_changed)",
        "kept head 'intent': its accuracy drops from 1.0000 to 0.9400 on 1000 labelled texts of test, by "
        "more than 0.003 (gates.kept_drop)",
    ]
    loose = Gates(kept_changed=0.1, kept_drop=0.1)
    assert check_kept(INTENT, answers(labels), answers(now), labels, SAME, loose)[1] == []


def test_what_few_texts_cannot_tell_from_noise_is_noted():
    labels = np.array([0, 1] * 10)
    now = labels.copy()
    now[0] = 1
    found, refused = check_kept(INTENT, answers(labels), answers(now), labels, SAME, Gates())
    assert refused == [] and len(found["noise"]) == 2


def test_labelled_texts_count_and_without_any_all_texts():
    labels = np.full(100, UNLABELLED)
    before, now = answers([0] * 100), answers([1] * 50 + [0] * 50)
    found, refused = check_kept(INTENT, before, now, labels, SAME, Gates())
    assert found["texts"] == 100 and found["changed"] == 0.5 and "before" not in found and len(refused) == 1
    labels[50:] = 0
    found, refused = check_kept(INTENT, before, now, labels, SAME, Gates())
    assert found["texts"] == 50 and found["changed"] == 0 and refused == []


def test_each_side_has_its_own_thresholds():
    logits = np.full((200, 2), 1.0, np.float32)  # a probability of 0.73
    labels = np.ones((200, 2), np.int8)
    labels[:100] = UNKNOWN
    fitted = Calibration(1.0, (0.5, 0.5)), Calibration(1.0, (0.5, 0.9))
    found, refused = check_kept(FLAGS, logits, logits, labels, fitted, Gates())
    assert found["texts"] == 100 and found["changed"] == 0.5 and found["difference"] == 0
    assert found["before"] == 1 and found["after"] < 0.7 and len(refused) == 2
