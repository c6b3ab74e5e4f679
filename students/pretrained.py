"""Saves and loads pretrained students: layers and projection, distilled on unlabelled text for later runs.

A pretrained student has no word embeddings of its own. They are a projection of the teacher's
(`factorized_embeddings`), so its file has one megabyte, and it fits every teacher that was fine-tuned from
the same encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from students.init_from_teacher import encoder_from_teacher
from students.pretrained_files import ABOUT, WEIGHTS, read_about

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedModel


def save_start(folder: Path, encoder: Any, about: dict[str, Any]) -> None:
    """Write a BERT encoder with factorised embeddings to an existing folder, in float16.

    Args:
        folder: Folder to write to.
        encoder: Encoder with factorised embeddings.
        about: JSON values to store with the shape.
    """
    config = encoder.config
    shape = {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "attention_heads": config.num_attention_heads,
    }
    weights = {name: value.detach().cpu().half().contiguous() for name, value in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / ABOUT).write_text(json.dumps({"shape": shape, **about}, indent=1), encoding="utf-8")


@torch.no_grad()
def load_start(
    folder: Path, teacher: PreTrainedModel, *, positions: int, pad: int, **rates: float
) -> BertModel:
    """A BERT encoder with factorised embeddings, initialised from a pretrained student.

    Args:
        folder: Folder of the pretrained student.
        teacher: Encoder whose word embeddings are projected.
        positions: Number of positions; those that the pretrained student lacks are projected from the
            teacher's.
        pad: Token id of padding.
        rates: `dropout`.

    Raises:
        ValueError: A file is incomplete, or the widths of the teacher and of the pretraining teacher differ.
    """
    shape, about = read_about(folder)
    try:
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
        projection = weights["embeddings.word_embeddings.projection"]
        pretrained = weights["embeddings.position_embeddings.weight"][:positions]
    except (SafetensorError, KeyError):
        raise ValueError(f"student.start: {folder / WEIGHTS}: is incomplete (pretrain it again)") from None
    width = teacher.get_input_embeddings().weight.shape[1]
    if len(projection) != width:
        raise ValueError(
            f"student.start: {folder}: embeddings of its teacher {about.get('teacher')!r} have width "
            f"{len(projection)}, expected {width} (pretrain one for this teacher, or use start: teacher)"
        )
    encoder, _ = encoder_from_teacher(shape, teacher, positions=positions, pad=pad, factorized=True, **rates)
    table = encoder.embeddings.position_embeddings.weight.detach().clone()
    table[: len(pretrained)] = pretrained
    try:
        encoder.load_state_dict(weights | {"embeddings.position_embeddings.weight": table})
    except RuntimeError:
        raise ValueError(
            f"student.start: {folder}: its weights do not match its shape (pretrain it again)"
        ) from None
    return encoder
