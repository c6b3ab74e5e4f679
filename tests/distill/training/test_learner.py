from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.heads import Head
from distill.models.classifier import Network, save_network
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Match
from distill.training.feature_matching import hidden_loss, relation_loss
from distill.training.learner import Inside, Learner, Matching, Reader, load_matching

HEADS = (Head("intent", "single_label", ("a", "b", "c")),)
ALL = Match(hidden=1.0, embeddings=0.5, relations=2.0)
# bert's and distilbert's names of an attention's maps
MAPS = {
    "bert": ("encoder.layer.{}.attention.self.query", "encoder.layer.{}.attention.self.key", "value"),
    "distilbert": ("transformer.layer.{}.attention.q_lin", "transformer.layer.{}.attention.k_lin", "v_lin"),
}
ARCHITECTURES = pytest.mark.parametrize("architecture", list(MAPS))


def batch(rows: int = 4, length: int = 7) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, length - 3 :] = 0
    return ids, mask


def hooked(encoder: nn.Module) -> list[nn.Module]:
    """The linear maps with a hook; transformers 5 leaves hooks of its own on whole layers."""
    return [m for m in encoder.modules() if isinstance(m, nn.Linear) and m._forward_hooks]


@pytest.fixture
def encoders(tiny_bert: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """A function that gives a student of 2 layers of width 16 and a teacher of 3 of width 24.

    The teacher's attention is made to tell tokens apart, as fresh weights hardly do.
    """

    def build(student: str = "bert", teacher: str = "bert", **more: Any) -> tuple[Any, Any]:
        wide = tiny_bert(teacher, **{"layers": 3, "hidden": 24, "attention_heads": 3, "seed": 1} | more)
        with torch.no_grad():
            for name, weight in wide.named_parameters():
                weight.mul_(10 if ".attention." in name and weight.ndim == 2 else 1)
        return tiny_bert(student, layers=2), wide

    return build


# reading


@ARCHITECTURES
def test_hidden_states_are_those_of_the_embeddings_and_each_layer(
    tiny_bert: Callable[..., Any], architecture: str
) -> None:
    encoder = tiny_bert(architecture, layers=2).eval()
    ids, mask = batch()
    inside = Reader(encoder, "student", None)(ids, mask)
    assert [tuple(state.shape) for state in inside.hidden] == [(4, 7, 16)] * 3 and inside.attention == ()
    assert torch.equal(inside.hidden[0], encoder.embeddings(ids))
    assert torch.equal(inside.hidden[2], encoder(input_ids=ids, attention_mask=mask)[0])
    stack = encoder.encoder.layer if architecture == "bert" else encoder.transformer.layer
    del stack[1:]
    encoder.config.num_hidden_layers = 1
    assert torch.equal(inside.hidden[1], encoder(input_ids=ids, attention_mask=mask)[0])


@ARCHITECTURES
@pytest.mark.parametrize("layer", [1, 2])
def test_attention_is_that_of_the_layer(tiny_bert: Callable[..., Any], architecture: str, layer: int) -> None:
    encoder = tiny_bert(architecture, layers=2).eval()
    ids, mask = batch()
    before = encoder(input_ids=ids, attention_mask=mask)[0]
    inside = Reader(encoder, "student", layer)(ids, mask)
    query, key, value = MAPS[architecture]
    value = key.rpartition(".")[0] + "." + value
    expected = [
        encoder.get_submodule(name.format(layer - 1))(inside.hidden[layer - 1])
        for name in (query, key, value)
    ]
    assert len(inside.attention) == 3
    assert all(torch.equal(*pair) for pair in zip(inside.attention, expected, strict=True))
    # and nothing is left in the encoder
    assert not hooked(encoder)
    assert torch.equal(before, encoder(input_ids=ids, attention_mask=mask)[0])


def test_nothing_is_left_after_a_failure(tiny_bert: Callable[..., Any]) -> None:
    encoder = tiny_bert()
    with pytest.raises(IndexError):
        Reader(encoder, "student", 1)(torch.full((1, 4), 10_000), torch.ones(1, 4))
    assert not hooked(encoder)


# losses


@pytest.mark.parametrize("teacher", list(MAPS))
@pytest.mark.parametrize("student", list(MAPS))
def test_every_loss_compares_the_layers_it_should(
    encoders: Callable[..., tuple[Any, Any]], student: str, teacher: str
) -> None:
    mine, theirs = (encoder.eval() for encoder in encoders(student, teacher))
    ids, mask = batch()
    matching = Matching(mine, theirs, ALL)
    hidden, losses = matching(ids, mask)
    assert matching.layers == (2, 3) and matching.relation_heads == 2
    one: Inside = Reader(mine, "student", 2)(ids, mask)
    other: Inside = Reader(theirs, "teacher", 3)(ids, mask)
    maps: dict[str, Any] = dict(matching.projections.items())
    assert {name: tuple(linear.weight.shape) for name, linear in maps.items()} == dict.fromkeys(
        "120", (24, 16)
    )
    pairs = [hidden_loss(maps[str(i)](one.hidden[i]), other.hidden[j], mask) for i, j in ((1, 2), (2, 3))]
    torch.testing.assert_close(losses["hidden"], (pairs[0] + pairs[1]) / 2)
    expected = hidden_loss(maps["0"](one.hidden[0]), other.hidden[0], mask)
    torch.testing.assert_close(losses["embeddings"], expected)
    torch.testing.assert_close(losses["relations"], relation_loss(one.attention, other.attention, mask, 2))
    assert all(loss.item() > 0.01 for loss in losses.values())
    assert torch.equal(hidden, one.hidden[2])


def test_layers_and_relation_heads_as_asked(encoders: Callable[..., tuple[Any, Any]]) -> None:
    mine, theirs = (encoder.eval() for encoder in encoders())
    ids, mask = batch()
    matching = Matching(mine, theirs, Match(hidden=1, relations=1, layers=(3, 1), relation_heads=8))
    _, losses = matching(ids, mask)
    one, other = Reader(mine, "student", 2)(ids, mask), Reader(theirs, "teacher", 1)(ids, mask)
    maps: dict[str, Any] = dict(matching.projections.items())
    pairs = [hidden_loss(maps[str(i)](one.hidden[i]), other.hidden[j], mask) for i, j in ((1, 3), (2, 1))]
    torch.testing.assert_close(losses["hidden"], (pairs[0] + pairs[1]) / 2)
    torch.testing.assert_close(losses["relations"], relation_loss(one.attention, other.attention, mask, 8))


@pytest.mark.parametrize("part", ["hidden", "embeddings", "relations"])
def test_only_what_is_asked_for_is_computed(encoders: Callable[..., tuple[Any, Any]], part: str) -> None:
    matching = Matching(*encoders(), Match(**{part: 0.5}))
    _, losses = matching(*batch())
    assert matching.weights == {part: 0.5} and set(losses) == {part}
    assert len(matching.projections) == {"hidden": 2, "embeddings": 1, "relations": 0}[part]


def test_a_student_like_its_teacher_has_nothing_to_learn(tiny_bert: Callable[..., Any]) -> None:
    one, other = (tiny_bert(layers=2, seed=3) for _ in range(2))
    _, losses = Matching(one, other, ALL)(*batch())
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in losses.values())


