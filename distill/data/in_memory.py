"""Data sets in memory as files that a run reads: pandas data frames and `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.run import written_whole


def write_sources(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `data` section of a recipe with each data set in memory replaced by a parquet file's absolute path.

    Args:
        data: The section; `train`, `validation`, `test` and the items of `unlabeled` may be data frames or
            `datasets.Dataset`.
        folder: Where to write `train.parquet` and so on; made if needed.
    """
    written = {**data}
    for split in ("train", "validation", "test"):
        if in_memory(data.get(split)):
            written[split] = _write(data[split], folder / f"{split}.parquet")
    unlabelled = data.get("unlabeled", ())
    if in_memory(unlabelled):
        unlabelled = [unlabelled]
    if any(map(in_memory, unlabelled)):
        written["unlabeled"] = [
            _write(source, folder / f"unlabeled-{number}.parquet") if in_memory(source) else source
            for number, source in enumerate(unlabelled)
        ]
    return written


def in_memory(source: Any) -> bool:
    """Whether a source is a data frame or a `datasets.Dataset`."""
    return hasattr(source, "to_parquet")


def _write(source: Any, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        options = (
            {"index": False} if hasattr(source, "iloc") else {}
        )  # the index of a data frame is no column
        source.to_parquet(str(temporary), **options)
    return str(path.resolve())
