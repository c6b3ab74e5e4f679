"""The attention mask that an encoder gets ready-made, so that a GPU need not wait for it."""

import pytest
import torch
from transformers.models.bert import modeling_bert

from distill.models.classifier import prepared
from students.shapes import Shape, build_encoder

BATCH = {
    "input_ids": torch.tensor([[5, 6, 7], [5, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
}


@pytest.fixture
def encoder(monkeypatch):
    # as in transformers 5
    monkeypatch.setattr(modeling_bert, "create_bidirectional_mask", None, raising=False)
    return build_encoder(Shape(1, 8, 2), vocabulary=16, positions=8, pad=0)


def test_bert_gets_what_it_adds_to_the_scores(encoder):
    ready = prepared(encoder, BATCH)
    assert ready["input_ids"] is BATCH["input_ids"] and ready["attention_mask"].shape == (2, 1, 1, 3)
    low = torch.finfo(torch.float32).min
    assert ready["attention_mask"].flatten().tolist() == [0, 0, 0, 0, low, low]


@pytest.mark.parametrize(
    "settings", [{"is_decoder": True}, {"model_type": "modernbert"}, {"model_type": "esm"}]
)
def test_encoders_that_also_use_the_mask_otherwise_make_their_own(encoder, settings):
    for name, value in settings.items():
        setattr(encoder.config, name, value)
    assert prepared(encoder, BATCH) is BATCH


def test_transformers_4_makes_its_own(encoder, monkeypatch):
    monkeypatch.delattr(modeling_bert, "create_bidirectional_mask")
    assert prepared(encoder, BATCH) is BATCH
