import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.pipeline import stage_digests
from distill.recipe.load import parse_recipe
from distill.run import Run, Stage, read_json, versions, write_json, written_whole

RECIPE = parse_recipe(
    {"name": "toy", "seed": 7, "data": {"train": "train.csv"}, "heads": {"intent": {"column": "intent"}}}
)
Work = Callable[[Run, Path], dict[str, Any]]


class Killed(BaseException):
    """Stands for a power cut."""


@pytest.fixture
def run(tmp_path: Path, cpu_accelerator: Any) -> Run:
    return Run(RECIPE, tmp_path / "run", cpu_accelerator)


def counting(seen: list[list[str]], metric: int = 1, killed: bool = False) -> Work:
    """A stage that notes the files it finds and leaves one more."""

    def work(run: Run, folder: Path) -> dict[str, Any]:
        assert not (folder / "stage.json").exists()
        found = sorted(file.name for file in folder.iterdir())
        seen.append(found)
        (folder / f"part{len(found)}").touch()
        if killed:
            raise Killed
        return {"metric": metric}

    return work


def test_a_stage_is_recorded_last(run: Run) -> None:
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "digest-a")
    assert seen == [["begun.json"]]
    folder = run.stage("one")
    assert folder == run.folder / "stages" / "one"
    record = json.loads((folder / "stage.json").read_text())
    assert (record["stage"], record["digest"], record["seed"]) == ("one", "digest-a", 7)
    assert record["metrics"] == run.metrics("one") == {"metric": 1}
    assert record["device"] == "cpu" and record["seconds"] >= 0 and record["peak_rss_bytes"] > 1_000_000
    assert record["versions"] == versions()


def test_a_stage_with_the_same_digest_is_skipped(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    before = (run.stage("one") / "stage.json").read_bytes()
    run.do(Stage("one", counting(seen, metric=2), ()), "a")
    assert len(seen) == 1 and (run.stage("one") / "stage.json").read_bytes() == before
    out = capsys.readouterr()
    assert out.out == "" and "one: done before" in out.err


def test_a_stage_whose_inputs_changed_starts_again(run: Run) -> None:
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    run.do(Stage("one", counting(seen, metric=2), ()), "b")
    assert seen == [["begun.json"], ["begun.json"]] and run.metrics("one") == {"metric": 2}
    run.do(Stage("one", counting(seen, metric=3), ()), "a")
    assert len(seen) == 3 and run.metrics("one") == {"metric": 3}


def test_a_long_stage_that_was_stopped_resumes_in_its_folder(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    for _ in range(2):
        with pytest.raises(Killed):
            run.do(Stage("one", counting(seen, killed=True), (), resumes=True), "a")
    assert not (run.stage("one") / "stage.json").exists()
    run.do(Stage("one", counting(seen), (), resumes=True), "a")
    assert seen == [["begun.json"], ["begun.json", "part1"], ["begun.json", "part1", "part2"]]
    assert "one: resumes where it stopped" in capsys.readouterr().err


@pytest.mark.parametrize(("digest", "long"), [("b", True), ("a", False)], ids=["other inputs", "short"])
def test_a_stopped_stage_starts_again_otherwise(run: Run, digest: str, long: bool) -> None:
    seen: list[list[str]] = []
    with pytest.raises(Killed):
        run.do(Stage("one", counting(seen, killed=True), (), resumes=long), "a")
    run.do(Stage("one", counting(seen), (), resumes=long), digest)
    assert seen == [["begun.json"], ["begun.json"]]


def test_a_done_stage_stopped_while_it_starts_again_is_not_done(run: Run) -> None:
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    with pytest.raises(Killed):
        run.do(Stage("one", counting(seen, killed=True), ()), "b")
    run.do(Stage("one", counting(seen), ()), "a")
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
        run.do(Stage("one", work, (), resumes=True), "a")
    assert (run.stage("one") / "scratch").exists()
    run.do(Stage("one", work, (), resumes=True), "a")
    names = sorted(file.name for file in run.stage("one").iterdir())
    assert names == ["begun.json", "kept", "stage.json"]


def test_stages_do_not_touch_each_other(run: Run) -> None:
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    run.do(Stage("two", counting(seen), ()), "a")
    run.do(Stage("one", counting(seen), ()), "b")
    assert (run.stage("two") / "stage.json").exists() and len(seen) == 3


def test_a_stage_without_what_it_leaves_is_done_again(run: Run) -> None:
    seen: list[list[str]] = []
    stage = Stage("one", counting(seen), (), leaves="left")
    run.do(stage, "a")
    run.do(stage, "a")
    assert len(seen) == 2
    (run.folder / "left").touch()
    run.do(stage, "a")
    assert len(seen) == 2


def test_a_stage_that_starts_again_removes_those_that_read_it(run: Run) -> None:
    """With the same inputs a training may end with other weights, on another number of threads."""
    one, two = (Stage(name, counting([]), ()) for name in ("one", "two"))
    run.do(one, "a", [two])
    run.do(two, "a")
    run.do(one, "a", [two])
    assert run.record("two")
    run.do(one, "b", [two])
    assert run.record("two") is None and not run.stage("two").exists()


def test_a_digest_is_of_a_stages_inputs_and_of_the_versions_up_to_it() -> None:
    def digests(first: int = 1, second: int = 1, **inputs: int) -> dict[str, str]:
        stages = (
            Stage("one", counting([]), ("a",), version=first),
            Stage("two", counting([]), ("a", "b"), version=second),
        )
        return stage_digests(stages, {"a": 0, "b": 0} | inputs)

    def redone(**change: int) -> list[str]:
        before, after = digests(), digests(**change)
        return [name for name in before if before[name] != after[name]]

    assert redone() == redone(c=1) == []
    assert redone(a=1) == redone(first=2) == ["one", "two"]
    assert redone(b=1) == redone(second=2) == ["two"]


@pytest.mark.parametrize("content", ["", "{", '{"digest": "a"'])
def test_a_record_cut_short_is_none(run: Run, content: str) -> None:
    run.stage("one").mkdir(parents=True)
    (run.stage("one") / "stage.json").write_text(content)
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    assert seen == [["begun.json"]] and run.metrics("one") == {"metric": 1}


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
