"""`doctor` replays the batch of a bundle and reports wrong logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from distill.cli.main import main
from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import FP32, INT8, REPLAY, BundleError, Manifest
from export.runtime.doctor import ROWS, cpu, doctor, draw_batch, replay_file

LAST = 15


@pytest.fixture(scope="module")
def replayed(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, manifest: Manifest, contents: dict[str, bytes]
) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "bundle"
    write_bundle(folder, manifest, {**contents, REPLAY: replay_file(bundle, manifest, LAST)})
    return folder


def spoiled(folder: Path, target: Path, by: float, file: str = INT8) -> Path:
    """A bundle with one graph that adds `by` to a logit, like a CPU that computes wrong."""
    shutil.copytree(folder, target)
    model = ModelProto.FromString((folder / file).read_bytes())
    (bias,) = [x for x in model.graph.initializer if x.name == "bias"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([by, 0, 0, 0, 0]), "bias"))
    old = read_bundle(folder)
    files = {name: (folder / name).read_bytes() for name in old.files} | {file: model.SerializeToString()}
    write_bundle(target, replace(old, files={}), files)
    return target


def test_the_building_machine_is_right(replayed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor(replayed)
    assert found["right"] and set(found["variants"]) == {"fp32", "int8"}
    for variant in found["variants"].values():
        assert variant["right"] and variant["max_difference"] == 0 and variant["other_labels"] == 0
    assert main(["doctor", str(replayed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["doctor", str(replayed)]) == 0
    assert "int8: correct" in capsys.readouterr().out


def test_wrong_variants_are_named(replayed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = spoiled(replayed, tmp_path / "bundle", 3.0)
    found = doctor(folder)
    assert not found["right"]
    assert found["variants"]["fp32"]["right"] and not found["variants"]["int8"]["right"]
    assert found["variants"]["int8"]["max_difference"] == pytest.approx(3.0, abs=1e-4)
    assert found["variants"]["int8"]["other_labels"] > 0
    assert main(["doctor", str(folder), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["right"] is False
    assert f"{folder}: this machine computes int8 wrong" in printed.err


def test_int8_may_differ_by_its_own_rounding(
    bundle: Path, manifest: Manifest, contents: dict[str, bytes], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "a", manifest, {**contents})
    far = spoiled(tmp_path / "a", tmp_path / "far", 0.5)
    data = replay_file(far, manifest, LAST)
    write_bundle(tmp_path / "b", manifest, {n: (far / n).read_bytes() for n in contents} | {REPLAY: data})
    # one of five logits differs: by 0.5 at most, by 0.1 on average
    assert doctor(tmp_path / "b")["variants"]["int8"]["allowed"] == pytest.approx([0.5, 0.05], abs=1e-4)
    near = spoiled(tmp_path / "b", tmp_path / "near", 0.2)
    assert doctor(near)["variants"]["int8"]["right"]
    assert not doctor(spoiled(tmp_path / "b", tmp_path / "c", 0.4))["variants"]["int8"]["right"]
    assert not doctor(spoiled(tmp_path / "b", tmp_path / "d", 0.002, FP32))["variants"]["fp32"]["right"]


def test_the_batch_has_every_length_and_random_ids(manifest: Manifest) -> None:
    batch = draw_batch(manifest, LAST)
    assert len(batch) == ROWS and min(map(len, batch)) == 3 and max(map(len, batch)) == manifest.max_length
    assert {piece for row in batch for piece in row} == set(range(LAST + 1))
    assert batch == draw_batch(manifest, LAST)


@pytest.mark.parametrize("change", ["absent", "not npz", "lacks"])
def test_a_missing_or_invalid_replay_file(
    change: str, manifest: Manifest, contents: dict[str, bytes], bundle: Path, tmp_path: Path
) -> None:
    files: dict[str, Callable[[], dict[str, bytes]]] = {
        "absent": dict,
        "not npz": lambda: {REPLAY: b"no zip"},
        "lacks": lambda: {REPLAY: replay_file(bundle, replace(manifest, variants={"fp32": FP32}), LAST)},
    }
    write_bundle(tmp_path / "b", manifest, contents | files[change]())
    with pytest.raises(BundleError, match=rf"{REPLAY}|has no"):
        doctor(tmp_path / "b")
    assert main(["doctor", str(tmp_path / "b")]) == 2


def test_cpu() -> None:
    found = cpu()
    assert found["machine"] and found["cores"] >= 1
    assert isinstance(found["flags"], list)
