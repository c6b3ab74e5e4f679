import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.pipeline import stage_digests
from distill.recipe.load import parse_recipe
from distill.run import Run, Stage, versions

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
    """A stage that notes the files it finds, and leaves one and a kept one more."""

    def work(run: Run, folder: Path) -> dict[str, Any]:
        assert not (folder / "stage.json").exists()
        found = sorted(file.name for file in folder.iterdir())
        seen.append(found)
        (folder / "left").write_text(str(metric))
        (folder / f"part{len(found)}").write_text("part")
        run.keep(folder / f"part{len(found)}")
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
    assert (record["stage"], record["seed"]) == ("one", 7)
    assert record["inputs"] == {"digest": "digest-a", "after": {}}
    assert list(record["files"]) == ["stages/one/left", "stages/one/part1"]
    assert record["metrics"] == run.metrics("one") == {"metric": 1}
    assert record["device"] == "cpu" and record["seconds"] >= 0 and record["peak_rss_bytes"] > 1_000_000
    assert record["versions"] == versions()


def test_the_seconds_of_a_stage_that_was_stopped_count(run: Run) -> None:
    work = counting([])
    run.do(Stage("one", lambda run, folder: {**work(run, folder), "earlier_seconds": 100.0}, ()), "a")
    record = json.loads((run.stage("one") / "stage.json").read_text())
    assert record["seconds"] >= 100 and record["metrics"] == {"metric": 1}


def test_a_stage_with_the_same_digest_is_skipped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinyheads")
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    before = (run.stage("one") / "stage.json").read_bytes()
    run.do(Stage("one", counting(seen, metric=2), ()), "a")
    assert len(seen) == 1 and (run.stage("one") / "stage.json").read_bytes() == before
    assert "one: done before" in caplog.text


def test_a_stage_whose_inputs_changed_starts_again(run: Run) -> None:
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    run.do(Stage("one", counting(seen, metric=2), ()), "b")
    assert seen == [["begun.json"], ["begun.json"]] and run.metrics("one") == {"metric": 2}
    run.do(Stage("one", counting(seen, metric=3), ()), "a")
    assert len(seen) == 3 and run.metrics("one") == {"metric": 3}


