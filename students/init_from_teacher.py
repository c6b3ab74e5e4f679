"""How a student starts from its teacher: embeddings by PCA, whole layers where the widths agree.

`bert` and `distilbert` name the same pieces differently; a table of names lets either start the other.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from students.factorized_embeddings import factorize
from students.shapes import Shape, build_encoder

# distilbert's names of the pieces of a layer, and bert's
LAYER_NAMES = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
LAYER = re.compile(r"(?:encoder|transformer)\.layer\.(\d+)\.(.+)\.(weight|bias)\Z")


@torch.no_grad()
def start_from_teacher(student: Any, teacher: Any) -> list[str]:
    """Start a student encoder in place from a teacher's; returns what was taken over.

    Word and position embeddings are projected to the student's width on the principal components of
    the teacher's word embeddings: of all linear maps to that width it keeps most of their variance.
    Where the widths agree they are copied, as are evenly spaced whole layers (the first and the last
    among them) if the feed-forward parts and the number of attention heads agree too.

    Args:
        student: Encoder to start; the same vocabulary as the teacher.
        teacher: Encoder to start from.

    Raises:
        ValueError: The vocabularies differ.
    """
    source, target = teacher.embeddings, student.embeddings
    tables = ("word_embeddings", "position_embeddings")  # deberta's positions may be None
    if any(getattr(source, table, None) is None for table in tables):
        raise ValueError(
            f"student.start: teacher: {type(teacher).__name__} has no table of word and position "
            "embeddings (use start: random)"
        )
    words: Tensor = source.word_embeddings.weight.float()
    if len(words) != len(target.word_embeddings.weight):
        raise ValueError(
            f"student.start: teacher: the teacher has {len(words)} word pieces, the student "
            f"{len(target.word_embeddings.weight)} (use the teacher's tokenizer, or start: random)"
        )
    project = _principal_components(words, student.config.hidden_size)
    target.word_embeddings.weight.copy_(project(words))
    padding = source.position_embeddings.padding_idx
    behind = 0 if padding is None else padding + 1  # roberta counts from behind the padding
    positions = project(source.position_embeddings.weight[behind:].float())
    count = min(len(positions), len(target.position_embeddings.weight))
    target.position_embeddings.weight[:count] = positions[:count]
    if hasattr(target, "token_type_embeddings"):
        target.token_type_embeddings.weight.zero_()
    taken = ["word embeddings", "position embeddings"]
    if teacher.config.hidden_size != student.config.hidden_size:
        return taken
    types = getattr(source, "token_type_embeddings", None)
    if types is not None:  # a text alone is all of type 0
        if hasattr(target, "token_type_embeddings"):
            target.token_type_embeddings.weight[0] = types.weight[0]
        else:
            target.position_embeddings.weight.add_(types.weight[0])
    target.LayerNorm.load_state_dict(source.LayerNorm.state_dict())
    return taken + _copy_layers(student, teacher)


def encoder_from_teacher(
    shape: Shape,
    teacher: Any,
    *,
    positions: int,
    pad: int,
    factorized: bool = False,
    **rates: Any,
) -> tuple[Any, list[str]]:
    """A fresh encoder started from a teacher's, and what was taken over.

    Args:
        shape: Of the student.
        teacher: Encoder to start from.
        positions: Number of positions.
        pad: Token id of padding.
        factorized: Refuse a student for which the words cannot learn as a projection of the teacher's, which
            they do where the teacher's are wider.
        rates: `dropout`.

    Raises:
        ValueError: It cannot be started, or not factorised.
    """
    words, width = teacher.get_input_embeddings().weight.shape
    encoder = build_encoder(shape, vocabulary=words, positions=positions, pad=pad, **rates)
    taken = start_from_teacher(encoder, teacher)
    if factorized and shape.hidden >= width:
        raise ValueError(
            f"student.embeddings: factorized: the student is {shape.hidden} wide, the teacher's words "
            f"{width} (choose a smaller student)"
        )
    if shape.hidden < width:
        factorize(encoder, teacher)
    return encoder, taken


def _principal_components(words: Tensor, width: int) -> Any:
    """A map of `[rows, teacher width]` to `[rows, width]`; the identity where they are the same.

    It takes the rows' mean off: what all rows share tells none of them apart.
    """
    if words.shape[1] == width:
        return lambda rows: rows
    if words.shape[1] < width:
        raise ValueError(
            f"student.start: teacher: the student is wider ({width}) than the teacher "
            f"({words.shape[1]}) (choose a smaller size, or start: random)"
        )
    centred = words - words.mean(0)
    _, basis = torch.linalg.eigh(centred.T @ centred)  # ascending
    components = basis[:, -width:].flip(1)
    return lambda rows: (rows - rows.mean(0)) @ components


def _copy_layers(student: Any, teacher: Any) -> list[str]:
    mine, theirs = _layers(student), _layers(teacher)
    have, want = len(theirs), len(mine)
    chosen = [round(i * (have - 1) / max(1, want - 1)) for i in range(want)]
    same = student.config.num_attention_heads == teacher.config.num_attention_heads
    shape = {k: v.shape for k, v in theirs[0].items()}
    if not same or want > have or {k: v.shape for k, v in mine[0].items()} != shape:
        return []
    for layer, number in zip(mine, chosen, strict=True):
        for name, weight in layer.items():
            weight.copy_(theirs[number][name])
    return [f"layer {number}" for number in chosen]


def _layers(encoder: Any) -> list[dict[str, Tensor]]:
    """The weights of each layer by bert's names."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, weight in encoder.named_parameters():
        if match := LAYER.search(name):
            number, piece, kind = match.groups()
            found.setdefault(int(number), {})[f"{LAYER_NAMES.get(piece, piece)}.{kind}"] = weight
    return [found[number] for number in sorted(found)]
