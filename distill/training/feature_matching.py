"""Feature matching: the student's hidden states are trained towards the teacher's (Jiao et al. 2020).

`Learner` is what `fit` trains: a network and, with feature matching, the projections of its hidden states.
Both are trained, saved in checkpoints and synchronised between processes; only the network remains after
training. The teacher runs in the same step at the same precision. It is no submodule, so it is neither
trained nor saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from distill.models.base import Batch, TextClassifier
from distill.models.classifier import MultiHeadClassifier, prepared
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Match

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FeatureMatching(nn.Module):
    """The loss between the hidden states of a student's encoder and a teacher's, and its projections.

    A linear map for each layer, trained with the student, projects the student's hidden states to the
    teacher's width.

    Attributes:
        weight: Of the loss, in the loss to minimise.
        layers: The teacher's layer for each layer of the student, from 1.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, match: Match) -> None:
        """Take both encoders, the teacher's on the device it runs on; it is frozen.

        Raises:
            RecipeError: The layers do not fit the encoders.
        """
        super().__init__()
        self.weight = match.hidden
        self.layers = _layers(match, *(e.config.num_hidden_layers for e in (student, teacher)))
        widths = [int(e.config.hidden_size) for e in (student, teacher)]
        # in lists, which hide the encoders from `parameters()`
        self._student, self._teacher = [student], [teacher.eval().requires_grad_(False)]
        self.projections = nn.ModuleList(_projection(*widths) for _ in self.layers)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's last hidden states `[batch, length, width]`, and the mean loss over its layers."""
        student = _hidden_states(self._student[0], batch)
        with torch.no_grad():
            teacher = _hidden_states(self._teacher[0], batch)
        mask = batch["attention_mask"]
        pairs = zip(self.projections, student[1:], self.layers, strict=True)
        losses = [hidden_loss(project(mine), teacher[layer], mask) for project, mine, layer in pairs]
        return student[-1], torch.stack(losses).mean()


class Learner(nn.Module):
    """All that `fit` trains: a network, and its feature matching if there is any."""

    def __init__(self, network: TextClassifier, matching: FeatureMatching | None = None) -> None:
        """Take a network, and the feature matching of its own encoder."""
        super().__init__()
        self.network, self.matching = network, matching

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's logits `[batch, sum of labels]`, and further weighted losses by name."""
        if self.matching is None:
            return self.network(batch), {}
        hidden, loss = self.matching(batch)
        network = cast(MultiHeadClassifier, self.network)
        return network.classify(hidden, batch["attention_mask"]), {
            "match/hidden": self.matching.weight * loss
        }


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean squared difference of hidden states over real tokens and the width; a scalar.

    `MSE(H_S W_h, H_T)` of a layer's output (Jiao et al. 2020, arXiv:1909.10351, eq. 8).

    Args:
        student: Already projected, `[batch, length, teacher width]`.
        teacher: `[batch, length, teacher width]`.
        mask: 1 at a token, 0 at padding, `[batch, length]`.
    """
    squares = (student.float() - teacher.float()).square().mean(-1)
    return (squares * mask).sum() / mask.sum()


def _hidden_states(encoder: PreTrainedModel, batch: Batch) -> tuple[Tensor, ...]:
    """The outputs of the embeddings layer and of each layer, `[batch, length, width]` each."""
    output = encoder(**prepared(encoder, batch), output_hidden_states=True)
    return (*output.hidden_states[:-1], output[0])  # the last layer's is what the heads read


def _projection(student: int, teacher: int) -> nn.Linear:
    """A map between widths, initialised as the identity where they agree and else orthogonal."""
    linear = nn.Linear(student, teacher)
    if student == teacher:
        nn.init.eye_(linear.weight)
    else:
        nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _layers(match: Match, student: int, teacher: int) -> tuple[int, ...]:
    if match.layers is None:
        return defaults.matched_layers(student, teacher)
    if len(match.layers) != student:
        raise RecipeError(
            f"match.layers: {len(match.layers)} numbers for a student of {student} layers "
            "(give a layer of the teacher for each)"
        )
    if (last := max(match.layers)) > teacher:
        raise RecipeError(f"match.layers: {last}, but the teacher has {teacher} layers (count from 1)")
    return match.layers
