import errno
import os
from pathlib import Path
from typing import Any

import pytest

from distill.compare.linked_runs import LinkError, link
from distill.recipe.load import parse_recipe
from distill.run import Run, Stage

RECIPE = parse_recipe({"name": "toy", "data": {"train": "a.csv"}, "heads": {"intent": {"column": "intent"}}})


def one(value: str = "first") -> Stage:
    """A stage that leaves a file in its folder and one outside."""

    def work(run: Run, folder: Path) -> dict[str, Any]:
        (folder / "deep").mkdir()
        (folder / "deep" / "inside").write_text(value)
        (run.folder / "soft_labels").mkdir(exist_ok=True)
        (run.folder / "soft_labels" / value).write_text(value)
        return {}

    return Stage("one", work, (), resumes=True, leaves=lambda run: [run.folder / "soft_labels" / value])


@pytest.fixture
def source(tmp_path: Path, cpu_accelerator: Any) -> Run:
    run = Run(RECIPE, tmp_path / "source", cpu_accelerator)
    run.do(one(), "a")
    return run


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The content and the inode of every file."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino) for path in found}


def test_a_linked_stage_is_done_and_its_files_are_the_same_files(
    source: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link(source.folder, tmp_path / "new", ["one"])
    before = files(source.folder)
    assert files(tmp_path / "new") == {k: v for k, v in before.items() if "begun" not in k}
    caplog.set_level("INFO", "tinyheads")
    Run(RECIPE, tmp_path / "new", source.accelerator).do(one("never"), "a")
    assert "one: done before" in caplog.text


@pytest.mark.parametrize("value", ["first", "second"])
def test_a_linked_stage_that_is_done_again_leaves_the_source_alone(
    source: Run, tmp_path: Path, value: str
) -> None:
    link(source.folder, tmp_path / "new", ["one"])
    before = files(source.folder)
    new = Run(RECIPE, tmp_path / "new", source.accelerator)
    new.do(one(value), "b")
    assert new.stage("one").joinpath("deep", "inside").read_text() == value
    assert files(source.folder) == before


def test_files_are_copied_where_there_are_no_hard_links(
    source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    link(source.folder, tmp_path / "new", ["one"])
    old, new = files(source.folder), files(tmp_path / "new")
    assert all(new[name][0] == old[name][0] and new[name][1] != old[name][1] for name in new)


def test_a_run_without_the_stage_or_one_of_its_files_is_refused_and_nothing_is_made(
    source: Run, tmp_path: Path
) -> None:
    with pytest.raises(LinkError, match=r"source: holds no finished two \(run its recipe first\)"):
        link(source.folder, tmp_path / "new", ["one", "two"])
    (source.folder / "soft_labels" / "first").unlink()
    with pytest.raises(LinkError, match=r"first: is missing \(run its recipe again\)"):
        link(source.folder, tmp_path / "new", ["one"])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_older_folder_is_replaced_and_what_a_killed_process_left_is_removed(
    source: Run, tmp_path: Path
) -> None:
    for name in ("new", ".new.tmp-999999999"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    link(source.folder, tmp_path / "new", ["one"])
    assert not (tmp_path / "new" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]
