"""Where an export is written: a folder that appears under its name by rename, whole or not at all.

A folder of ours bears `export.json`; one that does not and is not empty is never replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from export.bundle.atomic import resolved, written_folder

MARK = "export.json"
FORMAT = "tinyheads-export"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class TargetError(Exception):
    """A bundle that cannot be exported as asked: where, what is wrong, what to do."""

    exit_code = 2


def place(folder: Path, write: Callable[[Path], dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """Write a folder under a temporary name, mark it as ours, and give it its name.

    Args:
        folder: Where it shall be. An earlier export is replaced; when anything fails it stays.
        write: Fills the folder it is given; returns what the mark says beside `about` and the files.
        about: What was exported.

    Returns:
        What stands in `export.json`: `about`, what `write` returned, and the bytes of every file.

    Raises:
        TargetError: The folder holds something that is no export.
    """
    folder = resolved(folder)
    _check_free(folder)
    with written_folder(folder) as temporary:
        document = {"format": FORMAT, **about, **write(temporary)}
        found = sorted(path for path in temporary.rglob("*") if path.is_file())
        document["files"] = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in found}
        document["bytes"] = sum(document["files"].values())
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (temporary / MARK).write_text(text, encoding="utf-8")
    return document


def copy_shipped(target: str, folder: Path) -> None:
    """Copy what stands beside an exported model of this target."""
    for file in (files("export.targets") / "templates" / target).iterdir():
        if file.is_file():  # pip compiles what is Python, into a folder beside it
            (folder / file.name).write_bytes(file.read_bytes())


def check_names(what: str, names: Sequence[str], taken: Collection[str] = ()) -> None:
    """Raises TargetError unless these can name files side by side anywhere, beside those that are taken."""
    seen = {name.casefold(): name for name in (MARK, *taken)}
    for name in names:
        if not _PLAIN.fullmatch(name):
            problem = "cannot name a file, expected letters, digits, _ . - (rename it)"
            raise TargetError(f"{what} {name!r} {problem}")
        if (other := seen.setdefault(name.casefold(), name)) is not name:
            raise TargetError(f"{what} {name!r} names the same file as {other!r} (rename it)")


def _check_free(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = json.loads((folder / MARK).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise TargetError(f"{folder}: is no earlier export, so it is not replaced (choose another --out)")
