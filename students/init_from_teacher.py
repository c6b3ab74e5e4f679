"""Initialises a BERT student from its teacher: embeddings by PCA, and whole layers where the shapes agree.

The teacher may be any encoder with a table of word embeddings. Whole layers are copied from BERT and, through
a table of parameter names, from DistilBERT.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from students.factorized_embeddings import factorize
from students.shapes import Shape, build_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# the modules of a DistilBERT layer, and their names in BERT
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
POSITIONS = ("position_embeddings", "wpe")  # the names of tables of positions, the latter in GPT-2
LAYER = re.compile(r"(?:encoder|transformer)\.layer\.(\d+)\.(.+)\.(weight|bias)\Z")


@torch.no_grad()
def init_from_teacher(student: PreTrainedModel, teacher: PreTrainedModel) -> list[str]:
    """Initialise a student in place; returns the names of the parts that come from the teacher.

    Word and position embeddings are projected to the student's width on the principal components of the
    teacher's word embeddings. No other linear projection to that width keeps more of their variance. If the
    widths are equal, the embeddings are copied. Evenly spaced layers, the first and the last among them, are
    copied too if the feed-forward widths and the numbers of attention heads are equal. Positions stay as they
    are if the teacher has no table of them as wide as its words (relative or rotary positions).

    Raises:
        ValueError: The vocabularies differ, or the student is wider than the teacher's word embeddings.
    """
    target = student.embeddings
    words: Tensor = teacher.get_input_embeddings().weight.float()
    if len(words) != len(target.word_embeddings.weight):
        raise ValueError(
            f"student.start: teacher: the student has {len(target.word_embeddings.weight)} word pieces, "
            f"expected the teacher's {len(words)} (use the teacher's tokenizer, or start: random)"
        )
    project = _projection(words, student.config.hidden_size)
    target.word_embeddings.weight.copy_(project(words))
    target.token_type_embeddings.weight.zero_()
    copied = ["word embeddings"]
    if (table := _positions(teacher, words.shape[1])) is not None:
        positions = project(table)
        count = min(len(positions), len(target.position_embeddings.weight))
        target.position_embeddings.weight[:count] = positions[:count]
        copied.append("position embeddings")
    if not teacher.config.hidden_size == student.config.hidden_size == words.shape[1]:
        return copied
    source = getattr(teacher, "embeddings", None)
    if isinstance(types := getattr(source, "token_type_embeddings", None), nn.Embedding):
        # a single text consists of tokens of type 0
        target.token_type_embeddings.weight[0] = types.weight[0]
    if isinstance(norm := getattr(source, "LayerNorm", None), nn.LayerNorm):
        target.LayerNorm.load_state_dict(norm.state_dict())
    return copied + _copy_layers(student, teacher)


def encoder_from_teacher(
    shape: Shape,
    teacher: PreTrainedModel,
    *,
    positions: int,
    pad: int,
    factorized: bool = False,
    dropout: float = 0.0,
) -> tuple[PreTrainedModel, list[str]]:
    """A new BERT encoder, and the names of the parts that come from the teacher.

    The word embeddings of a student narrower than its teacher are factorised.

    Args:
        shape: Shape of the student.
        teacher: Encoder whose vocabulary the student shares.
        positions: Number of positions.
        pad: Token id of padding.
        factorized: Whether factorised word embeddings are required.
        dropout: Rate of hidden states.

    Raises:
        ValueError: As in `init_from_teacher`, or the required factorisation is impossible.
    """
    words, width = teacher.get_input_embeddings().weight.shape
    encoder = build_encoder(shape, vocabulary=words, positions=positions, pad=pad, dropout=dropout)
    copied = init_from_teacher(encoder, teacher)
    if shape.hidden < width:
        factorize(encoder, teacher)
    elif factorized:
        raise ValueError(
            f"student.hidden: {shape.hidden} is too wide for factorised embeddings, expected less than the "
            f"teacher's {width} (choose a smaller student)"
        )
    return encoder, copied


def _positions(teacher: PreTrainedModel, width: int) -> Tensor | None:
    """The teacher's position embeddings `[positions, width]` from the first token's, None if it has none."""
    for name, module in teacher.named_modules():
        if name.rpartition(".")[2] in POSITIONS and isinstance(module, nn.Embedding):
            padding = module.padding_idx  # roberta's positions begin after it
            table = module.weight[0 if padding is None else padding + 1 :].float()
            return table if table.shape[1] == width else None
    return None


def _projection(words: Tensor, width: int) -> Callable[[Tensor], Tensor]:
    """Centres rows `[rows, teacher width]` and projects them to `width`; the identity if that is equal."""
    if words.shape[1] == width:
        return lambda rows: rows
    if words.shape[1] < width:
        raise ValueError(
            f"student.start: teacher: the student is {width} wide, expected at most the teacher's "
            f"{words.shape[1]} (choose a smaller size, or start: random)"
        )
    centred = words - words.mean(0)
    _, basis = torch.linalg.eigh(centred.T @ centred)  # in ascending order of variance
    components = basis[:, -width:].flip(1)
    return lambda rows: (rows - rows.mean(0)) @ components


def _copy_layers(student: PreTrainedModel, teacher: PreTrainedModel) -> list[str]:
    """Copy evenly spaced layers of the teacher if the shapes agree; returns their names."""
    targets, sources = _layers(student), _layers(teacher)
    have, want = len(sources), len(targets)
    same_heads = student.config.num_attention_heads == teacher.config.num_attention_heads
    if not same_heads or want > have or _shapes(targets[0]) != _shapes(sources[0]):
        return []
    chosen = [round(i * (have - 1) / max(1, want - 1)) for i in range(want)]
    for layer, number in zip(targets, chosen, strict=True):
        for name, weight in layer.items():
            weight.copy_(sources[number][name])
    return [f"layer {number}" for number in chosen]


def _shapes(layer: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in layer.items()}


def _layers(encoder: PreTrainedModel) -> list[dict[str, Tensor]]:
    """The weights of each layer, by their names in BERT."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, weight in encoder.named_parameters():
        if match := LAYER.search(name):
            number, module, kind = match.groups()
            layers.setdefault(int(number), {})[f"{LAYER_NAMES.get(module, module)}.{kind}"] = weight
    return [layers[number] for number in sorted(layers)]
