"""What the probe refuses before a training, each in one line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import probe as probing
from distill.probe import probe
from distill.recipe.load import parse_recipe
from distill.recipe.schema import Pretraining
from teachers.checkpoints import EncoderError


@pytest.fixture
def folder(tmp_path, tiny_encoder_folder):
    return tiny_encoder_folder(tmp_path, hidden=32, layers=2)


@pytest.fixture
def recipe(folder):
    """A function (**sections) that gives a recipe of that teacher."""

    def read(**sections):
        settings = {"name": "r", "data": {"train": "t.csv"}, "heads": {"a": {"column": "a"}}}
        student = {"layers": 1, "hidden": 16, "attention_heads": 2}
        return parse_recipe({**settings, "teacher": {"encoder": str(folder)}, "student": student, **sections})

    return read


def refusal(recipe) -> str:
    with pytest.raises(EncoderError) as caught:
        probe(recipe)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def test_nothing_is_said_of_an_ordinary_encoder(recipe, caplog):
    caplog.set_level("INFO")
    probe(recipe())
    assert not caplog.records


def test_a_tokenizer_with_more_tokens_than_embeddings(recipe, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["parzel", "paket"])
    tokenizer.save_pretrained(folder)
    line = refusal(recipe())
    assert f"its tokenizer has token ids up to {rows + 1}, its embeddings have {rows} rows (resize" in line


def test_weights_that_are_not_finite(recipe, folder):
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][20, 3] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "encoder.embeddings.word_embeddings.weight is not finite" in refusal(recipe())


def test_hidden_states_that_are_not_finite(recipe, folder):
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.weight"] *= 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "its hidden states are not finite" in refusal(recipe())


def test_weights_of_zero(recipe, folder):
    zeros = {key: torch.zeros_like(weight) for key, weight in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(recipe()).endswith("do not depend on the last token of a text (name another encoder)")


@pytest.fixture
def changed(monkeypatch):
    """A function (change) that changes each encoder that the probe loads."""

    def install(change):
        load = probing.load_encoder

        def loaded(*arguments, **settings):
            encoder, tokenizer = load(*arguments, **settings)
            change(encoder)
            return encoder, tokenizer

        monkeypatch.setattr(probing, "load_encoder", loaded)

    return install


def test_weights_that_share_memory(recipe, changed):
    def tie(encoder):
        encoder.encoder.layer[1].output.dense.weight = encoder.encoder.layer[0].output.dense.weight

    changed(tie)
    line = refusal(recipe())
    assert "encoder.encoder.layer.0.output.dense.weight and " in line and "share their memory" in line


def test_what_is_lost_on_saving(recipe, changed):
    def widen(encoder):
        for layer in encoder.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.ReLU()  # the configuration has gelu

    changed(widen)
    assert "saved and loaded, it computes other hidden states" in refusal(recipe())


def test_what_a_library_raises_is_one_line(recipe, changed):
    def spoil(encoder):
        def forward(input_ids, attention_mask):
            raise RuntimeError("first line.\n  second line\n" + "and more " * 100)

        encoder.forward = forward

    changed(spoil)
    line = refusal(recipe())
    assert line.endswith("cannot be used: first line (name another encoder)") or "second line" in line


def test_a_position_too_few(recipe, folder):
    """An encoder whose configuration promises more positions than it has."""
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][:60]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "cannot be loaded" in refusal(recipe())


def test_a_pretraining_is_tried_too(folder):
    settings = {"name": "p", "data": {"unlabeled": ["t.txt"]}, "teacher": {"encoder": str(folder)}}
    probe(Pretraining(**settings, student={"layers": 1, "hidden": 16, "attention_heads": 2}))
    with pytest.raises(Exception, match="too wide for factorised embeddings"):
        probe(Pretraining(**settings, student={"layers": 1, "hidden": 32, "attention_heads": 2}))


def test_layers_that_cannot_be_matched(recipe):
    with pytest.raises(Exception, match=r"match\.layers: 3, but the teacher has 2 layers"):
        probe(recipe(match={"hidden": 1.0, "layers": [3]}))
    probe(recipe(match={"hidden": 1.0, "layers": [2]}))
