import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from distill.data import dataset as prepared
from distill.data.dataset import hard_labels, load_heads, load_split, write_texts
from distill.heads import UNKNOWN, UNLABELLED, Head

HEADS = (
    Head("intent", "single_label", ("a", "b", "c")),
    Head("flags", "multi_label", ("x", "y")),
    Head("one", "multi_label", ("z",)),
)
LABELS: list[tuple[int, list[int], list[int]]] = [
    (2, [0, 1], [1]),
    (UNLABELLED, [1, 1], [UNKNOWN]),
    (0, [UNKNOWN, UNKNOWN], [0]),
]


def rows(count: int = 3) -> Iterator[dict[str, Any]]:
    for number in range(count):
        intent, flags, one = LABELS[number % 3]
        yield {"text": f"späte {number}", "head_intent": intent, "head_flags": flags, "head_one": one}


def test_texts_and_labels_round_trip(tmp_path: Path) -> None:
    assert write_texts(tmp_path / "train", rows(), HEADS) == 3
    split = load_split(tmp_path, "train")
    assert list(split["text"]) == ["späte 0", "späte 1", "späte 2"]
    labels = hard_labels(split, HEADS)
    assert list(labels) == ["intent", "flags", "one"]
    assert labels["intent"].dtype == np.int64 and labels["intent"].tolist() == [2, UNLABELLED, 0]
    assert labels["flags"].dtype == np.int8
    assert labels["flags"].tolist() == [[0, 1], [1, 1], [UNKNOWN, UNKNOWN]]
    assert labels["one"].tolist() == [[1], [UNKNOWN], [0]]


def test_it_is_memory_mapped(tmp_path: Path) -> None:
    write_texts(tmp_path / "train", rows(), HEADS)
    split = load_split(tmp_path, "train")
    assert isinstance(split, datasets.Dataset) and split.cache_files


def test_many_chunks_are_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "CHUNK", 7)
    assert write_texts(tmp_path / "train", rows(50), HEADS) == 50
    split = load_split(tmp_path, "train")
    assert list(split["text"]) == [f"späte {i}" for i in range(50)]
    labels = hard_labels(split, HEADS)
    for number, (intent, flags, one) in enumerate(LABELS * 16):
        assert labels["intent"][number] == intent and labels["flags"][number].tolist() == flags
        assert labels["one"][number].tolist() == one


def test_labels_of_a_part_of_a_split(tmp_path: Path) -> None:
    write_texts(tmp_path / "train", rows(), HEADS)
    part = load_split(tmp_path, "train").select([2, 0])
    assert hard_labels(part, HEADS)["flags"].tolist() == [[UNKNOWN, UNKNOWN], [0, 1]]


def test_a_split_without_texts(tmp_path: Path) -> None:
    assert write_texts(tmp_path / "test", iter(()), HEADS) == 0
    split = load_split(tmp_path, "test")
    assert len(split) == 0 and list(split["text"]) == []
    labels = hard_labels(split, HEADS)
    assert labels["intent"].shape == (0,) and labels["flags"].shape == (0, 2)


def test_texts_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "unlabeled", ({"text": text} for text in ("a", "b")))
    split = load_split(tmp_path, "unlabeled")
    assert split.column_names == ["text"] and hard_labels(split, ()) == {}


def test_the_source_of_each_text(tmp_path: Path) -> None:
    write_texts(tmp_path / "transfer", ({"text": t, "source": i} for i, t in enumerate("abc")), sourced=True)
    split = load_split(tmp_path, "transfer")
    assert split.select([1, 2]).with_format("numpy")[:]["source"].tolist() == [1, 2]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from rows()
        raise ValueError("a bad row")

    with pytest.raises(ValueError, match="a bad row"):
        write_texts(tmp_path / "train", broken(), HEADS)
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_split_is_left(tmp_path: Path) -> None:
    write_texts(tmp_path / "train", rows(), HEADS)
    assert [folder.name for folder in tmp_path.iterdir()] == ["train.arrow"]


@pytest.mark.parametrize("shown", [True, False])
def test_the_setting_of_progress_bars_is_restored(tmp_path: Path, shown: bool) -> None:
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        write_texts(tmp_path / "train", rows(), HEADS)
        assert datasets.are_progress_bars_disabled() != shown
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def test_heads_of_prepared_data(tmp_path: Path) -> None:
    heads = (Head("intent", "single_label", ("a", "ü"), 0.5), *HEADS[1:])
    content = json.dumps([head.to_json() for head in heads], ensure_ascii=False)
    (tmp_path / "heads.json").write_text(content, encoding="utf-8")
    assert load_heads(tmp_path) == heads
