import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest

from distill.evaluation.calibration import Calibration
from distill.evaluation.significance import changed_p_value, drop_p_value, log_loss_p_value
from distill.heads import UNKNOWN, UNLABELLED, Head

INTENT = Head("intent", "single_label", ("a", "b"))
FLAGS = Head("flags", "multi_label", ("x", "y", "z"))


def answers(right: int, wrong: int, texts: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of fp32 and int8, where `right` texts only int8 has right and `wrong` only fp32; the labels."""
    labels = np.arange(texts) % 2
    fp32 = np.eye(2)[labels] * 4.0
    int8 = fp32.copy()
    int8[:wrong] = int8[:wrong, ::-1]
    fp32[wrong : wrong + right] = fp32[wrong : wrong + right, ::-1]
    return fp32, int8, labels


@pytest.mark.parametrize("right, wrong", [(0, 0), (0, 1), (0, 4), (0, 5), (2, 2), (1, 9), (4, 12)])
def test_a_drop_of_accuracy_has_the_p_value_of_mcnemars_exact_test(right, wrong):
    fp32, int8, labels = answers(right, wrong)
    exact = binomtest(wrong, right + wrong, alternative="greater").pvalue if right + wrong else 1.0
    assert drop_p_value(INTENT, fp32, int8, labels, Calibration(1.0)) == pytest.approx(exact, abs=0.02)


def test_unlabelled_texts_do_not_count():
    fp32, int8, labels = answers(0, 12)
    assert drop_p_value(INTENT, fp32, int8, labels, Calibration(1.0)) < 0.01
    labels[:12] = UNLABELLED
    assert drop_p_value(INTENT, fp32, int8, labels, Calibration(1.0)) == 1.0


def test_a_drop_of_micro_f1_and_a_rise_of_the_log_loss():
    draw = np.random.default_rng(0)
    labels = (draw.random((300, 3)) < 0.3).astype(int)
    fp32 = np.where(labels == 1, 3.0, -3.0)
    slightly, much = (np.where(draw.random((300, 1)) < share, -fp32, fp32) for share in (0.003, 0.06))
    fitted = Calibration(1.0, (0.5, 0.5, 0.5))
    for p_value in (drop_p_value, log_loss_p_value):
        assert p_value(FLAGS, fp32, fp32, labels, fitted) == 1.0
        assert p_value(FLAGS, fp32, slightly, labels, fitted) > 0.05
        assert p_value(FLAGS, fp32, much, labels, fitted) < 0.005
        assert p_value(FLAGS, much, fp32, labels, fitted) > 0.99


def test_the_share_of_changed_decisions():
    assert changed_p_value(2, 40, 0.03) > 0.05  # 5 % of 40 texts
    assert changed_p_value(200, 4000, 0.03) < 0.001  # 5 % of 4,000
    assert changed_p_value(0, 0, 0.03) == 1.0
    assert changed_p_value(1, 40, 0.0) == 0.0


def test_many_texts_need_little_memory():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 20_000)
    fp32 = draw.normal(size=(20_000, 2))
    int8 = fp32 + draw.normal(size=fp32.shape) / 100
    tracemalloc.start()
    log_loss_p_value(INTENT, fp32, int8, labels, Calibration(1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


@pytest.mark.parametrize("p_value", [drop_p_value, log_loss_p_value])
def test_a_head_without_labelled_texts_has_nothing_to_test(p_value):
    logits = np.zeros((4, 2))
    assert p_value(INTENT, logits, logits, np.full(4, UNLABELLED), Calibration()) == 1.0
    assert p_value(FLAGS, np.zeros((4, 3)), np.ones((4, 3)), np.full((4, 3), UNKNOWN), Calibration()) == 1.0
