from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.heads import Head
from distill.models.base import Batch
from distill.models.classifier import MultiHeadClassifier
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Match
from distill.stages.train import feature_matching
from distill.training.feature_matching import FeatureMatching, Learner, hidden_loss

HEADS = (Head("intent", "single_label", ("a", "b", "c")),)
ARCHITECTURES = ("bert", "distilbert")
Encoders = Callable[..., tuple[Any, Any]]


def batch(rows: int = 4, length: int = 7) -> Batch:
    ids = torch.randint(5, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, length - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def encoders(tiny_bert: Callable[..., Any]) -> Encoders:
    """A function that gives a student of 2 layers of width 16 and a teacher of 3 of width 24."""

    def build(student: str = "bert", teacher: str = "bert", **more: Any) -> tuple[Any, Any]:
        wide = tiny_bert(teacher, **{"layers": 3, "hidden": 24, "attention_heads": 3, "seed": 1} | more)
        return tiny_bert(student, layers=2), wide

    return build


def learner(encoders: Encoders, weight: float = 1.0) -> tuple[Learner, Any]:
    student, teacher = encoders()
    network = MultiHeadClassifier(student, HEADS, dropout=0.0)
    matching = FeatureMatching(student, teacher, Match(hidden=weight)) if weight else None
    return Learner(network, matching), teacher


# the loss


def test_hidden_loss_is_the_naive_mean_over_real_tokens() -> None:
    lengths = (5, 3, 1)
    mask = torch.tensor([[int(place < length) for place in range(5)] for length in lengths])
    student, teacher = (torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    cells = [
        float(student[text, place, unit] - teacher[text, place, unit]) ** 2
        for text, length in enumerate(lengths)
        for place in range(length)
        for unit in range(6)
    ]
    assert hidden_loss(student, teacher, mask).item() == pytest.approx(np.mean(cells), rel=1e-5)
    assert hidden_loss(student, student, mask).item() == 0


def test_padding_changes_nothing_and_gets_no_gradient() -> None:
    student, teacher = (torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    short = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    padded = torch.cat([short, torch.zeros(3, 2, dtype=torch.int64)], 1)
    whole = hidden_loss(student.requires_grad_(), teacher, padded)
    torch.testing.assert_close(whole, hidden_loss(student[:, :3], teacher[:, :3], short))
    whole.backward()  # type: ignore[no-untyped-call]
    moved: Any = student.grad
    assert moved[:, 3:].abs().max() == 0 and moved[2, 1:].abs().max() == 0 and moved[0, :3].abs().sum() > 0


@pytest.mark.parametrize("teacher", ARCHITECTURES)
@pytest.mark.parametrize("student", ARCHITECTURES)
@pytest.mark.parametrize("layers", [None, (3, 1)])
def test_each_layer_is_compared_with_the_teachers_layer_for_it(
    encoders: Encoders, student: str, teacher: str, layers: tuple[int, ...] | None
) -> None:
    mine, theirs = (encoder.eval() for encoder in encoders(student, teacher))
    matching = FeatureMatching(mine, theirs, Match(hidden=1.0, layers=layers))
    last, loss = matching(batch())
    assert matching.layers == (layers or (2, 3))
    assert [tuple(linear.weight.shape) for linear in matching.projections] == [(24, 16)] * 2
    one, other = (e(**batch(), output_hidden_states=True).hidden_states for e in (mine, theirs))
    expected = [
        hidden_loss(project(one[i]), other[j], batch()["attention_mask"])
        for project, i, j in zip(matching.projections, (1, 2), matching.layers, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert loss.item() > 0.01 and torch.equal(last, mine(**batch())[0])


def test_a_student_like_its_teacher_has_nothing_to_learn(tiny_bert: Callable[..., Any]) -> None:
    one, other = (tiny_bert(layers=2, seed=3) for _ in range(2))
    assert FeatureMatching(one, other, Match(hidden=1.0))(batch())[1].item() == pytest.approx(0, abs=1e-6)


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


# the learner


def test_the_logits_are_the_networks_and_the_loss_is_weighted(encoders: Encoders) -> None:
    matched, _ = learner(encoders, weight=3.0)
    logits, losses = matched(batch())
    assert torch.equal(logits, matched.network(batch()))
    assert matched.matching is not None
    torch.testing.assert_close(losses, {"match/hidden": 3.0 * matched.matching(batch())[1]})


def test_without_matching_it_is_the_network_alone(encoders: Encoders) -> None:
    plain, _ = learner(encoders, weight=0)
    logits, losses = plain(batch())
    assert torch.equal(logits, plain.network(batch())) and losses == {}
    assert set(plain.state_dict()) == {f"network.{name}" for name in plain.network.state_dict()}


def test_the_teacher_is_neither_trained_nor_saved(encoders: Encoders) -> None:
    matched, teacher = learner(encoders)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    owned = {id(parameter) for parameter in matched.parameters()}
    assert not any(id(parameter) in owned for parameter in teacher.parameters())
    assert len(owned) == len([*matched.network.parameters()]) + 4  # a weight and a bias a projection
    matched.train()
    assert not teacher.training and matched.network.encoder.training
    optimizer = torch.optim.AdamW(matched.parameters(), lr=0.01)
    history = []
    for _ in range(60):
        loss = matched(batch())[1]["match/hidden"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


# faults


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((3,), "match.layers: 1 numbers for a student of 2 layers"),
        ((2, 4), "match.layers: 4, but the teacher has 3 layers"),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    encoders: Encoders, layers: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        FeatureMatching(*encoders(), Match(hidden=1, layers=layers))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_student_and_teacher_must_read_the_same_tokens(encoders: Encoders, tiny_tokenizer: Any) -> None:
    student, teacher = encoders(positions=12)
    network = MultiHeadClassifier(student, HEADS)

    def match(hidden: float, tokenizer: Any, tokens: int) -> FeatureMatching | None:
        loaded = MultiHeadClassifier(teacher, HEADS), tiny_tokenizer
        return feature_matching(Match(hidden=hidden), lambda: loaded, network, tokenizer, tokens)

    assert match(0.0, tiny_tokenizer, 12) is None
    found = match(1.0, tiny_tokenizer, 12)
    assert found is not None and found.layers == (2, 3)
    with pytest.raises(
        RecipeError, match=r"match: the student reads 13 tokens .* the teacher has 12 positions"
    ):
        match(1.0, tiny_tokenizer, 13)
    other = SimpleNamespace(get_vocab=lambda: {**tiny_tokenizer.get_vocab(), "parcel": 999})
    with pytest.raises(RecipeError, match="match: the student's vocabulary differs from the teacher's"):
        match(1.0, other, 12)
