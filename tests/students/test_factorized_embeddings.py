"""Factorised embeddings: initialised from a table, trained as a projection, stored as a table."""

from typing import Any

import pytest
import torch

from students.factorized_embeddings import FactorizedEmbedding, factorize, fold
from students.init_from_teacher import init_from_teacher
from students.shapes import Shape, build_encoder

IDS = torch.randint(1, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def encoder(hidden: int) -> Any:
    torch.manual_seed(hidden)
    shape = Shape(1, hidden, 2)
    return build_encoder(shape, vocabulary=60, positions=20, pad=0).eval()


@pytest.fixture
def pair() -> tuple[Any, Any]:
    student, teacher = encoder(8), encoder(16)
    init_from_teacher(student, teacher)
    return student, teacher


@torch.no_grad()
def test_the_product_is_initially_the_table(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    before, table = student(IDS)[0], student.get_input_embeddings().weight.clone()
    factorize(student, teacher)
    torch.testing.assert_close(student(IDS)[0], before, atol=1e-4, rtol=0)
    torch.testing.assert_close(student.get_input_embeddings().folded().weight, table, atol=1e-5, rtol=0)


def test_training_changes_the_embeddings_of_all_words(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    factorize(student, teacher)
    embeddings = student.get_input_embeddings()
    before = embeddings.folded().weight.detach().clone()
    torch.manual_seed(1)
    (student(IDS[:, :2])[0] * torch.randn(8)).sum().backward()
    torch.optim.SGD(student.parameters(), lr=1.0).step()
    assert ((embeddings.folded().weight - before).abs().sum(1) > 0).all()
    words = teacher.get_input_embeddings().weight.detach()
    assert torch.equal(embeddings.table, words - words.mean(0))


@torch.no_grad()
def test_folding_gives_an_equal_plain_table(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    names = set(student.state_dict())
    factorize(student, teacher)
    assert not any(name.endswith(".table") for name in student.state_dict()), "checkpoints hold no table"
    student.get_input_embeddings().projection.add_(0.1)
    before = student(IDS)[0]
    fold(student)
    torch.testing.assert_close(student(IDS)[0], before, atol=1e-4, rtol=0)
    assert set(student.state_dict()) == names
    fold(student)
    assert set(student.state_dict()) == names


def test_a_projection_has_the_shapes_it_says() -> None:
    found = FactorizedEmbedding(torch.randn(5, 4), torch.randn(4, 3))
    assert found(torch.tensor([[0, 4]])).shape == (1, 2, 3) and found.folded().weight.shape == (5, 3)


def test_the_projection_is_in_c_order(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    factorize(student, teacher)
    assert student.get_input_embeddings().projection.is_contiguous()
