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


def test_a_student_that_keeps_heads_learns_slowly_and_heads_alone_fast() -> None:
    assert defaults.student_lr(128, trained_layers=True, keeps_heads=True) == 2.5e-4
    assert defaults.student_lr(128, trained_layers=True, keeps_heads=True, encoder=False) == 0.03


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
    assert defaults.mixed_copies([tokens, 0], [1000, 0], 0.5) == (copies, 0)  # one source in a list


def test_a_small_source_has_more_copies() -> None:
    """The transfer set then has the texts of the sources in the proportion in which they are read."""
    texts, tokens = (15_000, 5_400, 100, 0), (150_000, 270_000, 1_000, 0)
    found = defaults.mixed_copies(tokens, texts, 0.5)
    assert found == (9, 15, 119, 0)
    sizes = [n * (1 + count) / n**0.5 for n, count in zip(texts, found, strict=True) if n]
    assert max(sizes) < 1.1 * min(sizes)
    assert 5.5e6 < sum(n * (1 + count) for n, count in zip(tokens, found, strict=True)) < 6.5e6
    assert defaults.mixed_copies(tokens, texts, 1.0) == (13, 13, 13, 0)


def test_unlabelled_texts_are_one_more_source() -> None:
    tokens, texts = (100_000, 10_000), (10_000, 1_000)
    assert defaults.mixed_copies((*tokens, 90_000), (*texts, 9_000), 0.5) == (25, 83, 27)
    # not one for each: the training texts' own, as without the others
    assert defaults.mixed_copies((*tokens, 6_000_000), (*texts, 600_000), 0.5) == (45, 143, 0)
    assert defaults.mixed_copies((*tokens, 0), (*texts, 0), 0.5) == (45, 143, 0)


@pytest.mark.parametrize(
    "tokens, unlabelled, copies, of_unlabelled",
    [
        (7_500, 0, 160, 160),  # nothing to copy
        (7_500, 160_000, 35, 35),  # every text gets as many
        (1_000_000, 1_000_000, 2, 2),
        (2_000_000, 2_000_000, 1, 1),  # 8 million tokens
        (2_000_000, 2_100_000, 2, 0),  # not one for each: the training texts' own, as without the others
        (7_500, 5_000_000, 160, 0),
        (6_000_000, 90_000_000, 0, 0),
    ],
)
def test_unlabelled_texts_share_the_copies(
    tokens: int, unlabelled: int, copies: int, of_unlabelled: int
) -> None:
    assert defaults.copies(tokens, unlabelled) == copies
    assert defaults.unlabelled_copies(copies, tokens, unlabelled) == of_unlabelled


def test_given_copies_of_unlabelled_texts_keep_the_budget() -> None:
    assert [defaults.unlabelled_copies(n, 1_000_000, 1_000_000) for n in (0, 3, 4)] == [0, 3, 0]


@pytest.mark.parametrize("tokens, epochs", [(3_000_000, 12), (90_000_000, 3), (6_000_000, 6), (1_000, 20)])
def test_student_epochs(tokens: int, epochs: int) -> None:
    assert defaults.student_epochs(tokens) == epochs


@pytest.mark.parametrize("tokens, epochs", [(18_500_000, 16), (1_000_000_000, 3), (1_000, 20)])
def test_pretraining_epochs(tokens: int, epochs: int) -> None:
    assert defaults.pretraining_epochs(tokens) == epochs
