"""Prepared texts on disk: each split is an Arrow file, memory-mapped as a `datasets.Dataset`.

The columns are `text` and one `head_NAME` for each head. The column of a single_label head has class
indices, -100 where unlabelled. That of a multi_label head has a list of 0 and 1, one for each label, all -1
where unlabelled. Where a recipe lists several sources, `source` is the number of each text's source.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distill.heads import Head
from distill.storage import written_whole

CHUNK = 10_000  # rows in memory while writing


def write_texts(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    heads: Sequence[Head] = (),
    *,
    sourced: bool = False,
) -> int:
    """The number of rows written. The file is created complete, or not at all on failure.

    Args:
        path: The file without its suffix, `.arrow`.
        rows: Values of `text`, of `head_NAME` for each head, and of `source`. They are streamed.
        heads: The heads whose labels are in the rows.
        sourced: Whether the column `source` is written, the number of the source of each text.
    """
    types = {
        head.column: pa.int32() if head.kind == "single_label" else pa.list_(pa.int8(), len(head.labels))
        for head in heads
    }
    types |= {"source": pa.int32()} if sourced else {}
    schema, count, rows = pa.schema({"text": pa.string(), **types}), 0, iter(rows)
    with (
        written_whole(path.with_suffix(".arrow")) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, schema) as stream,
    ):
        while chunk := list(itertools.islice(rows, CHUNK)):
            stream.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
            count += len(chunk)
    return count


def load_split(folder: Path, name: str) -> datasets.Dataset:
    """The prepared split `name` in `folder`, memory-mapped."""
    return datasets.Dataset.from_file(str(folder / f"{name}.arrow"))


def load_heads(folder: Path) -> tuple[Head, ...]:
    """The heads of prepared data, in order."""
    content = json.loads((folder / "heads.json").read_text("utf-8"))
    return tuple(Head.from_json(head) for head in content)


def hard_labels(split: datasets.Dataset, heads: Sequence[Head]) -> dict[str, NDArray[Any]]:
    """The labels of a split by head: int64 `[texts]`, or for multi_label int8 `[texts, labels]`."""
    table = split.with_format("arrow")[:]
    labels: dict[str, NDArray[Any]] = {}
    for head in heads:
        if head.kind == "embedding":  # has no hard labels
            continue
        column = table.column(head.column).combine_chunks()
        if head.kind == "single_label":
            labels[head.name] = column.to_numpy(zero_copy_only=False).astype(np.int64)
        else:
            cells = column.flatten().to_numpy(zero_copy_only=False).astype(np.int8)
            labels[head.name] = cells.reshape(-1, len(head.labels))
    return labels
