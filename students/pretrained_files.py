"""The files of a pretrained student: names, shape and digest. Torch-free."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from students.shapes import Shape

WEIGHTS, ABOUT = "start.safetensors", "start.json"
SHIPPED = Path(__file__).with_name("starts")  # made by recipes/minilm-tiny.yaml


def is_start(name: str | Path) -> bool:
    """Whether a folder holds a pretrained student."""
    return Path(name, ABOUT).is_file() and Path(name, WEIGHTS).is_file()


def read_about(folder: Path) -> tuple[Shape, dict[str, Any]]:
    """The shape of a pretrained student, and all values stored with it.

    Raises:
        ValueError: The file has no valid shape.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return Shape(**about["shape"]), about
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"student.start: {folder / ABOUT}: has no valid shape (pretrain it again)") from None


def shipped_start(shape: Shape, teacher_sha256: str) -> Path | None:
    """The folder of the shipped student with this shape and pretraining teacher, if any."""
    for folder in sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else ():
        if is_start(folder):
            found, about = read_about(folder)
            if found == shape and about["teacher_sha256"] == teacher_sha256:
                return folder
    return None


def start_identity(folder: Path) -> str:
    """The digests of the files of a pretrained student."""
    return "/".join(hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in (ABOUT, WEIGHTS))
