"""Distil labelled text into a tiny ONNX classifier of many heads: the public names of the project.

Each name is imported when it is first used, so that serving a bundle needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.add_head import add_head, retrain_head
    from distill.pipeline import RunResult, run
    from distill.recipe.load import load_recipe
    from distill.recipe.schema import Recipe
    from export import BundleError, Classifier

    __version__: str

__all__ = [
    "BundleError",
    "Classifier",
    "Recipe",
    "RunResult",
    "__version__",
    "add_head",
    "load_recipe",
    "retrain_head",
    "run",
]

_MODULES = {
    "add_head": "distill.add_head",
    "retrain_head": "distill.add_head",
    "run": "distill.pipeline",
    "RunResult": "distill.pipeline",
    "load_recipe": "distill.recipe.load",
    "Recipe": "distill.recipe.schema",
    "Classifier": "export",
    "BundleError": "export",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tinyheads")
    if name in _MODULES:
        try:
            return getattr(import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            problem = f"tinyheads.{name}: needs {error.name}, which is not installed"
            raise ModuleNotFoundError(
                f"{problem} (pip install 'tinyheads[train]')", name=error.name
            ) from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
