from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.recipe import defaults
from distill.training.feature_matching import hidden_loss, relation_loss

ROWS, LENGTH, HEADS = 3, 5, 2
LENGTHS = (5, 3, 1)  # real tokens of each text
MASK = torch.tensor([[int(place < length) for place in range(LENGTH)] for length in LENGTHS])


def states(width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, LENGTH, width, generator=generator)


def attention(width: int, seed: int = 0) -> list[torch.Tensor]:
    """Queries, keys and values."""
    return [states(width, 10 * seed + number) for number in range(3)]


def doubles(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


# hidden states


def test_hidden_loss_is_the_naive_mean_over_real_tokens() -> None:
    student, teacher = states(6), states(6, 1)
    s, t = doubles(student), doubles(teacher)
    cells = [
        (s[text, place, unit] - t[text, place, unit]) ** 2
        for text, length in enumerate(LENGTHS)
        for place in range(length)
        for unit in range(6)
    ]
    assert hidden_loss(student, teacher, MASK).item() == pytest.approx(np.mean(cells), rel=1e-5)


def test_hidden_loss_of_equals_is_zero() -> None:
    assert hidden_loss(states(6), states(6), MASK).item() == 0


# relations


def naive_relations(vectors: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    """Of the vectors of one text without padding, `[heads, tokens, tokens]`."""
    length, width = vectors.shape
    d = width // heads
    found = np.zeros((heads, length, length))
    for head in range(heads):
        part = vectors[:, head * d : (head + 1) * d]
        for one in range(length):
            scores = np.array([part[one] @ part[other] / np.sqrt(d) for other in range(length)])
            found[head, one] = np.exp(scores) / np.exp(scores).sum()
    return found


def naive_relation_loss(student: list[torch.Tensor], teacher: list[torch.Tensor], heads: int) -> float:
    total = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        kl = []
        for text, length in enumerate(LENGTHS):
            s = naive_relations(doubles(mine)[text, :length], heads)
            t = naive_relations(doubles(theirs)[text, :length], heads)
            kl += [(t[h, q] * np.log(t[h, q] / s[h, q])).sum() for h in range(heads) for q in range(length)]
        total += float(np.mean(kl))
    return total


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("widths", [(8, 8), (8, 12), (12, 4)])
def test_relation_loss_is_the_naive_sum(widths: tuple[int, int], heads: int) -> None:
    student, teacher = attention(widths[0]), attention(widths[1], 1)
    found = relation_loss(student, teacher, MASK, heads)
    assert found.item() == pytest.approx(naive_relation_loss(student, teacher, heads), rel=1e-4)


def test_relation_loss_of_equals_is_zero() -> None:
    assert relation_loss(attention(8), attention(8), MASK, HEADS).item() == pytest.approx(0, abs=1e-6)


def test_relation_loss_asks_for_heads_of_one_width() -> None:
    with pytest.raises(ValueError, match="3 does not divide the width 8"):
        relation_loss(attention(8), attention(12), MASK, 3)


def test_relations_are_computed_in_float32_under_autocast() -> None:
    student, teacher = attention(8), attention(12, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = relation_loss(student, teacher, MASK, HEADS)
    assert torch.equal(found, relation_loss(student, teacher, MASK, HEADS))


def test_large_vectors_stay_finite() -> None:
    student = [(200 * part).requires_grad_() for part in attention(8)]
    loss = relation_loss(student, [200 * part for part in attention(12, 1)], MASK, HEADS)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite() and all(part.grad is not None and part.grad.isfinite().all() for part in student)


# both


@pytest.mark.parametrize("kind", ["hidden", "relations"])
def test_padding_changes_nothing_and_gets_no_gradient(kind: str) -> None:
    def loss(parts: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        length = mask.shape[1]
        theirs = [part[:, :length] for part in attention(8, 1)]
        if kind == "hidden":
            return hidden_loss(parts[0], theirs[0], mask)
        return relation_loss(parts, theirs, mask, HEADS)

    padded = [part.requires_grad_() for part in attention(8)]
    short = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    more = torch.cat([short, torch.zeros(3, 2, dtype=torch.int64)], 1)
    whole = loss(padded, more)
    torch.testing.assert_close(whole, loss([part[:, :3] for part in padded], short))
    whole.backward()  # type: ignore[no-untyped-call]
    for part in padded[: 1 if kind == "hidden" else 3]:
        moved: Any = part.grad
        assert moved[:, 3:].abs().max() == 0 and moved[2, 1:].abs().max() == 0
        assert moved[0, :3].abs().sum() > 0


# what a recipe leaves open


@pytest.mark.parametrize(
    ("student", "teacher", "layers"),
    [
        (1, 6, (6,)),
        (2, 6, (3, 6)),
        (4, 12, (3, 6, 9, 12)),
        (4, 6, (2, 3, 4, 6)),
        (3, 3, (1, 2, 3)),
        (6, 2, (1, 1, 1, 1, 2, 2)),
    ],
)
def test_layers_are_evenly_spaced_and_the_last_is_the_last(
    student: int, teacher: int, layers: tuple[int, ...]
) -> None:
    assert defaults.matched_layers(student, teacher) == layers


@pytest.mark.parametrize(
    ("widths", "heads"),
    [((384, 768), 48), ((128, 384), 16), ((768, 768), 48), ((312, 768), 24), ((16, 32), 2), ((6, 9), 1)],
)
def test_relation_heads_divide_both_widths(widths: tuple[int, int], heads: int) -> None:
    assert defaults.relation_heads(*widths) == defaults.relation_heads(*widths[::-1]) == heads
    assert not any(width % heads for width in widths)
