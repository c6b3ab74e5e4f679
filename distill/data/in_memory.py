"""Data sets in memory as files that a run reads: pandas data frames and `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from distill.data.sources import DataError
from distill.storage import written_whole


def has_data_in_memory(data: Mapping[str, Any]) -> bool:
    """Whether a `data` section holds a data frame or a `datasets.Dataset`."""
    unlabelled = data.get("unlabeled")
    items = unlabelled if isinstance(unlabelled, (list, tuple)) else ()
    return any(hasattr(source, "to_parquet") for source in (*data.values(), *items))


def name_sources(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `data` section of a recipe with the path of a parquet file in place of each data set in memory.

    Args:
        data: The section; `train`, `validation`, `test` and the items of `unlabeled` may be data frames or
            `datasets.Dataset`. Other paths may be `Path`.
        folder: Of the parquet files.
    """
    return _replaced(data, folder, lambda source, path: str(path))


def write_sources(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """As `name_sources`, and writes the files.

    Raises:
        DataError: A data set cannot be written as parquet.
    """
    return _replaced(data, folder, _write)


def _replaced(data: Mapping[str, Any], folder: Path, name: Callable[[Any, Path], str]) -> dict[str, Any]:
    def replaced(source: Any, file: str) -> Any:
        if hasattr(source, "to_parquet"):
            return name(source, folder / f"{file}.parquet")
        return str(source) if isinstance(source, Path) else source

    result = {key: replaced(value, key) for key, value in data.items()}
    unlabelled = data.get("unlabeled")
    if hasattr(unlabelled, "to_parquet"):
        unlabelled = [unlabelled]
    if isinstance(unlabelled, (list, tuple)):
        result["unlabeled"] = [replaced(one, f"unlabeled-{i}") for i, one in enumerate(unlabelled)]
    return result


def _write(source: Any, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"index": False} if hasattr(source, "iloc") else {}  # the index of a data frame is no column
    try:
        with written_whole(path) as temporary:
            source.to_parquet(str(temporary), **options)
    except (ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data.{path.stem}: cannot be written as parquet: {reason} (give one type a column)"
        ) from None
    return str(path)
