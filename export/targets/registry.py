"""A bundle for other readers: which there are, and the one way in which each is written.

Every target is a function (bundle, manifest, variant, folder) -> what it has to say of the export. The
bundle is read with its sums, the folder appears by rename.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from export.bundle.atomic import resolved
from export.bundle.files import read_bundle
from export.bundle.manifest import Manifest
from export.targets.writer import TargetError, place


def _transformers_js(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    from export.targets.transformers_js import write

    return write(bundle, manifest, variant, folder)


def _triton(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    from export.targets.triton import write

    return write(bundle, manifest, variant, folder)


def _tei(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    from export.targets.tei import write

    return write(bundle, manifest, variant, folder)


def _text_in_graph(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    from export.targets.text_in_graph import write

    return write(bundle, manifest, variant, folder)


TARGETS: dict[str, Callable[[Path, Manifest, str, Path], dict[str, Any]]] = {
    "transformers-js": _transformers_js,
    "triton": _triton,
    "tei": _tei,
    "text-in-graph": _text_in_graph,
}


def export_bundle(
    bundle: str | Path,
    target: str,
    out: str | Path | None = None,
    *,
    variant: str | None = None,
    library: str | Path | None = None,
) -> dict[str, Any]:
    """Write a bundle as another reader wants it.

    Args:
        bundle: A folder that `distill run` wrote.
        target: A key of TARGETS.
        out: The folder to write; by default BUNDLE-TARGET beside the bundle. An earlier export is replaced.
        variant: int8 or fp32; by default the bundle's own default.
        library: Of transformers-js alone: the folder of the installed npm package, whose browser files
            are then copied in.

    Returns:
        What was written: target, bundle, variant, the folder, every file's bytes, and what the target
        has to say.

    Raises:
        BundleError: The bundle is missing, changed, or does not fit its manifest.
        TargetError: An unknown target or variant, a folder that is no export, or a bundle that this
            reader cannot take.
        GateError: What was written answers otherwise than the bundle.
    """
    if target not in TARGETS:
        raise TargetError(_unknown("target", target, [*TARGETS]))
    if library is not None and target != "transformers-js":
        raise TargetError(f"--transformers-js is of --target transformers-js alone, not of {target}")
    given, source = Path(bundle).absolute(), resolved(bundle)
    manifest = read_bundle(source)
    chosen = manifest.default_variant if variant is None else variant
    if chosen not in manifest.variants:
        raise TargetError(f"{bundle}: " + _unknown("variant", chosen, sorted(manifest.variants)))
    folder = given.with_name(f"{given.name}-{target}") if out is None else resolved(out)
    if resolved(folder).is_relative_to(source):
        raise TargetError(f"{folder}: is inside the bundle, which would change (choose another --out)")
    if source.is_relative_to(resolved(folder)):
        raise TargetError(f"{folder}: holds the bundle, which would be lost (choose another --out)")

    def write(temporary: Path) -> dict[str, Any]:
        said = TARGETS[target](source, manifest, chosen, temporary)
        if library is not None:
            from export.targets.transformers_js import copy_library

            said |= copy_library(Path(library), temporary)
        return said

    about = {"target": target, "bundle": manifest.name, "variant": chosen}
    return {"out": str(folder), **place(folder, write, about)}


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}, expected one of {known}{hint}"
