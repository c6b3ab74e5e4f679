"""What a CPU can tell of CUDA graphs: the widths of batches, and the step that cannot be captured."""

import numpy as np
import pytest
import torch

from distill.training.graphs import GraphedStep, padded, padded_width


@pytest.mark.parametrize(
    "tokens, longest, width",
    [
        *((1, 512, 8), (8, 512, 8), (9, 512, 16), (25, 512, 32), (33, 512, 48), (65, 512, 96)),
        *((129, 512, 192), (400, 512, 512), (30, 30, 30), (30, 31, 31), (3, 5, 5), (500, 500, 500)),
    ],
)
def test_batches_are_padded_to_few_widths_and_never_beyond_the_longest_text(tokens, longest, width):
    assert padded_width(tokens, longest) == width


def test_any_width_of_512_tokens_is_one_of_twelve():
    assert len({padded_width(tokens, 512) for tokens in range(1, 513)}) == 12


def test_the_mask_leaves_out_what_is_padded():
    texts = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
    wider = padded(texts, 8)
    assert wider["input_ids"].shape == wider["attention_mask"].shape == (1, 8)
    assert wider["attention_mask"].sum() == 3 and wider["input_ids"][0, :3].tolist() == [5, 6, 7]


@pytest.mark.parametrize("rows", [4, 3])
def test_a_step_that_cannot_be_captured_runs_as_it_is(rows, monkeypatch, caplog):
    weight = torch.nn.Parameter(torch.ones(1))

    def step(batch, hard, soft):
        loss = (weight * batch["input_ids"]).sum() + hard["intent"].sum() + soft["intent"].sum()
        loss.backward()
        return batch["input_ids"].float(), {"loss": loss.detach()}

    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(GraphedStep, "_capture", fail)
    graphed = GraphedStep(step, [weight], rows=4, longest=16)
    for _ in range(2):
        weight.grad = None
        logits, values = graphed(
            {"input_ids": np.ones((rows, 9), np.int64)}, {"intent": np.ones(rows)}, {"intent": np.ones(rows)}
        )
        assert weight.grad.item() == 9 * rows and values["loss"].item() == 11 * rows
        assert logits.shape == (rows, 16)
    lines = [record.message for record in caplog.records]
    assert len(lines) == (rows == 4) and all(line.endswith("stream is capturing") for line in lines)
