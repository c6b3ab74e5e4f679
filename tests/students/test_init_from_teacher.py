"""A student with all layers of its teacher computes the same hidden states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from students.init_from_teacher import init_from_teacher
from students.shapes import Shape, build_encoder

VOCABULARY, POSITIONS = 60, 20
ARCHITECTURES = ("bert", "distilbert")
pairs = pytest.mark.parametrize("teacher_kind, student_kind", [(kind, "bert") for kind in ARCHITECTURES])


def encoder(
    kind: str, layers: int = 3, hidden: int = 16, *, seed: int = 0, heads: int = 4, **settings: Any
) -> Any:
    """An encoder with every weight drawn at random, biases and normalisations included."""
    arguments = {"vocabulary": VOCABULARY, "positions": POSITIONS, "pad": 0, **settings}
    torch.manual_seed(seed)
    if kind == "bert":
        built = build_encoder(Shape(layers, hidden, heads), **arguments)
    else:
        config = DistilBertConfig(
            vocab_size=arguments["vocabulary"],
            max_position_embeddings=arguments["positions"],
            dim=hidden,
            n_layers=layers,
            n_heads=heads,
            hidden_dim=4 * hidden,
            attn_implementation="eager",
        )
        built = DistilBertModel(config)
    with torch.no_grad():
        for name, weight in built.named_parameters():
            mean = 1.0 if "norm.weight" in name.lower() else 0.0
            weight.normal_(mean, 0.3)
    return built.eval()


def states(network: Any) -> torch.Tensor:
    """Hidden states of two texts, the second one padded."""
    torch.manual_seed(7)
    ids = torch.randint(1, VOCABULARY, (2, 12))
    mask = torch.ones_like(ids)
    ids[1, 7:], mask[1, 7:] = 0, 0
    with torch.no_grad():
        hidden = network(input_ids=ids, attention_mask=mask)[0]
    return torch.cat([hidden[0], hidden[1, :7]])


def words(network: Any) -> Any:
    return network.embeddings.word_embeddings.weight.detach().numpy().astype(np.float64)


def positions(network: Any) -> Any:
    return network.embeddings.position_embeddings.weight.detach().numpy().astype(np.float64)


@pairs
def test_all_layers_give_the_same_hidden_states(teacher_kind: str, student_kind: str) -> None:
    teacher, student = encoder(teacher_kind, seed=1), encoder(student_kind, seed=2)
    assert not torch.allclose(states(student), states(teacher), atol=0.1)
    copied = init_from_teacher(student, teacher)
    torch.testing.assert_close(states(student), states(teacher), atol=1e-5, rtol=0)
    assert copied == ["word embeddings", "position embeddings", "layer 0", "layer 1", "layer 2"]


@pairs
def test_fewer_positions_than_the_teacher(teacher_kind: str, student_kind: str) -> None:
    teacher = encoder(teacher_kind, seed=1)
    student = encoder(student_kind, seed=2, positions=12)
    init_from_teacher(student, teacher)
    torch.testing.assert_close(states(student), states(teacher), atol=1e-5, rtol=0)


@pairs
def test_more_positions_than_the_teacher(teacher_kind: str, student_kind: str) -> None:
    teacher = encoder(teacher_kind, seed=1)
    student = encoder(student_kind, seed=2, positions=POSITIONS + 4)
    init_from_teacher(student, teacher)
    torch.testing.assert_close(states(student), states(teacher), atol=1e-5, rtol=0)
    assert np.isfinite(positions(student)).all()


def test_weights_are_copied(*, kind: str = "bert") -> None:
    """Training the student does not change the teacher."""
    teacher, student = encoder(kind, seed=1), encoder(kind, seed=2)
    before = states(teacher)
    init_from_teacher(student, teacher)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    assert torch.equal(states(teacher), before)
    assert all(weight.requires_grad for weight in student.parameters())


@pairs
@pytest.mark.parametrize(
    "have, want, chosen",
    [
        (6, 1, [0]),
        (6, 2, [0, 5]),
        (7, 3, [0, 3, 6]),
        (7, 4, [0, 2, 4, 6]),
        (12, 6, [0, 2, 4, 7, 9, 11]),
    ],
)
def test_evenly_spaced_layers(
    teacher_kind: str, student_kind: str, have: int, want: int, chosen: list[int]
) -> None:
    teacher = encoder(teacher_kind, have, 8, seed=1, heads=2)
    student = encoder(student_kind, want, 8, seed=2, heads=2)
    copied = init_from_teacher(student, teacher)
    assert copied[2:] == [f"layer {number}" for number in chosen]
    stack = teacher.encoder if teacher_kind == "bert" else teacher.transformer
    stack.layer = torch.nn.ModuleList([stack.layer[number] for number in chosen])
    teacher.config.num_hidden_layers = want
    torch.testing.assert_close(states(student), states(teacher), atol=1e-5, rtol=0)


def layer_weights(network: Any) -> dict[str, torch.Tensor]:
    return {n: w.detach().clone() for n, w in network.named_parameters() if ".layer." in n}


@pairs
def test_narrower_student_takes_only_embeddings(teacher_kind: str, student_kind: str) -> None:
    teacher = encoder(teacher_kind, seed=1)
    student = encoder(student_kind, hidden=8, heads=2, seed=2)
    before = layer_weights(student)
    norm = student.embeddings.LayerNorm.weight.detach().clone()
    assert init_from_teacher(student, teacher) == ["word embeddings", "position embeddings"]
    for name, weight in layer_weights(student).items():
        assert torch.equal(weight, before[name]), name
    assert torch.equal(student.embeddings.LayerNorm.weight, norm)
    assert not student.embeddings.token_type_embeddings.weight.any()


@pytest.mark.parametrize("width", [4, 8, 12])
def test_projection_keeps_the_most_variance(width: int) -> None:
    """Its inner products are the best approximation of that rank (Eckart and Young)."""
    teacher, student = encoder("bert", seed=1), encoder("bert", hidden=width, heads=2, seed=2)
    init_from_teacher(student, teacher)
    full = words(teacher) - words(teacher).mean(0)
    found = words(student)
    singular = np.linalg.svd(full, compute_uv=False)
    error = np.linalg.norm(full @ full.T - found @ found.T)
    best = np.sqrt((singular[width:] ** 4).sum())
    assert error == pytest.approx(best, rel=1e-4)
    # the kept variance too, in descending order
    kept = (found**2).sum(0)
    np.testing.assert_allclose(kept, singular[:width] ** 2, rtol=1e-4)


def test_words_and_positions_have_the_same_projection() -> None:
    """The encoder adds word and position embeddings, so one projection must map both."""
    teacher, student = encoder("distilbert", seed=1), encoder("bert", hidden=8, seed=2)
    init_from_teacher(student, teacher)
    full = words(teacher) - words(teacher).mean(0)
    basis, *_ = np.linalg.lstsq(full, words(student), rcond=None)
    np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-4)
    moved = positions(teacher) - positions(teacher).mean(0)
    np.testing.assert_allclose(positions(student), moved @ basis, atol=1e-4)


def test_equal_widths_copy_embeddings() -> None:
    teacher, student = encoder("bert", seed=1), encoder("bert", seed=2)
    init_from_teacher(student, teacher)
    np.testing.assert_array_equal(words(student), words(teacher))
    np.testing.assert_array_equal(positions(student), positions(teacher))
    types = student.embeddings.token_type_embeddings.weight
    assert torch.equal(types[0], teacher.embeddings.token_type_embeddings.weight[0])
    assert not types[1].any()


def test_teacher_in_half_precision() -> None:
    teacher, student = encoder("bert", seed=1).bfloat16(), encoder("bert", hidden=8, seed=2)
    init_from_teacher(student, teacher)
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert np.isfinite(words(student)).all()


def test_other_feed_forward_width_takes_no_layers() -> None:
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, **shape)
    student = encoder("bert", seed=2)
    before = layer_weights(student)
    copied = init_from_teacher(student, BertModel(config, add_pooling_layer=False))
    assert copied == ["word embeddings", "position embeddings"]
    assert all(torch.equal(weight, before[name]) for name, weight in layer_weights(student).items())


@pairs
def test_deeper_student_takes_no_layers(teacher_kind: str, student_kind: str) -> None:
    teacher, student = encoder(teacher_kind, 2, seed=1), encoder(student_kind, 3, seed=2)
    assert init_from_teacher(student, teacher) == ["word embeddings", "position embeddings"]


def test_wider_student_is_refused() -> None:
    student = encoder("bert", hidden=32, seed=2)
    before = words(student)
    with pytest.raises(ValueError) as caught:
        init_from_teacher(student, encoder("bert", seed=1))
    assert str(caught.value) == (
        "student.start: teacher: the student is 32 wide, expected at most the teacher's 16 "
        "(choose a smaller size, or start: random)"
    )
    np.testing.assert_array_equal(words(student), before)


def test_other_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        init_from_teacher(encoder("bert", vocabulary=61), encoder("bert"))
    assert str(caught.value) == (
        "student.start: teacher: the student has 61 word pieces, expected the teacher's 60 "
        "(use the teacher's tokenizer, or start: random)"
    )


def test_a_teacher_without_a_table_of_positions_gives_its_words() -> None:
    teacher, student = encoder("bert", seed=1), encoder("bert", hidden=8, seed=2)
    before = positions(student).copy()
    teacher.embeddings.position_embeddings = None  # like deberta, whose positions are relative
    assert init_from_teacher(student, teacher) == ["word embeddings"]
    np.testing.assert_array_equal(positions(student), before)


def test_positions_wider_than_the_words_are_left_out() -> None:
    teacher, student = encoder("bert", seed=1), encoder("bert", seed=2)
    teacher.embeddings.word_embeddings = torch.nn.Embedding(VOCABULARY, 16)
    teacher.embeddings.position_embeddings = torch.nn.Embedding(POSITIONS, 24)  # as in mobilebert
    assert init_from_teacher(student, teacher)[:1] == ["word embeddings"]
    teacher.config.hidden_size = 24
    assert init_from_teacher(student, teacher) == ["word embeddings"]


def test_gpt2_gives_words_and_positions() -> None:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=16, n_layer=1, n_head=2)
    teacher, student = GPT2Model(config), encoder("bert", seed=2)
    assert init_from_teacher(student, teacher) == ["word embeddings", "position embeddings"]
    np.testing.assert_array_equal(words(student), teacher.wte.weight.detach().numpy())
    np.testing.assert_array_equal(positions(student), teacher.wpe.weight.detach().numpy())
