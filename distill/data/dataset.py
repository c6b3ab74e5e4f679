"""Prepared texts on disk: written once by `prepare` and `label`, memory-mapped by all that follows.

A folder of `datasets.save_to_disk` a split: `text`, and `head_NAME` a head. A single_label head's column
is a class index, -100 where unlabelled; a multi_label head's a 0 or 1 a label, -1 where unlabelled.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from distill.heads import Head

CHUNK = 10_000  # rows written at a time


def write_texts(
    folder: Path, rows: Iterable[dict[str, Any]], heads: Sequence[Head] = (), *, marks: Sequence[str] = ()
) -> int:
    """The number of rows written to a new folder, which appears whole or not at all.

    Args:
        folder: To make; its parent exists.
        rows: `text`, and a `head_NAME` a head, streamed a few thousand at a time.
        heads: Whose labels the rows carry.
        marks: Names of what is true or false of a row, which the rows carry too.
    """
    types = {
        head.column: pa.int32() if head.kind == "single_label" else pa.list_(pa.int8(), len(head.labels))
        for head in heads
    }
    types |= dict.fromkeys(marks, pa.bool_())
    schema, count, rest = pa.schema({"text": pa.string(), **types}), 0, iter(rows)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch, _quiet():
        table = Path(scratch, "table.arrow")
        with pa.OSFile(str(table), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            while chunk := list(itertools.islice(rest, CHUNK)):
                stream.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
                count += len(chunk)
        rows_on_disk = datasets.Dataset.from_file(str(table))
        shards = None if count else 1  # none at all cannot be read back
        rows_on_disk.save_to_disk(str(Path(scratch, "whole")), num_shards=shards)
        Path(scratch, "whole").rename(folder)
    return count


def load_split(folder: Path, name: str) -> Any:
    """A prepared split, a memory-mapped `datasets.Dataset`."""
    return datasets.load_from_disk(str(folder / name))


def load_heads(folder: Path) -> tuple[Head, ...]:
    """The heads of prepared data, in order."""
    content = json.loads((folder / "heads.json").read_text("utf-8"))
    return tuple(Head.from_json(head) for head in content)


def hard_labels(split: Any, heads: Sequence[Head]) -> dict[str, Any]:
    """The labels of a split: int64 `[texts]`, or for multi_label int8 `[texts, labels]`."""
    table = split.with_format("arrow")[:]
    labels: dict[str, Any] = {}
    for head in heads:
        if head.kind == "embedding":  # of which there are none
            continue
        column = table.column(head.column).combine_chunks()
        if head.kind == "single_label":
            labels[head.name] = column.to_numpy(zero_copy_only=False).astype(np.int64)
        else:
            cells = column.flatten().to_numpy(zero_copy_only=False).astype(np.int8)
            labels[head.name] = cells.reshape(-1, len(head.labels))
    return labels


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets`."""
    before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()
