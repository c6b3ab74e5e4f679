import pytest
import torch
from torch import nn

from distill.training.averaging import WeightAverage


def test_it_follows_the_recurrence() -> None:
    network = nn.Linear(2, 1, bias=False)
    average = WeightAverage(network, 0.9)
    expected = network.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            network.weight += 1.0
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(average.weights["weight"], expected)


def test_it_is_applied_and_taken_off_again() -> None:
    network = nn.Linear(2, 1)
    average = WeightAverage(network, 0.5)
    before = {name: weight.clone() for name, weight in average.weights.items()}
    with torch.no_grad():
        network.weight += 1.0
    own = network.weight.detach().clone()
    with pytest.raises(KeyError), average.applied():
        assert torch.equal(network.weight, before["weight"])
        raise KeyError
    assert torch.equal(network.weight, own) and torch.equal(average.weights["weight"], before["weight"])


def test_frozen_weights_are_left_alone() -> None:
    network = nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    assert set(WeightAverage(network, 0.5).weights) == {"weight"}
