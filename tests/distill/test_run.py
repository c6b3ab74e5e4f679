import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.recipe.load import parse_recipe
from distill.recipe.schema import Small
from distill.run import Run, read_json, versions, write_json, written_whole

RECIPE = parse_recipe(
    {"name": "toy", "seed": 7, "data": {"train": "train.csv"}, "heads": {"intent": {"column": "intent"}}}
)
Work = Callable[[Run, Path], dict[str, Any]]


class Killed(BaseException):
    """Stands for a power cut."""


@pytest.fixture
def run(tmp_path: Path, cpu_accelerator: Any) -> Run:
    return Run(RECIPE, tmp_path / "run", cpu_accelerator)


def counting(seen: list[list[str]], figure: int = 1, killed: bool = False) -> Work:
    """A stage that notes the files it finds and leaves one more."""

    def work(run: Run, folder: Path) -> dict[str, Any]:
        assert not (folder / "stage.json").exists()
        found = sorted(file.name for file in folder.iterdir())
        seen.append(found)
        (folder / f"part{len(found)}").touch()
        if killed:
            raise Killed
        return {"figure": figure}

    return work


def test_a_stage_is_recorded_last(run: Run) -> None:
    seen: list[list[str]] = []
    run.do("one", "digest-a", counting(seen))
    assert seen == [["begun.json"]]
    folder = run.stage("one")
    assert folder == run.folder / "stages" / "one"
    record = json.loads((folder / "stage.json").read_text())
    assert (record["stage"], record["digest"], record["seed"]) == ("one", "digest-a", 7)
    assert record["figures"] == run.figures("one") == {"figure": 1}
    assert record["device"] == "cpu" and record["seconds"] >= 0 and record["peak_rss_bytes"] > 1_000_000
    assert record["versions"] == versions()


def test_a_stage_with_the_same_digest_is_skipped(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[list[str]] = []
    run.do("one", "a", counting(seen))
    before = (run.stage("one") / "stage.json").read_bytes()
    run.do("one", "a", counting(seen, figure=2))
    assert len(seen) == 1 and (run.stage("one") / "stage.json").read_bytes() == before
    out = capsys.readouterr()
    assert out.out == "" and "one: done before" in out.err


def test_a_stage_whose_inputs_changed_is_begun_anew(run: Run) -> None:
    seen: list[list[str]] = []
    run.do("one", "a", counting(seen))
    run.do("one", "b", counting(seen, figure=2))
    assert seen == [["begun.json"], ["begun.json"]] and run.figures("one") == {"figure": 2}
    run.do("one", "a", counting(seen, figure=3))
    assert len(seen) == 3 and run.figures("one") == {"figure": 3}


def test_a_long_stage_that_was_stopped_goes_on_in_its_folder(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    for _ in range(2):
        with pytest.raises(Killed):
            run.do("one", "a", counting(seen, killed=True), long=True)
    assert not (run.stage("one") / "stage.json").exists()
    run.do("one", "a", counting(seen), long=True)
    assert seen == [["begun.json"], ["begun.json", "part1"], ["begun.json", "part1", "part2"]]
    assert "one: goes on where it was stopped" in capsys.readouterr().err


@pytest.mark.parametrize(("digest", "long"), [("b", True), ("a", False)], ids=["other inputs", "short"])
def test_a_stopped_stage_is_begun_anew_otherwise(run: Run, digest: str, long: bool) -> None:
    seen: list[list[str]] = []
    with pytest.raises(Killed):
        run.do("one", "a", counting(seen, killed=True), long=long)
    run.do("one", digest, counting(seen), long=long)
    assert seen == [["begun.json"], ["begun.json"]]


def test_a_done_stage_stopped_while_begun_anew_is_not_taken_for_done(run: Run) -> None:
    seen: list[list[str]] = []
    run.do("one", "a", counting(seen))
    with pytest.raises(Killed):
        run.do("one", "b", counting(seen, killed=True))
    run.do("one", "a", counting(seen))
    assert len(seen) == 3


def test_scratch_outlives_a_kill_but_not_the_stage(run: Run) -> None:
    def work(run: Run, folder: Path) -> dict[str, Any]:
        scratch = folder / "scratch"
        if not scratch.exists():
            scratch.mkdir()
            raise Killed
        (folder / "kept").touch()
        return {}

    with pytest.raises(Killed):
        run.do("one", "a", work, long=True)
    assert (run.stage("one") / "scratch").exists()
    run.do("one", "a", work, long=True)
    names = sorted(file.name for file in run.stage("one").iterdir())
    assert names == ["begun.json", "kept", "stage.json"]


def test_stages_do_not_touch_each_other(run: Run) -> None:
    seen: list[list[str]] = []
    run.do("one", "a", counting(seen))
    run.do("two", "a", counting(seen))
    run.do("one", "b", counting(seen))
    assert (run.stage("two") / "stage.json").exists() and len(seen) == 3


@pytest.mark.parametrize("content", ["", "{", '{"digest": "a"'])
def test_a_record_cut_short_is_none(run: Run, content: str) -> None:
    run.stage("one").mkdir(parents=True)
    (run.stage("one") / "stage.json").write_text(content)
    seen: list[list[str]] = []
    run.do("one", "a", counting(seen))
    assert seen == [["begun.json"]] and run.figures("one") == {"figure": 1}


def test_seeding_fixes_initial_weights(run: Run) -> None:
    import torch

    drawn = []
    for seed in (None, run.recipe.seed, run.recipe.seed + 1):
        run.seed_everything(Small(seed=seed))
        drawn.append(torch.randn(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


# files


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and not path.exists()
        assert temporary.name.startswith(".") and str(os.getpid()) in temporary.name
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(failure), written_whole(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(failure), written_whole(path):
        raise failure
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"b": ["späte", 1.5, None], "a": {}})
    assert read_json(path) == {"b": ["späte", 1.5, None], "a": {}}
    assert "späte" in path.read_text("utf-8") and list(read_json(path)) == ["b", "a"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"b": ["späte", 1.5, None], "a": {}} and list(tmp_path.iterdir()) == [path]


def test_versions() -> None:
    found = versions()
    assert {"python", "torch", "transformers", "accelerate", "numpy"} <= set(found)
    assert all(value[0].isdigit() for value in found.values())
