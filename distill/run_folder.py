"""The folder of a run: what may be one, who holds it, and its recipe.yaml."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from distill.recipe.data_section import RecipeError
from distill.recipe.load import dump_yaml, load_yaml
from distill.recipe.schema import Job
from distill.storage import locked, written_whole
from distill.training.devices import is_main_process

_ONE_AT_A_TIME = Lock()  # two runs in one process would share torch's random numbers and the accelerator


@contextmanager
def own_folder(name: str, folder: Path) -> Iterator[None]:
    """Hold the folder of a run of this name, made if it is missing, against other processes and threads."""
    if not is_main_process():
        yield
        return
    _check_folder(name, folder)
    new = not folder.exists()
    (folder / "stages").mkdir(parents=True, exist_ok=True)  # by which the next command recognises a run
    with locked(folder):
        _check_folder(name, folder)  # another run may have come first
        for leftover in folder.rglob(".*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        try:
            with _ONE_AT_A_TIME:
                yield
        except BaseException:
            if new and {path.name for path in folder.rglob("*")} <= {"stages", ".lock", ".holder.json"}:
                shutil.rmtree(folder, ignore_errors=True)  # refused before anything was written
            raise


def write_recipe(folder: Path, recipe: Job) -> None:
    """Write recipe.yaml."""
    with written_whole(folder / "recipe.yaml") as file:
        file.write_text(dump_yaml(recipe.model_dump(mode="json", by_alias=True)), encoding="utf-8")


def _check_folder(name: str, folder: Path) -> None:
    """Refuse a folder that holds something else than a run of this name."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out: {folder} is a file, expected a folder (choose another)")
    if "::" in str(folder.resolve()):  # datasets reads it as a chain of file systems
        raise RecipeError(
            f"--out: {folder.resolve()} has :: in it, which a run's folder cannot (choose another)"
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "stages").is_dir():
        raise RecipeError(f"--out: {folder} holds something else than a run (choose another)")
    other = _recipe_name(folder / "recipe.yaml")
    if other not in (name, None):
        raise RecipeError(
            f"--out: {folder} is the run of {other!r}, not of {name!r} (choose another, or delete "
            f"{folder / 'recipe.yaml'} if it is damaged)"
        )


def _recipe_name(path: Path) -> str | None:
    """The name in a run's recipe.yaml, None if the file is missing or damaged; a run writes it again."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, UnicodeDecodeError, RecipeError):
        return None
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None
