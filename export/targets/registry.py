"""The export targets, and the function that writes them.

The files of the bundle are compared with its manifest first. The export folder appears by rename.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from export.bundle.atomic import resolve
from export.bundle.files import read_bundle
from export.bundle.manifest import PACKED, unknown
from export.targets.writer import TargetError, write_export

# functions (bundle, manifest, variant, folder) -> details; loaded on use, since their dependencies differ
TARGETS = {
    "transformers-js": "export.targets.transformers_js:write",
    "triton": "export.targets.triton:write",
    "tei": "export.targets.tei:write",
    "text-in-graph": "export.targets.text_in_graph:write",
}
EXTRAS = "tei", "text-in-graph"  # targets with an extra of this name


def export_bundle(
    bundle: str | Path,
    target: str,
    out: str | Path | None = None,
    *,
    variant: str | None = None,
    library: str | Path | None = None,
) -> dict[str, Any]:
    """Export a bundle for another runtime.

    Args:
        bundle: A folder that `distill run` wrote.
        target: A key of TARGETS.
        out: The folder to write; by default BUNDLE-TARGET next to the bundle. An earlier export is replaced.
        variant: int8 or fp32; by default the default variant of the bundle.
        library: Folder of the npm package @huggingface/transformers, whose browser files are copied; for
            transformers-js only.

    Returns:
        The target, the name of the bundle, the variant, the folder, the size of every file in bytes, and
        details of the target.

    Raises:
        BundleError: The bundle is missing, changed, or does not match its manifest.
        TargetError: The target or variant is unknown, its extra is not installed, the folder holds something
            else, or the target does not support the bundle.
        GateError: The exported model differs from the bundle.
    """
    if target not in TARGETS:
        raise TargetError(unknown("target", target, TARGETS))
    if library is not None and target != "transformers-js":
        raise TargetError(f"--transformers-js: needs --target transformers-js, got {target!r}")
    given, source = Path(bundle).absolute(), resolve(bundle)
    manifest = read_bundle(source)
    if manifest.kind == PACKED:
        raise TargetError(
            f"{bundle}: its labels are input, which no target supports (distil a student of heads from it)"
        )
    chosen = manifest.default_variant if variant is None else variant
    if chosen not in manifest.variants:
        raise TargetError(f"{bundle}: {unknown('variant', chosen, sorted(manifest.variants))}")
    folder = given.with_name(f"{given.name}-{target}") if out is None else resolve(out)
    if resolve(folder).is_relative_to(source):
        raise TargetError(f"{folder}: is inside the bundle, which would change (choose another --out)")
    if source.is_relative_to(resolve(folder)):
        raise TargetError(f"{folder}: holds the bundle, which would be lost (choose another --out)")

    def write(temporary: Path) -> dict[str, Any]:
        try:
            details: dict[str, Any] = resolve_name(TARGETS[target])(source, manifest, chosen, temporary)
        except ModuleNotFoundError as error:
            if target not in EXTRAS:
                raise
            hint = f"(pip install 'tinyheads[{target}]')"
            raise TargetError(
                f"--target {target}: needs {error.name}, which is not installed {hint}"
            ) from None
        if library is not None:
            from export.targets.transformers_js import copy_library

            details |= copy_library(Path(library), temporary)
        return details

    about = {"target": target, "bundle": manifest.name, "variant": chosen}
    return {"out": str(folder), **write_export(folder, write, about)}
