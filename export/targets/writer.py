"""Writes export folders, which appear under their name by rename, complete or not at all.

An export is marked by its `export.json`. A folder without one that is not empty is never replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from export.bundle.atomic import replacing_folder, resolve

RECORD = "export.json"
FORMAT = "tinyheads-export"
TEMPLATES = files("export.targets") / "templates"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class TargetError(Exception):
    """A bundle cannot be exported as requested; the message names the cause and the remedy."""

    exit_code = 2


def write_export(
    folder: Path, write: Callable[[Path], dict[str, Any]], details: Mapping[str, Any]
) -> dict[str, Any]:
    """Write an export folder atomically; returns the content of its `export.json`.

    Args:
        folder: Folder to write. An earlier export is replaced; if anything fails, it stays.
        write: Fills an empty folder and returns further details.
        details: What is exported.

    Returns:
        `details`, the result of `write`, and the size of every file in bytes.

    Raises:
        TargetError: The folder holds something other than an export.
    """
    folder = resolve(folder)
    if folder.exists() and not _is_export(folder):
        raise TargetError(f"{folder}: is not an earlier export, so it is not replaced (choose another --out)")
    with replacing_folder(folder) as temporary:
        record = {"format": FORMAT, **details, **write(temporary)}
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        sizes = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in written}
        record |= {"files": sizes, "bytes": sum(sizes.values())}
        write_json(temporary / RECORD, record)
    return record


def _is_export(folder: Path) -> bool:
    """Whether a folder is an earlier export or empty."""
    try:
        text = (folder / RECORD).read_text(encoding="utf-8")
        return bool(json.loads(text)["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return folder.is_dir() and not any(folder.iterdir())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_templates(target: str, folder: Path, **values: object) -> None:
    """Write the rendered templates of a target to a folder."""
    for file in (TEMPLATES / target).iterdir():
        if file.is_file():  # pip compiles Python templates to a subfolder
            (folder / file.name).write_text(render(f"{target}/{file.name}", **values), encoding="utf-8")


def render(template: str, **values: object) -> str:
    """The text of a template, with `{{key}}` replaced by the value of the key."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{{key}}}}}", str(value))
    return text


def check_names(what: str, names: Sequence[str], taken: Collection[str] = ()) -> None:
    """Raise TargetError unless the names are distinct file names, ignoring case, also from `taken`."""
    seen = {name.casefold(): name for name in (RECORD, *taken)}
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            problem = "cannot name a file, expected letters, digits, _ . - (rename it)"
            raise TargetError(f"{what} {name!r} {problem}")
        if (other := seen.setdefault(name.casefold(), name)) is not name:
            raise TargetError(f"{what} {name!r} names the same file as {other!r} (rename it)")
