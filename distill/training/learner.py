"""A network as it learns: its logits, and what lies inside its encoder matched to the teacher's.

The learner owns the network and the projections of its hidden states, so both are learnt, put in
checkpoints and synchronised between processes alike; what training leaves is the network. The teacher runs
in the same step and the same precision. It is no submodule of the learner: it neither learns nor is saved.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.models.classifier import Network, load_network
from distill.recipe import defaults
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Match
from distill.training.feature_matching import hidden_loss, relation_loss

# an attention's maps to queries, keys and values, as bert, roberta and electra name them, and as distilbert
ATTENTION = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
)


class Inside(NamedTuple):
    """What lies inside an encoder, of a batch of texts.

    Attributes:
        hidden: Output of the embeddings layer, then of each layer, `[batch, length, width]` each.
        attention: Queries, keys and values of one layer, likewise; none where not asked for.
    """

    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class Reader:
    """Reads what lies inside an encoder; leaves the encoder as it is."""

    def __init__(self, encoder: Any, side: str, attention_of: int | None) -> None:
        """Take an encoder, whose it is, and the number (from 1) of the layer whose attention is read.

        Raises:
            RecipeError: The attention has no queries, keys and values of their own.
        """
        self.encoder = encoder
        self.linears = () if attention_of is None else _attention(encoder, side, attention_of)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Inside:
        """What lies inside for ids and mask `[batch, length]`; the encoder is run once."""
        found: dict[int, Tensor] = {}

        def keep(place: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[place] = output

        hooks = [linear.register_forward_hook(partial(keep, i)) for i, linear in enumerate(self.linears)]
        try:
            output = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
            )
        finally:
            for hook in hooks:
                hook.remove()
        # the last layer's is what the heads read
        hidden = (*output.hidden_states[:-1], output[0])
        return Inside(hidden, tuple(found[place] for place in sorted(found)))


class Matching(nn.Module):
    """Losses between what lies inside a student's encoder and a teacher's, and the projections they need.

    The student's hidden states reach the teacher's width by a linear map of their own for each layer, which
    is learnt with the student. Three losses, of `matching`: `hidden`, the mean over the student's layers;
    `embeddings`; and `relations`, of the student's last layer and the teacher's layer for it.

    Attributes:
        weights: Of each loss by name, in the loss to minimise.
        layers: The teacher's layer for each of the student's, from 1.
    """

    def __init__(self, student: Any, teacher: Any, match: Match) -> None:
        """Take both encoders, the teacher's on the device it is to run on; it is frozen.

        Raises:
            RecipeError: The layers or relation heads do not fit the encoders, or an encoder's attention
                cannot be read.
        """
        super().__init__()
        self.weights = match.weights
        self.layers = _layers(match, *(e.config.num_hidden_layers for e in (student, teacher)))
        widths = [int(e.config.hidden_size) for e in (student, teacher)]
        related = "relations" in self.weights
        self.relation_heads = _relation_heads(match, *widths) if related else 0
        self.student = Reader(student, "student", len(self.layers) if related else None)
        self.teacher = Reader(
            teacher.eval().requires_grad_(False), "teacher", self.layers[-1] if related else None
        )
        # (student's, teacher's) places in `Inside.hidden`; 0 is the embeddings layer
        pairs = {"hidden": list(enumerate(self.layers, 1)), "embeddings": [(0, 0)]}
        self.pairs = {part: pairs[part] for part in self.weights if part in pairs}
        mine = [place for part in self.pairs.values() for place, _ in part]
        self.projections = nn.ModuleDict({str(place): _projection(*widths) for place in mine})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's last hidden states `[batch, length, width]`, and each loss, a scalar.

        Args:
            input_ids: Token ids, the same for student and teacher, `[batch, length]`.
            attention_mask: 1 at a token, 0 at padding, `[batch, length]`.
        """
        student = self.student(input_ids, attention_mask)
        with torch.no_grad():
            teacher = self.teacher(input_ids, attention_mask)
        losses = {}
        for part, pairs in self.pairs.items():
            each = [
                hidden_loss(self.projections[str(i)](student.hidden[i]), teacher.hidden[j], attention_mask)
                for i, j in pairs
            ]
            losses[part] = torch.stack(each).mean()
        if self.relation_heads:
            losses["relations"] = relation_loss(
                student.attention, teacher.attention, attention_mask, self.relation_heads
            )
        return student.hidden[-1], losses


class Learner(nn.Module):
    """A network and, where it matches a teacher inside, what that takes: all that learns in `fit`."""

    def __init__(self, network: Network, matching: Matching | None = None) -> None:
        """Take a network, and the matching of its own encoder."""
        super().__init__()
        self.network, self.matching = network, matching
        self.weights = {} if matching is None else matching.weights

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's logits `[batch, sum of labels]`, and each loss of matching by name, a scalar."""
        if self.matching is None:
            return self.network(input_ids, attention_mask), {}
        hidden, losses = self.matching(input_ids, attention_mask)
        return self.network.classify(hidden, attention_mask), losses


def load_matching(
    folder: Path, network: Network, tokenizer: Any, tokens: int, match: Match, device: torch.device
) -> Matching | None:
    """The matching of a student with the teacher in a folder; None where nothing is to be matched.

    Args:
        folder: Of the teacher, as `save_network` wrote it.
        network: The student.
        tokenizer: The student's.
        tokens: How many the student reads of a text.
        match: What is matched.
        device: For the teacher to run on.

    Raises:
        RecipeError: Student and teacher cannot read the same tokens, or as `Matching` says.
    """
    if not match.weights:
        return None
    teacher, theirs = load_network(folder)
    if tokenizer.get_vocab() != theirs.get_vocab():
        raise RecipeError(
            "match: the student's vocabulary is not the teacher's, and both must read the same tokens "
            "(choose a student.encoder or student.start of the teacher's vocabulary, or leave match out)"
        )
    if (limit := teacher.reads(tokens)) < tokens:
        raise RecipeError(
            f"match: the student reads {tokens} tokens of a text, the teacher has {limit} positions, and "
            f"both must read the same tokens (set export.max_length to {limit} at most, or leave match out)"
        )
    return Matching(network.encoder, teacher.encoder.to(device), match)


def _projection(student: int, teacher: int) -> nn.Linear:
    """A map between widths that begins orthogonal, and as the identity where they agree."""
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
            "(give a teacher's layer for each of them)"
        )
    if (last := max(match.layers)) > teacher:
        raise RecipeError(f"match.layers: {last}, but the teacher has {teacher} layers (count from 1)")
    return match.layers


def _relation_heads(match: Match, student: int, teacher: int) -> int:
    usual = defaults.relation_heads(student, teacher)
    heads = match.relation_heads or usual
    if student % heads or teacher % heads:
        raise RecipeError(
            f"match.relation_heads: {heads} does not divide both the student's width {student} and the "
            f"teacher's {teacher} (leave it out for {usual})"
        )
    return heads


def _attention(encoder: Any, side: str, layer: int) -> tuple[nn.Module, ...]:
    """The linear maps to queries, keys and values in a layer, from 1."""
    modules = list(encoder.named_modules())
    for names in ATTENTION:
        found = [[module for path, module in modules if path.endswith(f".{name}")] for name in names]
        if all(len(maps) == encoder.config.num_hidden_layers for maps in found):
            return tuple(maps[layer - 1] for maps in found)
    raise RecipeError(
        f"match.relations: the {side}'s {type(encoder).__name__} has no queries, keys and values such as "
        "bert's or distilbert's (leave relations out)"
    )
