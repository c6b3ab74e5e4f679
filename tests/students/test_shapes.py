from __future__ import annotations

from typing import Any

import pytest
import torch

from students.shapes import SIZES, Shape, build_encoder

VOCABULARY, POSITIONS = 30522, 512  # of BERT


def small(**settings: Any) -> Any:
    given = {"vocabulary": 40, "positions": 24, "pad": 3, **settings}
    return build_encoder(Shape(2, 16, 4), **given)


@pytest.mark.parametrize(
    "size, layers, hidden, millions",
    # Turc et al. 2019, table 1; the parameters as google-research/bert gives them
    [("tiny", 2, 128, 4.4), ("mini", 4, 256, 11.2), ("small", 4, 512, 28.8), ("medium", 8, 512, 41.4)],
)
def test_named_sizes(size: str, layers: int, hidden: int, millions: float) -> None:
    shape = SIZES[size]
    assert (shape.layers, shape.hidden) == (layers, hidden)
    assert shape.hidden / shape.attention_heads == 64
    assert shape.miniature == f"google/bert_uncased_L-{layers}_H-{hidden}_A-{hidden // 64}"
    with torch.device("meta"):  # shapes without memory
        encoder = build_encoder(shape, vocabulary=VOCABULARY, positions=POSITIONS, pad=0)
    embeddings = (VOCABULARY + POSITIONS + 2) * hidden + 2 * hidden
    attention = 4 * (hidden * hidden + hidden) + 2 * hidden
    feed_forward = 2 * 4 * hidden * hidden + 4 * hidden + hidden + 2 * hidden
    count = sum(p.numel() for p in encoder.parameters())
    assert count == embeddings + layers * (attention + feed_forward)
    # the published figures are of models with a pooler, which classifiers here do without
    assert (count + hidden * hidden + hidden) / 1e6 == pytest.approx(millions, abs=0.06)


def test_tiny_is_of_4_39_million() -> None:
    with torch.device("meta"):
        encoder = build_encoder(SIZES["tiny"], vocabulary=VOCABULARY, positions=POSITIONS, pad=0)
    assert sum(p.numel() for p in encoder.parameters()) == 4_369_408
    assert 4_369_408 + 128 * 128 + 128 == 4_385_920  # with BERT-tiny's pooler


def test_config_says_what_was_built() -> None:
    encoder = small()
    config = encoder.config
    assert config.model_type == "bert"
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 16, 4)
    assert (config.vocab_size, config.max_position_embeddings, config.pad_token_id) == (40, 24, 3)
    assert config._attn_implementation == "eager"
    assert encoder.embeddings.word_embeddings.weight.shape == (40, 16)
    assert encoder.embeddings.word_embeddings.padding_idx == 3
    assert encoder.embeddings.position_embeddings.weight.shape == (24, 16)
    shapes = {tuple(p.shape) for name, p in encoder.named_parameters() if "layer.1" in name}
    assert (64, 16) in shapes  # the feed-forward part is 4 x as wide
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]


def test_dropout() -> None:
    silent = {m.p for m in small().modules() if isinstance(m, torch.nn.Dropout)}
    assert silent == {0.0}
    encoder = small(dropout=0.2)
    found = {
        name.endswith(("self.dropout", "attention.dropout")): module.p
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert found == {False: 0.2, True: 0.0}


def test_reads_every_length() -> None:
    encoder = small().eval()
    for length in (1, 2, 24):
        ids = torch.randint(0, 40, (2, length))
        hidden = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        assert hidden.shape == (2, length, 16)
        assert hidden.isfinite().all()


def test_the_seed_decides_the_weights() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(small().embeddings.word_embeddings.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
