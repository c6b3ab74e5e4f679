"""Where an export is written: a folder that appears under its name by rename, whole or not at all.

A folder of ours bears `export.json`; one that does not and is not empty is never replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.folders import written_folder

MARK = "export.json"
FORMAT = "tinyheads-export"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class TargetError(Exception):
    """A bundle that cannot be exported as asked: where, what is wrong, what to do."""


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
    folder = folder.resolve()
    _check_free(folder)
    with written_folder(folder) as temporary:
        document = {"format": FORMAT, **about, **write(temporary)}
        found = sorted(path for path in temporary.rglob("*") if path.is_file())
        document["files"] = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in found}
        document["bytes"] = sum(document["files"].values())
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (temporary / MARK).write_text(text, encoding="utf-8")
    return document


def plain_name(name: str, what: str) -> str:
    """The name, if it can name a file anywhere. Raises: TargetError."""
    if not _PLAIN.fullmatch(name):
        raise TargetError(f"{what} {name!r} cannot name a file, expected letters, digits, _ . - (rename it)")
    return name


def _check_free(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = json.loads((folder / MARK).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise TargetError(f"{folder}: is no earlier export, so it is not replaced (choose another --out)")
