"""A teacher that is one network or several: networks of earlier runs, taken as they are.

One is a teacher assistant (Mirzadeh et al. 2020, arXiv:1902.03393): a student of middle size that teaches a
smaller one. Several are an ensemble, whose logits are the mean of its members': the geometric mean of what
they predict (Hinton et al. 2015, arXiv:1503.02531, section 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator

from distill.data.tokens import Array, TextTokenizer
from distill.heads import Head
from distill.models.classifier import Network, load_network, save_network
from distill.models.predict import predict_logits
from distill.recipe.data_section import RecipeError
from teachers.checkpoints import file_sha256


class Member(NamedTuple):
    """A network that teaches, its tokenizer, and how it reads."""

    network: Network
    tokenizer: Any
    encode: TextTokenizer


def adopt(folders: Sequence[str], heads: Sequence[Head], stage: Path) -> None:
    """Save the networks of other runs' stages as the teacher of this one.

    Args:
        folders: Of networks, `RUN/stages/fit_teacher` or `RUN/stages/fit_student`.
        heads: Of this run's data, which must be theirs.
        stage: Folder to save into.

    Raises:
        RecipeError: One answers other questions than the data ask.
    """
    asked = [(head.name, head.kind, head.labels) for head in heads]
    for number, folder in enumerate(folders):
        network, tokenizer = load_network(Path(folder))
        for head, wanted in zip(network.heads, asked, strict=False):
            if (head.name, head.kind, head.labels) != wanted:
                if (head.name, head.kind, set(head.labels)) == (*wanted[:2], set(wanted[2])):
                    raise RecipeError(
                        f"teacher.networks: {folder}: its head {head.name!r} has the labels in another order "
                        f"(set heads.{head.name}.labels: [{', '.join(head.labels)}])"
                    )
                raise RecipeError(
                    f"teacher.networks: {folder}: its head {head.name!r} has {len(head.labels)} labels, "
                    f"expected {wanted[0]!r} with {len(wanted[2])} in the data's order (run both on "
                    "the same data)"
                )
        if len(network.heads) != len(asked):
            raise RecipeError(
                f"teacher.networks: {folder}: has {len(network.heads)} heads, the data {len(asked)} "
                "(run both on the same heads)"
            )
        place = stage if number == 0 else stage / f"member-{number + 1}"
        place.mkdir(exist_ok=True)
        save_network(network, tokenizer, place)


def load_members(stage: Path, max_length: int) -> list[Member]:
    """The networks of a stage `fit_teacher`, the one that students may start from first."""
    members = []
    for folder in _folders(stage):
        network, tokenizer = load_network(folder)
        members.append(Member(network, tokenizer, TextTokenizer(tokenizer, network.reads(max_length))))
    return members


def mean_logits(members: Sequence[Member], texts: Sequence[str], accelerator: Accelerator) -> Array:
    """The mean of the members' logits, float32 `[texts, sum of labels]`."""
    every = [predict_logits(m.network, m.encode(texts), accelerator) for m in members]
    mean: Array = np.mean(every, axis=0)
    return mean


def members_digest(stage: Path) -> str:
    """What tells a stage's networks from others: their weights, and their heads and pooling."""
    files = [folder / name for folder in _folders(stage) for name in ("model.safetensors", "heads.json")]
    return hashlib.sha256("/".join(map(file_sha256, files)).encode()).hexdigest()


def _folders(stage: Path) -> list[Path]:
    others = sorted(stage.glob("member-*"), key=lambda folder: int(folder.name.removeprefix("member-")))
    return [stage, *others]
