"""A general start: a student's layers and projection, taught on plain text once and kept for later jobs.

It holds no table of words: that is the teacher's, projected (`factorized`), so a start is a megabyte, and
fits every teacher that was fine-tuned from the encoder it was taught by.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from students.init_from_teacher import encoder_from_teacher
from students.pretrained_files import ABOUT, WEIGHTS, read_about


def save_start(folder: Path, encoder: Any, about: dict[str, Any]) -> None:
    """Write a factorised bert encoder into an existing folder, its weights in float16.

    Args:
        folder: To write into.
        encoder: As it learnt, not folded.
        about: JSON values to keep beside the shape.
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
def load_start(folder: Path, teacher: Any, *, positions: int, pad: int, **rates: Any) -> Any:
    """A factorised bert encoder that begins where `save_start` left one.

    Args:
        folder: Of the start.
        teacher: Encoder whose words are projected.
        positions: Number of positions; those beyond the start's come of the teacher's, projected.
        pad: Token id of padding.
        rates: `dropout`.

    Raises:
        ValueError: The start is not whole, or the teacher's width not that of the encoder it was taught by.
    """
    shape, about = read_about(folder)
    try:
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
        projection = weights["embeddings.word_embeddings.projection"]
        taught = weights["embeddings.position_embeddings.weight"][:positions]
    except (SafetensorError, KeyError):
        raise ValueError(f"student.start: {folder / WEIGHTS}: is not whole (pretrain it anew)") from None
    width = teacher.get_input_embeddings().weight.shape[1]
    if len(projection) != width:
        raise ValueError(
            f"student.start: {folder} was taught by {about.get('teacher')}, whose words are "
            f"{len(projection)} wide, the teacher's are {width} "
            "(pretrain one for this teacher, or use start: teacher)"
        )
    encoder, _ = encoder_from_teacher(shape, teacher, positions=positions, pad=pad, factorized=True, **rates)
    table = encoder.embeddings.position_embeddings.weight.detach().clone()
    table[: len(taught)] = taught
    try:
        encoder.load_state_dict(weights | {"embeddings.position_embeddings.weight": table})
    except RuntimeError:
        raise ValueError(
            f"student.start: {folder}: its weights are not of its shape (pretrain it anew)"
        ) from None
    return encoder
