"""The folder of a general start: its files, its shape, what tells it from another. Torch-free."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from students.sizes import Shape

WEIGHTS, ABOUT = "start.safetensors", "start.json"


def is_start(name: str | Path) -> bool:
    """Whether a folder holds a general start."""
    return Path(name, ABOUT).is_file() and Path(name, WEIGHTS).is_file()


def read_about(folder: Path) -> tuple[Shape, dict[str, Any]]:
    """The shape of a start, and what else is known of it."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return Shape(**about["shape"]), about


def start_identity(folder: Path) -> str:
    """What tells a start from another of the same name."""
    return "/".join(hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in (ABOUT, WEIGHTS))
