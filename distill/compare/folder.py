"""The folder of a comparison or of a sweep: what may be one, who holds it, how its work is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from distill.data.prepare import contents
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Recipe
from distill.storage import json_digest, locked, read_sealed, write_sealed
from distill.training.interrupts import Interrupted


@contextmanager
def claimed(folder: Path, kind: str, work: str, recipe: Recipe) -> Iterator[None]:
    """Hold the folder, made if it is missing; refuse one that holds something else.

    Args:
        folder: To hold.
        kind: What it is of, for messages: comparison or sweep.
        work: The folder in it by which it is recognised.
        recipe: Whose work it holds; begun.json has its digest and that of its data.

    Raises:
        RecipeError: The folder holds something else, or the work of another recipe or other data.
        RunLockedError: Another process holds it.
    """
    begun = folder / "begun.json"
    mine = {"recipe": recipe.digest(), "data": json_digest(contents(recipe.data))}
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out: {folder} is a file, expected a folder (choose another)")
    if folder.exists() and any(folder.iterdir()) and not (folder / work).is_dir():
        raise RecipeError(f"--out: {folder} holds something else than a {kind} (choose another)")
    (folder / work).mkdir(parents=True, exist_ok=True)
    with locked(folder, work):
        for what, digest in (read_sealed(begun) or {}).items():
            if digest != mine[what]:
                other = {"recipe": "another recipe", "data": "other data"}[what]
                raise RecipeError(f"--out: {folder} holds a {kind} of {other} (choose another folder)")
        write_sealed(begun, mine)
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and the end of the terminal interrupt as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted("", 128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        usual = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
        before = {number: signal.signal(number, interrupt) for number in usual}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