# learning


def learner(encoders: Callable[..., tuple[Any, Any]], match: Match = ALL) -> tuple[Learner, Any]:
    mine, theirs = encoders()
    network = Network(mine, HEADS, dropout=0.0)
    return Learner(network, Matching(mine, theirs, match) if match.weights else None), theirs


def test_the_logits_are_the_networks(encoders: Callable[..., tuple[Any, Any]]) -> None:
    matched, _ = learner(encoders)
    ids, mask = batch()
    logits, losses = matched(ids, mask)
    assert torch.equal(logits, matched.network(ids, mask))
    assert set(losses) == set(matched.weights) == {"hidden", "embeddings", "relations"}


def test_without_matching_it_is_the_network_alone(encoders: Callable[..., tuple[Any, Any]]) -> None:
    plain, _ = learner(encoders, Match())
    ids, mask = batch()
    logits, losses = plain(ids, mask)
    assert torch.equal(logits, plain.network(ids, mask)) and losses == {} == plain.weights
    assert set(plain.state_dict()) == {f"network.{name}" for name in plain.network.state_dict()}


def test_the_teacher_neither_learns_nor_is_kept(encoders: Callable[..., tuple[Any, Any]]) -> None:
    matched, teacher = learner(encoders)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    owned = {id(parameter) for parameter in matched.parameters()}
    assert not any(id(parameter) in owned for parameter in teacher.parameters())
    assert not any("teacher" in name for name in matched.state_dict())
    matched.train()
    assert not teacher.training and matched.network.encoder.training
    optimizer = torch.optim.AdamW(matched.parameters(), lr=0.01)
    for _ in range(3):
        logits, losses = matched(*batch())
        (logits.square().mean() + sum(losses.values())).backward()
        assert all(parameter.grad is not None for parameter in matched.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_every_loss_can_be_brought_down(encoders: Callable[..., tuple[Any, Any]]) -> None:
    matched, _ = learner(encoders)
    optimizer = torch.optim.AdamW(matched.parameters(), lr=0.01)
    history = []
    for _ in range(60):
        _, losses = matched(*batch())
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({part: loss.item() for part, loss in losses.items()})
    assert all(history[-1][part] < 0.5 * history[0][part] for part in matched.weights)


# faults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 1, "layers": (3,)}, "match.layers: 1 numbers for a student of 2 layers"),
        ({"hidden": 1, "layers": (2, 4)}, "match.layers: 4, but the teacher has 3 layers"),
        (
            {"relations": 1, "relation_heads": 3},
            "match.relation_heads: 3 does not divide both the student's width 16 and the teacher's 24 "
            "(leave it out for 2)",
        ),
    ],
)
def test_what_does_not_fit_the_encoders(
    encoders: Callable[..., tuple[Any, Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        Matching(*encoders(), Match(**settings))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_attention_of_another_kind(encoders: Callable[..., tuple[Any, Any]], side: str) -> None:
    mine, theirs = encoders()
    for layer in (mine if side == "student" else theirs).encoder.layer:
        layer.attention.self.joint = nn.Linear(4, 4)
        del layer.attention.self.query
    with pytest.raises(RecipeError, match=rf"match.relations: the {side}'s BertModel has no queries"):
        Matching(mine, theirs, ALL)
    Matching(mine, theirs, Match(hidden=1))


@pytest.fixture
def saved(encoders: Callable[..., tuple[Any, Any]], tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """The folder of a teacher with 12 positions."""
    save_network(Network(encoders(positions=12)[1], HEADS), tiny_tokenizer, tmp_path)
    return tmp_path


def test_a_teacher_is_loaded_where_something_is_matched(
    saved: Path, encoders: Callable[..., tuple[Any, Any]], tiny_tokenizer: Any
) -> None:
    network = Network(encoders()[0], HEADS)
    device = torch.device("cpu")
    found = load_matching(saved, network, tiny_tokenizer, 12, ALL, device)
    assert found is not None and found.layers == (2, 3)
    nowhere = saved / "none"
    assert load_matching(nowhere, network, tiny_tokenizer, 12, Match(layers=(1, 2)), device) is None


def test_student_and_teacher_read_the_same_tokens(
    saved: Path, encoders: Callable[..., tuple[Any, Any]], tiny_tokenizer: Any
) -> None:
    network, device = Network(encoders()[0], HEADS), torch.device("cpu")
    with pytest.raises(
        RecipeError, match=r"match: the student reads 13 tokens .* the teacher has 12 positions"
    ):
        load_matching(saved, network, tiny_tokenizer, 13, ALL, device)

    class Other:
        def get_vocab(self) -> dict[str, int]:
            return {**tiny_tokenizer.get_vocab(), "parcel": 999}

    with pytest.raises(RecipeError, match="match: the student's vocabulary is not the teacher's"):
        load_matching(saved, network, Other(), 12, ALL, device)
