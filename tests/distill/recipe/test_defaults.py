import numpy as np
import pytest

from distill.recipe import defaults


@pytest.mark.parametrize(
    "texts, epochs", [(15_000, 5), (43_410, 3), (1_000_000, 3), (6_920, 5), (1_600, 6), (100, 20), (4, 20)]
)
def test_teacher_epochs(texts: int, epochs: int) -> None:
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
def test_max_length_truncates_at_most_5_percent_of_the_texts(lengths: list[int], tokens: int) -> None:
    assert defaults.max_length(np.array(lengths)) == tokens


def test_learning_rates_decrease_with_the_width() -> None:
    assert defaults.teacher_lr(768) == 5e-5 and defaults.teacher_lr(384) == 1e-4
    assert (
        defaults.student_lr(128, trained_layers=True) == 1e-3
        and defaults.student_lr(512, trained_layers=True) == 2.5e-4
    )


def test_heads_have_a_higher_learning_rate_than_the_encoder() -> None:
    assert defaults.teacher_head_lr(1e-4) == pytest.approx(3e-3)


def test_distillation_loss_and_temperature() -> None:
    shapes = [("single_label", 2), ("single_label", 9), ("single_label", 10), ("multi_label", 28)]
    assert [defaults.distillation_loss(*shape) for shape in shapes] == ["kl", "kl", "standardized", "kl"]
    temperatures = [defaults.distillation_temperature(loss) for loss in ("kl", "mse", "standardized")]
    assert temperatures == [1, 1, 2]


def test_new_layers_have_a_higher_learning_rate() -> None:
    assert defaults.student_lr(128, trained_layers=False) == 2e-3


@pytest.mark.parametrize("tokens, copies", [(210_000, 28), (6_000_000, 0), (90_000_000, 0), (100, 160)])
def test_copies(tokens: int, copies: int) -> None:
    assert defaults.copies(tokens) == copies


@pytest.mark.parametrize("tokens, epochs", [(3_000_000, 12), (90_000_000, 3), (6_000_000, 6), (1_000, 20)])
def test_student_epochs(tokens: int, epochs: int) -> None:
    assert defaults.student_epochs(tokens) == epochs


@pytest.mark.parametrize("tokens, epochs", [(18_500_000, 16), (1_000_000_000, 3), (1_000, 20)])
def test_pretraining_epochs(tokens: int, epochs: int) -> None:
    assert defaults.pretraining_epochs(tokens) == epochs
