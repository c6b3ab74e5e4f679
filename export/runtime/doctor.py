"""Whether a machine computes a bundle right: a batch with its logits travels along, and is replayed.

The batch is of word pieces drawn at random, so that no text of anybody's leaves with the bundle.
"""

from __future__ import annotations

import io
import os
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.bundle.files import read_bundle
from export.bundle.manifest import REPLAY, SINGLE_LABEL, BundleError, Manifest
from export.runtime.postprocess import columns
from export.runtime.session import Session

ROWS = 32
TOLERANCE = 1e-3  # of a logit in float32
# what decides how an x86 or ARM CPU multiplies 8-bit numbers
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")

Logits = npt.NDArray[np.float32]


def draw_batch(manifest: Manifest, last: int, seed: int = 0) -> list[list[int]]:
    """Token ids of texts from the shortest to `max_length`, pieces up to `last` drawn at random."""
    random = np.random.default_rng(seed)
    lengths = np.linspace(min(3, manifest.max_length), manifest.max_length, ROWS).astype(int)
    return [random.integers(0, last + 1, length).tolist() for length in lengths]


def replay_file(folder: Path, manifest: Manifest, last: int) -> bytes:
    """The batch and the logits of every variant in `folder`, as the bytes of an npz file.

    Args:
        folder: Where the ONNX files lie as in a bundle.
        manifest: Of the bundle.
        last: The largest token id.
    """
    ids = draw_batch(manifest, last)
    found = {name: _logits(folder / file, manifest, ids) for name, file in manifest.variants.items()}
    arrays: dict[str, Any] = {
        "ids": np.concatenate(ids).astype(np.int32),
        "lengths": np.array([*map(len, ids)], np.int32),
    }
    arrays |= {f"logits_{name}": logits for name, logits in found.items()}
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def doctor(folder: str | Path) -> dict[str, Any]:
    """What this machine is, and for each variant whether it computes it as where the bundle was made.

    float32 may differ by 1e-3. int8 may differ in one logit by as much as int8 itself differs from float32,
    and on average by half of that: what is more is no rounding, but a CPU that loses what does not fit.

    Returns:
        `{"cpu": {...}, "onnxruntime": VERSION, "right": bool, "variants": {NAME: {"right": bool,
        "max_difference": x, "mean_difference": x, "allowed": [x, x], "other_labels": answers}}}`.

    Raises:
        BundleError: As `read_bundle`, or there is nothing to replay.
    """
    folder = Path(folder)
    manifest = read_bundle(folder)
    if REPLAY not in manifest.files:
        raise BundleError(f"{folder}: has no {REPLAY} (build it again: distill run RECIPE --from export)")
    stored = _read(folder / REPLAY, manifest)
    ids = [part.tolist() for part in np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])]
    reference = stored.get("logits_fp32")
    variants = {}
    for name, file in manifest.variants.items():
        expected, found = stored[f"logits_{name}"], _logits(folder / file, manifest, ids)
        allowed = [TOLERANCE, TOLERANCE]
        if name != "fp32" and reference is not None:
            rounding = np.abs(expected - reference)
            allowed = [max(TOLERANCE, float(x)) for x in (rounding.max(), rounding.mean() / 2)]
        gaps = np.abs(found - expected)
        far = [float(gaps.max()), float(gaps.mean())]
        variants[name] = {
            "right": far[0] <= allowed[0] and far[1] <= allowed[1],
            "max_difference": far[0],
            "mean_difference": far[1],
            "allowed": allowed,
            "other_labels": _other_labels(manifest, expected, found),
        }
    return {
        "cpu": cpu(),
        "onnxruntime": onnxruntime.__version__,
        "right": all(variant["right"] for variant in variants.values()),
        "variants": variants,
    }


def cpu() -> dict[str, Any]:
    """The machine, its cores, and which of `FLAGS` the system says it has (empty where it does not say)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    said = {key.strip().lower(): value.strip() for key, value in lines.items()}
    flags = (said.get("flags") or said.get("features") or "").split()
    return {
        "machine": platform.machine(),
        "model": said.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _logits(path: Path, manifest: Manifest, ids: list[list[int]]) -> Logits:
    """The logits of each text by itself: int8 depends on what else is in a batch."""
    session = Session(path, manifest, max(map(max, ids)), threads=1)
    return np.concatenate([session.run([row]) for row in ids]).astype(np.float32)


def _read(path: Path, manifest: Manifest) -> Mapping[str, npt.NDArray[Any]]:
    needed = {"ids", "lengths", *(f"logits_{name}" for name in manifest.variants)}
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read: {error} (build the bundle again)") from error
    if missing := sorted(needed - stored.keys()):
        raise BundleError(f"{path}: lacks {missing} (build the bundle again)")
    return stored


def _other_labels(manifest: Manifest, expected: Logits, found: Logits) -> int:
    """How many answers, one a text and head, are other ones: the best label, of multi_label the signs."""
    other = 0
    for head, part in zip(manifest.heads, columns(manifest.heads).values(), strict=True):
        both = expected[:, part], found[:, part]
        if head.kind == SINGLE_LABEL:
            other += int((both[0].argmax(-1) != both[1].argmax(-1)).sum())
        else:
            other += int(((both[0] > 0) != (both[1] > 0)).any(-1).sum())
    return other
