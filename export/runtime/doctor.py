"""Checks that a machine computes the logits of a bundle correctly.

A bundle holds a batch of token ids and its logits, which `doctor` computes again. The ids are drawn at
random, so the bundle contains no training text.
"""

from __future__ import annotations

import io
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.bundle.files import opened_bundle
from export.bundle.manifest import REPLAY, SINGLE_LABEL, TOKENIZER, BundleError, Manifest
from export.runtime.cpus import available_cores
from export.runtime.packed import open_session
from export.runtime.postprocess import columns
from export.runtime.session import Ids

ROWS = 32
TOLERANCE = 1e-3  # of a logit in float32
# CPU features that determine how an x86 or ARM CPU multiplies 8-bit numbers
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def draw_batch(manifest: Manifest, max_id: int, seed: int = 0) -> list[list[int]]:
    """Random token ids up to `max_id`, of texts from the shortest to `max_length`."""
    random = np.random.default_rng(seed)
    lengths = np.linspace(min(3, manifest.max_length), manifest.max_length, ROWS).astype(int)
    return [random.integers(0, max_id + 1, length).tolist() for length in lengths]


def replay_file(folder: Path, manifest: Manifest, max_id: int, tokenizer: bytes = b"") -> bytes:
    """An npz file of the batch and its logits by every variant.

    Args:
        folder: Folder with the ONNX files at their paths in the bundle.
        manifest: Manifest of the bundle.
        max_id: Largest token id.
        tokenizer: The content of the bundle's tokenizer.json, if its labels are input.
    """
    ids = draw_batch(manifest, max_id)
    arrays: dict[str, Any] = {
        "ids": np.concatenate(ids).astype(np.int32),
        "lengths": np.array([*map(len, ids)], np.int32),
    }
    for name, file in manifest.variants.items():
        graph = (folder / file).read_bytes()
        arrays[f"logits_{name}"] = _logits(graph, folder / file, manifest, tokenizer, ids)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def doctor(folder: str | Path) -> dict[str, Any]:
    """Whether this machine computes each variant as the machine that built the bundle did.

    A float32 logit may differ by 1e-3. An int8 logit may differ by the largest difference between int8 and
    float32, and all of them on average by half the mean difference. Larger differences are not rounding
    errors: the CPU overflows.

    Returns:
        `{"cpu": {...}, "onnxruntime": VERSION, "right": bool, "variants": {NAME: {"right": bool,
        "max_difference": x, "mean_difference": x, "allowed": [max, mean], "other_labels": count}}}`.

    Raises:
        BundleError: The bundle is invalid (see `read_bundle`), or it has no valid replay file.
    """
    folder = Path(folder)
    with opened_bundle(
        folder, lambda bundle: {REPLAY, TOKENIZER, *bundle.variants.values()} & bundle.files.keys()
    ) as (manifest, contents):
        if REPLAY not in contents:
            problem = f"has no {REPLAY} (build it again: distill run RECIPE --from export)"
            raise BundleError(f"{folder}: {problem}")
        stored = _read(contents[REPLAY], folder / REPLAY, manifest)
    ids = [part.tolist() for part in np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])]
    reference = stored.get("logits_fp32")
    variants = {}
    for name, file in manifest.variants.items():
        expected = stored[f"logits_{name}"]
        computed = _logits(contents[file], folder / file, manifest, contents[TOKENIZER], ids)
        allowed = [TOLERANCE, TOLERANCE]
        if name != "fp32" and reference is not None:
            rounding = np.abs(expected - reference)
            allowed = [max(TOLERANCE, float(x)) for x in (rounding.max(), rounding.mean() / 2)]
        differences = np.abs(computed - expected)
        largest, mean = float(differences.max()), float(differences.mean())
        variants[name] = {
            "right": largest <= allowed[0] and mean <= allowed[1],
            "max_difference": largest,
            "mean_difference": mean,
            "allowed": allowed,
            "other_labels": _changed_labels(manifest, expected, computed),
        }
    return {
        "cpu": cpu(),
        "onnxruntime": onnxruntime.__version__,
        "right": all(variant["right"] for variant in variants.values()),
        "variants": variants,
    }


def _logits(graph: bytes, where: Path, manifest: Manifest, tokenizer: bytes, ids: Ids) -> NDArray[np.float32]:
    """The logits `[texts, labels of all heads]`, each text run by itself."""
    max_id = max(map(max, ids))
    return open_session(graph, where, manifest, max_id, tokenizer, 1).run_separately(ids)


def cpu() -> dict[str, Any]:
    """The machine, its cores, and its CPU features among `FLAGS` (none if the system does not list them)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    info = {key.strip().lower(): value.strip() for key, value in pairs}
    flags = (info.get("flags") or info.get("features") or "").split()
    return {
        "machine": platform.machine(),
        "model": info.get("model name", platform.processor()),
        "cores": available_cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _read(data: bytes, path: Path, manifest: Manifest) -> Mapping[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # `replay_file` does not compress
            if sum(member.file_size for member in archive.infolist()) > len(data):
                raise ValueError("is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            stored = dict(file)
    except Exception as error:  # numpy and zipfile raise many kinds
        raise BundleError(f"{path}: cannot be read: {error} (build the bundle again)") from error
    logits = {f"logits_{name}" for name in manifest.variants}
    if missing := sorted({"ids", "lengths", *logits} - stored.keys()):
        raise BundleError(f"{path}: has no {missing} (build the bundle again)")
    ids, lengths = stored["ids"], stored["lengths"]
    shape = len(lengths), sum(len(head.labels) for head in manifest.heads)
    valid = ids.dtype == lengths.dtype == np.int32 and ids.ndim == lengths.ndim == 1 and len(lengths) > 0
    valid = valid and lengths.min() > 0 and lengths.max() <= manifest.max_length and lengths.sum() == len(ids)
    valid = valid and all(stored[name].shape == shape and np.isfinite(stored[name]).all() for name in logits)
    if not valid:
        raise BundleError(f"{path}: does not match the manifest (build the bundle again)")
    return stored


def _changed_labels(manifest: Manifest, expected: NDArray[Any], computed: NDArray[Any]) -> int:
    """The number of texts, summed over heads, whose best label or, with multi_label, set of signs differs."""
    changed = 0
    for head, part in zip(manifest.heads, columns(manifest.heads).values(), strict=True):
        if head.kind == SINGLE_LABEL:
            differs = expected[:, part].argmax(-1) != computed[:, part].argmax(-1)
        else:
            differs = ((expected[:, part] > 0) != (computed[:, part] > 0)).any(-1)
        changed += int(differs.sum())
    return changed
