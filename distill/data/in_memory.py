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

    def holds(value: Any) -> bool:
        if isinstance(value, Mapping) and not hasattr(value, "to_parquet"):
            value = [*value.values()]
        return any(map(holds, value)) if isinstance(value, (list, tuple)) else hasattr(value, "to_parquet")

    return holds(data)


def name_sources(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `data` section of a recipe with the path of a parquet file in place of each data set in memory.

    Args:
        data: The section; `train`, `validation`, `test`, the items of `unlabeled` and of a list in `train`,
            and their `file`, `validation` and `test` may be data frames or `datasets.Dataset`. Other paths
            may be `Path`.
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
        if isinstance(source, (list, tuple)) and file in ("train", "unlabeled"):
            return [replaced(one, f"{file}-{i}") for i, one in enumerate(source)]
        if isinstance(source, Mapping) and file.startswith("train-"):
            return {key: replaced(value, f"{file}-{key}") for key, value in source.items()}
        return str(source) if isinstance(source, Path) else source

    data = {**data}
    if hasattr(data.get("unlabeled"), "to_parquet"):
        data["unlabeled"] = [data["unlabeled"]]
    return {key: replaced(value, key) for key, value in data.items()}


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
