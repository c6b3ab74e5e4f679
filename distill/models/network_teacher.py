"""Networks as a teacher: one, or the mean of several.

One network of an earlier run is a teacher assistant (Mirzadeh et al. 2020, arXiv:1902.03393): a student of
medium size that teaches a smaller one. Several form an ensemble, whose logits are the mean of its members'
logits, that is the geometric mean of their predictions (Hinton et al. 2015, arXiv:1503.02531, section 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from distill.heads import Head, columns
from distill.models.base import Array, TextClassifier, TextEncoder
from distill.models.packed import PackedClassifier
from distill.models.predict import predict_logits
from distill.models.saved_networks import load_classifier, save_classifier
from distill.recipe.data_section import RecipeError
from teachers.checkpoints import file_sha256, network_folder

IDENTITY_FILES = ("model.safetensors", "config.json", "heads.json", "tokenizer.json")


class NetworkTeacher:
    """The networks of a stage `fit_teacher` as a teacher (`teachers.base.Teacher`).

    Attributes:
        digest: Of the weights, heads, settings and tokenizers of the networks, and of `max_length`.
        labels: The labels of each head.
        encoders: What encodes texts for each network.
    """

    def __init__(self, folder: Path, max_length: int, accelerator: Accelerator) -> None:
        """Load the networks that `fit_teacher` or `adopt` saved in a folder.

        Args:
            folder: Of the stage.
            max_length: Tokens read of a text; a network of fewer positions reads fewer.
            accelerator: The device and precision to compute with.
        """
        self.accelerator = accelerator
        self.networks: list[TextClassifier] = []
        self.encoders: list[TextEncoder] = []
        for member in member_folders(folder):
            network, tokenizer = load_classifier(member)
            self.networks.append(network)
            self.encoders.append(network.text_encoder(tokenizer, max_length))
        self.digest = teacher_digest(folder, max_length)
        self.labels: Mapping[str, tuple[str, ...]] = {h.name: h.labels for h in self.networks[0].heads}

    def logits(self, texts: Sequence[str]) -> dict[str, Array]:
        """The mean of the networks' logits of each head, float32 `[texts, labels]`."""
        pairs = zip(self.networks, self.encoders, strict=True)
        found = [predict_logits(network, encode(texts), self.accelerator) for network, encode in pairs]
        mean = np.mean(found, axis=0)
        return {head.name: mean[:, part] for head, part in columns(self.networks[0].heads)}


def teacher_digest(folder: Path, max_length: int) -> str:
    """The identity of the `NetworkTeacher` in a folder, without loading it."""
    files = [member / name for member in member_folders(folder) for name in IDENTITY_FILES]
    weights = hashlib.sha256("/".join(map(file_sha256, files)).encode()).hexdigest()
    return hashlib.sha256(f"{weights}/{max_length}".encode()).hexdigest()


def adopt(folders: Sequence[str], heads: Sequence[Head], stage: Path) -> None:
    """Save the networks of other runs' stages as the teacher of this run.

    Args:
        folders: Of networks, as `network_folder` takes them.
        heads: The heads of this run's data, which must be theirs. A packed network takes any labels.
        stage: The folder to save into.

    Raises:
        RecipeError: A network has other heads or labels than the data.
    """
    wanted = [(head.name, head.kind, head.labels) for head in heads]
    for number, folder in enumerate(folders):
        network, tokenizer = load_classifier(network_folder(folder))
        if isinstance(network, PackedClassifier):
            try:
                network = network.with_heads(heads)
            except ValueError as error:
                raise RecipeError(f"teacher.networks: {folder}: {error}") from None
        for head, (name, kind, labels) in zip(network.heads, wanted, strict=False):
            if (head.name, head.kind, head.labels) == (name, kind, labels):
                continue
            if (head.name, head.kind, set(head.labels)) == (name, kind, set(labels)):
                raise RecipeError(
                    f"teacher.networks: {folder}: head {head.name!r} has its labels in another order "
                    f"(set heads.{head.name}.labels: [{', '.join(head.labels)}])"
                )
            raise RecipeError(
                f"teacher.networks: {folder}: head {head.name!r} has {len(head.labels)} labels, expected "
                f"{name!r} with {len(labels)} in the order of the data (run both on the same data)"
            )
        if len(network.heads) != len(wanted):
            raise RecipeError(
                f"teacher.networks: {folder}: has {len(network.heads)} heads, expected {len(wanted)} "
                "(run both on the same heads)"
            )
        place = stage if number == 0 else stage / f"member-{number + 1}"
        place.mkdir(exist_ok=True)
        save_classifier(network, tokenizer, place)


def member_folders(stage: Path) -> list[Path]:
    """The folders of the networks in the folder of a stage."""
    others = sorted(stage.glob("member-*"), key=lambda folder: int(folder.name.removeprefix("member-")))
    return [stage, *others]
