"""Runs that share stages: a new folder with links to what a finished run has, which is not done again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from distill.run import read_record
from export.bundle.atomic import replacing_folder

SHARED = ("prepare", "fit_teacher", "label")  # the stages that students of one teacher have in common


class LinkError(Exception):
    """A run whose stages cannot be linked."""

    exit_code = 2


def link(source: Path, folder: Path, stages: Iterable[str]) -> None:
    """Create a run's folder that holds finished stages of another run, with the soft labels they wrote.

    The files are hard links, or copies where the file system has none. No stage changes a file in place, so
    neither run can change the other's files: a stage that is done again writes new ones. The new run compares
    its settings with the linked records as if the stages were its own.

    Args:
        source: The folder of the other run.
        folder: The folder to create. It appears complete or not at all, and replaces an older one.
        stages: The names of the stages to link.

    Raises:
        LinkError: A stage of the other run is not finished, or one of its files is missing.
    """
    names: list[str] = []
    for stage in stages:
        own = f"stages/{stage}/stage.json"
        record = read_record(source / own)
        if record is None:
            raise LinkError(f"{source}: holds no finished {stage} (run its recipe first)")
        names += [*record["files"], own]
    with replacing_folder(folder) as new:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                _link(source / name, new / name)
            except FileNotFoundError:
                raise LinkError(f"{source / name}: is missing (run its recipe again)") from None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
