"""Exports a bundle for transformers.js: the model, a page that classifies while typing, an example for Node.

The page needs the browser files of transformers.js. They are copied from an npm package that the user has
installed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.bundle.files import read_file, write_bundle
from export.bundle.manifest import FP32, INT8, TOKENIZER, Manifest
from export.targets.writer import TargetError, copy_templates

FILES = {"fp32": FP32, "int8": INT8}  # the paths that transformers.js loads for dtype fp32 and q8
NEEDED = (TOKENIZER, "config.json", "tokenizer_config.json")
PACKAGE = "@huggingface/transformers"
# The build without a runtime, and the plain WebAssembly runtime: half the size of the default build.
SCRIPT = "dist/transformers.web.min.js"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_INSTALL = f"(npm install {PACKAGE})"


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write model/, a bundle with one variant, and the page and the example next to it.

    Raises:
        TargetError: transformers.js does not support the variant, or the bundle lacks a file that it needs.
    """
    if variant not in FILES:
        raise TargetError(
            f"{bundle}: transformers.js does not support variant {variant!r} (choose fp32 or int8)"
        )
    if missing := [name for name in NEEDED if name not in manifest.files]:
        raise TargetError(f"{bundle}: has no {missing}, which transformers.js needs (build the bundle again)")
    contents: dict[str, Path | bytes] = {name: read_file(bundle, manifest, name) for name in NEEDED}
    contents[FILES[variant]] = read_file(bundle, manifest, manifest.variants[variant])
    single = replace(manifest, variants={variant: FILES[variant]}, default_variant=variant, files={})
    written = write_bundle(folder / "model", single, contents)
    copy_templates("transformers-js", folder)
    return {"model_bytes": written.files[FILES[variant]]["bytes"], "library": None}


def copy_library(package: Path, folder: Path) -> dict[str, Any]:
    """Copy the browser files of an installed transformers.js and its onnxruntime-web; returns their versions.

    Args:
        package: node_modules/@huggingface/transformers, or the node_modules above it.
        folder: Folder of the export.

    Raises:
        TargetError: The package or one of its files is missing.
    """
    inner = package / PACKAGE
    package = (inner if inner.is_dir() else package).resolve()
    version = _version(package, PACKAGE)
    if not version.startswith("4."):
        raise TargetError(f"{package}: is transformers.js {version}, expected 4 (npm install it there)")
    candidates = [parent / "onnxruntime-web" for parent in (package / "node_modules", *package.parents)]
    runtime = next(filter(Path.is_dir, candidates), package / "onnxruntime-web")
    sources = [package / SCRIPT, package / "LICENSE", *(runtime / "dist" / name for name in RUNTIME)]
    target = folder / "transformers"
    target.mkdir()
    for source in sources:
        try:
            shutil.copyfile(source, target / source.name)
        except OSError as error:
            raise TargetError(f"{source}: {error.strerror} {_INSTALL}") from error
    return {"library": {"transformers": version, "onnxruntime-web": _version(runtime, "onnxruntime-web")}}


def _version(package: Path, name: str) -> str:
    path = package / "package.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["name"] == name:
            return str(document["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise TargetError(f"{path}: is not the npm package {name} {_INSTALL}")
