"""A general start: a student's layers and projection, taught on plain text once and kept for later jobs.

It holds no table of words: that is the teacher's, projected (`factorized`), so a start is a megabyte, and
fits every teacher that was fine-tuned from the encoder it was taught by.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from students.factorized import factorize
from students.sizes import Shape, build_encoder
from students.start import start_from_teacher

WEIGHTS, ABOUT = "start.safetensors", "start.json"


def is_start(name: str | Path) -> bool:
    """Whether a folder holds a general start."""
    return Path(name, ABOUT).is_file()


def read_about(folder: Path) -> tuple[Shape, dict[str, Any]]:
    """The shape of a start, and what else is known of it."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return Shape(**about["shape"]), about


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
    (folder / ABOUT).unlink(missing_ok=True)
    for name in (WEIGHTS, ABOUT):  # the latter last: it says that a start is whole
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        if name == WEIGHTS:
            save_file(weights, temporary)
        else:
            temporary.write_text(json.dumps({"shape": shape, **about}, indent=1), encoding="utf-8")
        temporary.replace(folder / name)


@torch.no_grad()
def load_start(folder: Path, teacher: Any, *, positions: int, pad: int, **rates: float) -> Any:
    """A factorised bert encoder that begins where `save_start` left one.

    Args:
        folder: Of the start.
        teacher: Encoder whose words are projected.
        positions: Number of positions; those beyond the start's come of the teacher's, projected.
        pad: Token id of padding.
        rates: `dropout` and `attention_dropout`.

    Raises:
        ValueError: The teacher's width is not that of the encoder the start was taught by.
    """
    shape, about = read_about(folder)
    weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    projection = weights["embeddings.word_embeddings.projection"]
    words, width = teacher.get_input_embeddings().weight.shape
    if len(projection) != width:
        raise ValueError(
            f"student.start: {folder} was taught by {about['teacher']}, whose words are {len(projection)} "
            f"wide, the teacher's are {width} (pretrain one for this teacher, or use start: teacher)"
        )
    encoder = build_encoder(
        shape, architecture="bert", vocabulary=words, positions=positions, pad=pad, **rates
    )
    start_from_teacher(encoder, teacher)
    factorize(encoder, teacher)
    table = encoder.embeddings.position_embeddings.weight.detach().clone()
    taught = weights["embeddings.position_embeddings.weight"][:positions]
    table[: len(taught)] = taught
    encoder.load_state_dict(weights | {"embeddings.position_embeddings.weight": table})
    return encoder
