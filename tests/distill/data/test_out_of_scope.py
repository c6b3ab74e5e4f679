"""Texts of no class."""

from pathlib import Path

import pytest

from distill.data import out_of_scope
from distill.data.sources import DataError
from distill.recipe.data_section import Data


def data(folder: Path, **sources: str) -> Data:
    for split, text in sources.items():
        (folder / f"{split}.txt").write_text(text, "utf-8")
    files = {split: f"{split}.txt" for split in sources}
    return Data.model_validate({"root": str(folder), "train": "train.csv", "oos": files})


def test_a_text_is_in_one_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = data(tmp_path, validation="a\nb\nc\na\n \n", test="b\nd\ne\n")
    with caplog.at_level("INFO", "tinyheads"):
        assert out_of_scope.texts(recipe, iter(["d", "x"])) == {"test": ["b", "e"], "validation": ["a", "c"]}
    assert "data.oos.test: 1 texts are removed" in caplog.text
    assert "data.oos.validation: 1 texts are removed" in caplog.text
    assert out_of_scope.texts(Data.model_validate({"train": "train.csv"})) == {}


def test_without_a_text_that_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.oos\.validation: has no text that no other split has"):
        out_of_scope.texts(data(tmp_path, validation="a\n", test="a\nb\n"))
    with pytest.raises(DataError, match=r"data\.oos\.test: has no text"):
        out_of_scope.texts(data(tmp_path, test="a\n"), ["a"])


def test_the_content_is_what_counts(tmp_path: Path) -> None:
    recipe = data(tmp_path, test="a\n")
    before = out_of_scope.contents(recipe)
    assert before.keys() == {"test"} and out_of_scope.contents(data(tmp_path, test="a\n")) == before
    assert out_of_scope.contents(data(tmp_path, test="b\n")) != before
