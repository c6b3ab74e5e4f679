"""A folder for transformers.js: the model, a page that classifies as one types, an example for Node.

The page needs the library's browser files beside it. They come from the npm package where the user has
installed it; nothing of it is part of this one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, INT8, TOKENIZER, Manifest
from export.targets.writer import TargetError, copy_shipped

FILES = {"fp32": FP32, "int8": INT8}  # where transformers.js looks for dtype fp32 and q8
NEEDED = (TOKENIZER, "config.json", "tokenizer_config.json")
LIBRARY = "transformers"
# The library without a runtime, and the plain WebAssembly one: half the size of what it takes by default.
SCRIPT = "dist/transformers.web.min.js"
_AGAIN = "(npm install @huggingface/transformers)"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write model/, a bundle of one variant, and beside it the page and the example.

    Raises:
        TargetError: A variant that transformers.js has no name for, or a file of the tokenizer's or the
            encoder's settings is not in the bundle.
    """
    if variant not in FILES:
        raise TargetError(
            f"{bundle}: transformers.js does not read variant {variant!r} (choose fp32 or int8)"
        )
    missing = [name for name in NEEDED if name not in manifest.files]
    if missing:
        raise TargetError(f"{bundle}: has no {missing}, which transformers.js reads (build the bundle again)")
    contents: dict[str, Path | bytes] = {name: bundle / name for name in NEEDED}
    contents[FILES[variant]] = bundle / manifest.variants[variant]
    only = replace(manifest, variants={variant: FILES[variant]}, default_variant=variant, files={})
    written = write_bundle(folder / "model", only, contents)
    copy_shipped("transformers-js", folder)
    return {"model_bytes": written.files[FILES[variant]]["bytes"], "library": None}


def copy_library(package: Path, folder: Path) -> dict[str, Any]:
    """Copy the browser files of an installed transformers.js and its onnxruntime-web into the folder.

    Args:
        package: node_modules/@huggingface/transformers, or the node_modules above it.
        folder: Of the export.

    Returns:
        The versions copied.

    Raises:
        TargetError: The package or a file of it is not there.
    """
    inner = package / "@huggingface" / "transformers"
    package = (inner if inner.is_dir() else package).resolve()
    version = _version(package, "@huggingface/transformers")
    if not version.startswith("4."):
        raise TargetError(f"{package}: is transformers.js {version}, expected 4 (npm install it there)")
    runtime = next(
        (
            found
            for parent in (package / "node_modules", *package.parents)
            if (found := parent / "onnxruntime-web").is_dir()
        ),
        package / "onnxruntime-web",
    )
    target = folder / LIBRARY
    target.mkdir()
    copies = {package / SCRIPT: Path(SCRIPT).name, package / "LICENSE": "LICENSE"}
    copies |= {runtime / "dist" / name: name for name in RUNTIME}
    for source, name in copies.items():
        try:
            shutil.copyfile(source, target / name)
        except OSError as error:
            raise TargetError(f"{source}: {error.strerror} {_AGAIN}") from error
    return {"library": {"transformers": version, "onnxruntime-web": _version(runtime, "onnxruntime-web")}}


def _version(package: Path, name: str) -> str:
    path = package / "package.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["name"] == name:
            return str(found["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise TargetError(f"{path}: is not of the npm package {name} {_AGAIN}")
