"""Typed columns: parquet files, data sets that `datasets` saved, and the hub."""

from __future__ import annotations

import functools
import glob
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from distill.data.formats.base import DataError, Row, Source, readable
from distill.recipe.data_sources import Hub
from distill.recipe.near import near

BATCH = 1000  # rows of a table in memory at a time


def read_hub(source: Hub) -> Source:
    """A data set on the hub."""
    which = {"split": source.split, "revision": source.revision, "streaming": True}
    load = functools.partial(datasets.load_dataset, source.hub, source.config, **which)
    return _tables(f"hub {source.hub}", load)


def read_parquet(name: str, path: Path) -> Source:
    """A parquet file."""
    return _tables(name, lambda: _parquet(path))


def read_saved(name: str, path: Path, split: str | None, role: str) -> Source:
    """A folder that `datasets` saved: `split`, or the only split, or that named `role`."""
    with readable(name):
        dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        splits = list(dataset)
        split = split or (splits[0] if len(splits) == 1 else role)
        if split not in splits:
            known = f"the splits are: {', '.join(splits)} (write {path.name}#{splits[0]})"
            raise DataError(f"{name}: no split {split!r}{near(split, splits)}, {known}")
        dataset = dataset[split]
    with readable(name):
        dataset.data.validate(full=True)  # reading a damaged table could end the process
    return _tables(name, lambda: dataset)


def _parquet(path: Path) -> Any:
    """The streamed data set of a file. The loader writes nothing to ~/.cache."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        file = glob.escape(str(path.resolve()))
        return datasets.load_dataset(
            "parquet", data_files=file, split="train", streaming=True, cache_dir=cache
        )


def _tables(name: str, load: Callable[[], Any]) -> Source:
    """A source of typed columns, which `load` opens as a data set of `datasets`."""

    def stream(dataset: Any) -> Iterator[pa.Table]:
        yield from dataset.with_format("arrow").iter(batch_size=BATCH)

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        number = itertools.count(1)
        with readable(name):
            dataset = load().select_columns(list(dict.fromkeys(wanted)))  # two heads may share a column
            features = dataset.features or {}
            for table in stream(dataset):
                columns = {c: _values(table.column(c), features.get(c)) for c in table.column_names}
                for cells in zip(*(columns[c] for c in wanted), strict=True):
                    yield Row(name, f"row {next(number)}", cells)

    with readable(name):
        dataset = load()
        columns = dataset.column_names or next(stream(dataset)).column_names
    return Source(name, tuple(columns), read)


def _values(column: pa.ChunkedArray, feature: Any) -> list[object]:
    """The cells of an Arrow column, with class indices as names and bytes as text."""
    try:
        cells = column.to_pylist()
    except UnicodeDecodeError:
        cells = column.cast("large_binary").to_pylist()
    return [_value(cell, feature) for cell in cells]


def _value(cell: Any, feature: Any) -> object:
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "tinyheads.mark")
    if isinstance(cell, list):
        return [_value(item, getattr(feature, "feature", None)) for item in cell]
    if isinstance(cell, int) and isinstance(feature, datasets.ClassLabel):
        return feature.names[cell] if cell >= 0 else None
    return cell
