import numpy as np
import pytest

from distill.recipe import defaults


@pytest.mark.parametrize(
    "texts, epochs", [(15_000, 5), (43_410, 3), (1_000_000, 3), (6_920, 5), (1_600, 6), (100, 20), (4, 20)]
)
def test_a_teacher_reads_75000_texts_in_few_epochs(texts: int, epochs: int) -> None:
    assert defaults.teacher_epochs(texts, 32) == epochs


@pytest.mark.parametrize(
    "lengths, tokens",
    [
        ([9] * 19 + [900], 128),
        ([9] * 18 + [129] * 2, 256),
        ([256] * 99, 256),
        ([257] * 99, 512),
        ([9, 9000], 512),
    ],
)
def test_19_of_20_texts_are_read_to_their_end(lengths: list[int], tokens: int) -> None:
    assert defaults.max_length(np.array(lengths)) == tokens


def test_a_wider_encoder_learns_slower() -> None:
    assert defaults.teacher_lr(768) == 5e-5 and defaults.teacher_lr(384) == 1e-4
    assert defaults.student_lr(128, learnt=True) == 1e-3 and defaults.student_lr(512, learnt=True) == 2.5e-4


def test_heads_learn_faster_than_the_encoder_they_read() -> None:
    assert defaults.teacher_head_lr(1e-4) == pytest.approx(3e-3)


def test_few_labels_are_not_standardized() -> None:
    shapes = [("single_label", 2), ("single_label", 9), ("single_label", 10), ("multi_label", 28)]
    assert [defaults.distillation_loss(*shape) for shape in shapes] == ["kl", "kl", "standardized", "kl"]
    temperatures = [defaults.distillation_temperature(loss) for loss in ("kl", "mse", "standardized")]
    assert temperatures == [1, 1, 2]


def test_fresh_layers_learn_faster_than_learnt_ones() -> None:
    assert defaults.student_lr(128, learnt=False) == 2e-3


@pytest.mark.parametrize("tokens, copies", [(210_000, 28), (6_000_000, 0), (90_000_000, 0), (100, 160)])
def test_copies_make_up_six_million_tokens(tokens: int, copies: int) -> None:
    assert defaults.copies(tokens) == copies


@pytest.mark.parametrize("tokens, epochs", [(3_000_000, 12), (90_000_000, 3), (6_000_000, 6), (1_000, 20)])
def test_a_student_reads_36_million_tokens(tokens: int, epochs: int) -> None:
    assert defaults.student_epochs(tokens) == epochs


@pytest.mark.parametrize("tokens, epochs", [(18_500_000, 16), (1_000_000_000, 3), (1_000, 20)])
def test_a_general_start_reads_300_million_tokens(tokens: int, epochs: int) -> None:
    assert defaults.start_epochs(tokens) == epochs