def test_a_long_stage_that_was_stopped_resumes_in_its_folder(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tinyheads")
    seen: list[list[str]] = []
    for _ in range(2):
        with pytest.raises(Killed):
            run.do(Stage("one", counting(seen, killed=True), (), resumes=True), "a")
    assert not (run.stage("one") / "stage.json").exists()
    run.do(Stage("one", counting(seen), (), resumes=True), "a")
    assert seen == [["begun.json"], ["begun.json", "part1"], ["begun.json", "part1", "part2"]]
    assert "one: resumes where it stopped" in caplog.text


def test_a_stopped_stage_keeps_files_of_inner_folders_and_no_others(run: Run) -> None:
    seen: list[list[str]] = []

    def work(run: Run, folder: Path) -> dict[str, Any]:
        seen.append(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")))
        for name in ("kept/whole", "kept/part", "other/part"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("x")
        run.keep(folder / "kept/whole")
        if len(seen) == 1:
            raise Killed
        return {}

    with pytest.raises(Killed):
        run.do(Stage("one", work, (), resumes=True), "a")
    run.do(Stage("one", work, (), resumes=True), "a")
    assert seen[1] == ["begun.json", "kept", "kept/whole"]


def test_a_stopped_stage_resumes_with_other_settings_that_describe_the_same_run(run: Run) -> None:
    seen: list[list[str]] = []
    with pytest.raises(Killed):
        run.do(Stage("one", counting(seen, killed=True), (), resumes=True), "a")
    run.do(Stage("one", counting(seen), (), resumes=True), "b", equal_digest="a")
    run.do(Stage("one", counting(seen), (), resumes=True), "a")  # done
    assert seen == [["begun.json"], ["begun.json", "part1"]]


@pytest.mark.parametrize(("digest", "long"), [("b", True), ("a", False)], ids=["other inputs", "short"])
def test_a_stopped_stage_starts_again_otherwise(run: Run, digest: str, long: bool) -> None:
    seen: list[list[str]] = []
    with pytest.raises(Killed):
        run.do(Stage("one", counting(seen, killed=True), (), resumes=long), "a")
    run.do(Stage("one", counting(seen), (), resumes=long), digest)
    assert seen == [["begun.json"], ["begun.json"]]


def test_a_stage_that_fails_leaves_what_an_earlier_command_made(run: Run) -> None:
    seen: list[list[str]] = []
    run.do(Stage("one", counting(seen), ()), "a")
    with pytest.raises(Killed):
        run.do(Stage("one", counting(seen, killed=True), ()), "b")
    run.do(Stage("one", counting(seen), ()), "a")
    assert len(seen) == 2
    assert not (run.folder / "stages/.old").exists()


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


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "is missing": Path.unlink,
    "is empty": lambda path: path.write_bytes(b""),
    "is changed or damaged": lambda path: path.write_bytes(b"x" * path.stat().st_size),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("name", ["stages/one/left", "outside/left"])
def test_a_stage_whose_files_do_not_match_its_record_is_done_again(
    run: Run, what: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def work(run: Run, folder: Path) -> dict[str, Any]:
        (folder / "left").write_text("inside")
        (run.folder / "outside").mkdir(exist_ok=True)
        (run.folder / "outside" / "left").write_text("outside")
        return {}

    stage = Stage("one", work, (), leaves=lambda run: [run.folder / "outside"])
    run.do(stage, "a")
    files = {
        path: path.read_bytes() for path in (run.folder / "stages/one/left", run.folder / "outside/left")
    }
    before = run.record("one")
    DAMAGE[what](run.folder / name)
    caplog.set_level("INFO", "tinyheads")
    run.do(stage, "a")
    assert f"{run.folder / name}: {what}, so one is run again" in caplog.text
    assert {path: path.read_bytes() for path in files} == files
    after = run.record("one")
    assert before and after and after["files"] == before["files"]
    caplog.clear()
    run.do(stage, "a")
    assert "one: done before" in caplog.text


def test_stages_that_read_a_stage_are_done_again_if_its_results_differ(run: Run) -> None:
    """With the same inputs a training may end with other weights, on another number of threads."""
    seen: list[list[str]] = []

    def both(metric: int) -> None:
        run.do(Stage("one", counting([], metric), ()), "a")
        run.do(Stage("two", counting(seen), ()), "a", ["one"])

    both(metric=1)
    both(metric=2)
    assert len(seen) == 1
    (run.stage("one") / "left").unlink()
    both(metric=1)
    assert len(seen) == 1, "the file is the same again"
    (run.stage("one") / "left").unlink()
    both(metric=2)
    assert len(seen) == 2


def test_a_kept_file_that_is_damaged_is_made_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[list[str]] = []
    for _ in range(2):
        with pytest.raises(Killed):
            run.do(Stage("one", counting(seen, killed=True), (), resumes=True), "a")
    (run.stage("one") / "part1").write_text("trap")
    caplog.set_level("INFO", "tinyheads")
    run.do(Stage("one", counting(seen), (), resumes=True), "a")
    assert seen[-1] == ["begun.json", "part2"]
    assert f"{run.stage('one') / 'part1'}: is changed or damaged, so it is made again" in caplog.text


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


def test_a_damaged_record_is_none(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.do(Stage("one", counting([]), ()), "a")
    path = run.stage("one") / "stage.json"
    whole = path.read_bytes()
    caplog.set_level("INFO", "tinyheads")
    for content in (b"", whole[:-9], whole.replace(b'"seed": 7', b'"seed": 6'), b"\xff", b"[" * 9999, b"[]"):
        path.write_bytes(content)
        seen: list[list[str]] = []
        run.do(Stage("one", counting(seen), ()), "a")
        assert seen == [["begun.json"]] and run.metrics("one") == {"metric": 1}
        assert f"{path}: is damaged or of another version, so one is run again" in caplog.text
        caplog.clear()


def test_a_damaged_beginning_is_said(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinyheads")
    seen: list[list[str]] = []
    stage = Stage("one", counting(seen, killed=True), (), resumes=True)
    for _ in range(2):
        with pytest.raises(Killed):
            run.do(stage, "a")
        (run.stage("one") / "begun.json").write_bytes(b"")
    assert seen == [["begun.json"]] * 2
    assert "begun.json: is damaged or of another version, so one starts from the beginning" in caplog.text


def test_versions() -> None:
    found = versions()
    assert {"python", "torch", "transformers", "accelerate", "numpy"} <= set(found)
    assert all(value[0].isdigit() for value in found.values())
