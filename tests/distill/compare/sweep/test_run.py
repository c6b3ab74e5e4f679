"""The engine of a sweep, with runs that only write the records of their stages."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.compare.processes import Processes, _reason
from distill.compare.sweep.grid import parse_grid, settings
from distill.compare.sweep.run import Sweep, SweepError, best_folder, run_sweep
from distill.recipe.data_section import RecipeError
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.run import LOG, read_record
from distill.storage import RunLockedError, digests, locked, write_sealed
from distill.training.interrupts import Interrupted

Outcome = Callable[[dict[str, Any]], float | str | None]  # a value, the reason of a failure, or no metric


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("text,intent\na,x\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("{name: toy, seed: 3, data: {train: a.csv}, heads: {intent: {column: intent}}}")
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs in place of processes; `runs.outcome(recipe)` decides what becomes of a student."""

    class Runs(list[tuple[str, str]]):
        outcome: Outcome = staticmethod(lambda recipe: 0.5)
        labelled = 40

        def done(self, stage: str) -> int:
            return sum(name == stage for _, name in self)

    calls = Runs()

    def finish(folder: Path, stage: str, metrics: dict[str, Any]) -> None:
        place = folder / "stages" / stage
        place.mkdir(parents=True, exist_ok=True)
        (place / "left").unlink(missing_ok=True)
        (place / "left").write_text(stage)
        record = {"files": digests(folder, [place / "left"]), "seconds": 2.0, "metrics": metrics}
        write_sealed(place / "stage.json", record)
        calls.append((folder.name, stage))

    def run(self: Processes, given: Recipe, folder: Path, last: str, **_: Any) -> str | None:
        recipe = given.model_dump(mode="json")
        counts = {"rows": {"validation": 50}, "labelled": {"intent": {"validation": calls.labelled}}}
        for stage in ("prepare", "fit_teacher", "label"):
            if read_record(folder / "stages" / stage / "stage.json") is None:
                finish(folder, stage, counts)
        if last == "label":
            return None
        value = calls.outcome(recipe)
        if isinstance(value, str):
            return value
        metrics = {"metric": "mean", "validation": {"mean": value}, "best_epoch": 2}
        finish(folder, "fit_student", metrics)
        return None

    monkeypatch.setattr(Processes, "run", run)
    return calls


def about(recipe: Path, *grid: str, seeds: int = 1, trials: int = 99, jobs: int = 1, **change: Any) -> Sweep:
    base = load_recipe(recipe, overrides=[f"{key}={value}" for key, value in change.items()])
    return Sweep(base, settings(base, parse_grid(grid), seeds), recipe.parent / "out", trials, jobs)


def temperature(recipe: dict[str, Any]) -> float:
    return float(recipe["distillation"]["temperature"])


def test_the_best_mean_on_validation_wins_and_what_is_within_the_spread_is_tied(
    recipe: Path, runs: Any
) -> None:
    values = {1: (0.80, 0.82), 2: (0.90, 0.92), 4: (0.895, 0.915)}
    runs.outcome = lambda recipe: values[temperature(recipe)][recipe["student"]["seed"] == 4]
    job = about(recipe, "distillation.temperature=1,2,4", seeds=2)
    found = run_sweep(job)
    assert found == json.loads((recipe.parent / "out" / "sweep.json").read_text("utf-8"))
    assert (found["split"], found["texts"], found["seeds"]) == ("validation", 40, [3, 4])
    assert found["metric"] == "intent accuracy" and found["keys"] == ["distillation.temperature"]
    assert [row["settings"] for row in found["rows"]] == [{"distillation.temperature": t} for t in (1, 2, 4)]
    assert [row["values"] for row in found["rows"]] == [[*values[t]] for t in (1, 2, 4)]
    assert [row["mean"] for row in found["rows"]] == pytest.approx([0.81, 0.91, 0.905])
    assert [row["sd"] for row in found["rows"]] == pytest.approx([0.02 / 2**0.5] * 3)
    assert found["standard_error"] == pytest.approx(0.02 / 2**0.5)
    assert found["best"] == 1 and [row["tied"] for row in found["rows"]] == [False, True, True]
    assert [(row["epochs"], row["seconds"], row["failed"]) for row in found["rows"]] == [(2, 4, None)] * 3
    best = best_folder(job, found)
    assert best.name == "seed-3" and best.parent.name.startswith("temperature=2-") and best.is_dir()


def test_the_teacher_is_trained_once_and_labels_are_written_once(recipe: Path, runs: Any) -> None:
    run_sweep(about(recipe, "distillation.temperature=1,2,4", "distillation.soft_weight=0.5,0.9", seeds=2))
    assert {stage: runs.done(stage) for stage in ("prepare", "fit_teacher", "label", "fit_student")} == {
        "prepare": 1,
        "fit_teacher": 1,
        "label": 1,
        "fit_student": 12,
    }
    inodes = {path.stat().st_ino for path in (recipe.parent / "out").rglob("stages/fit_teacher/left")}
    assert len(inodes) == 1


def test_settings_of_the_teacher_share_it_between_their_seeds(recipe: Path, runs: Any) -> None:
    run_sweep(about(recipe, "teacher.lr=1e-5,2e-5", "distillation.temperature=1,2", seeds=2))
    assert (runs.done("fit_teacher"), runs.done("fit_student")) == (2, 8)


def test_other_augmented_texts_keep_the_teacher(recipe: Path, runs: Any) -> None:
    run_sweep(about(recipe, "augment.copies=0,1", seeds=2))
    assert (runs.done("fit_teacher"), runs.done("fit_student")) == (1, 4)
    assert len([*(recipe.parent / "out" / "base").glob("*/")]) == 2


def test_a_setting_that_fails_is_a_row_and_the_next_process_tries_it_again(recipe: Path, runs: Any) -> None:
    runs.outcome = lambda recipe: "out of memory" if temperature(recipe) == 2 else 0.5
    grid = "distillation.temperature=1,2,4"
    found = run_sweep(about(recipe, grid, seeds=2))
    row = found["rows"][1]
    assert (row["failed"], row["mean"], row["values"], row["tied"]) == (
        "out of memory",
        None,
        [None, None],
        False,
    )
    assert found["best"] in (0, 2) and runs.done("fit_student") == 4
    runs.outcome = lambda recipe: 0.9
    found = run_sweep(about(recipe, grid, seeds=2))
    assert [row["mean"] for row in found["rows"]] == [0.5, 0.9, 0.5] and found["best"] == 1
    assert runs.done("fit_student") == 6, "what was finished is kept"


@pytest.mark.parametrize(("value", "reason"), [("no space", "no space"), (None, "no validation text has a")])
def test_if_every_setting_fails_the_sweep_does(recipe: Path, runs: Any, value: Any, reason: str) -> None:
    runs.outcome = lambda recipe: value
    with pytest.raises(SweepError, match=f"out: every setting failed: {reason}"):
        run_sweep(about(recipe, "distillation.temperature=1,2"))
    assert json.loads((recipe.parent / "out" / "sweep.json").read_text("utf-8"))["best"] is None


def test_agreement_with_different_teachers_is_not_compared(recipe: Path, runs: Any) -> None:
    runs.labelled = 0
    with pytest.raises(
        SweepError, match="a head has no labels in validation, and the agreement with different"
    ):
        run_sweep(about(recipe, "teacher.lr=1e-5,2e-5"))
    assert runs.done("fit_student") == 0
    (recipe.parent / "out").rename(recipe.parent / "other")
    assert run_sweep(about(recipe, "distillation.temperature=1,2"))["texts"] == 50


def test_a_sweep_that_is_killed_at_any_write_continues(recipe: Path, runs: Any, monkeypatch: Any) -> None:
    """A journal that was cut anywhere, as by kill -9 or a full disk, and a lock that was left."""
    grid = "distillation.temperature=1,2,4"
    run_sweep(about(recipe, grid))
    out = recipe.parent / "out"
    journal = (out / "study.jsonl").read_bytes()
    for end in [*range(0, len(journal), 97), len(journal) - 1]:
        (out / "study.jsonl").write_bytes(journal[:end])
        (out / "study.jsonl.lock").touch()
        found = run_sweep(about(recipe, grid))
        assert [row["mean"] for row in found["rows"]] == [0.5] * 3


def test_a_damaged_study_is_refused_in_a_line(recipe: Path, runs: Any) -> None:
    run_sweep(about(recipe, "distillation.temperature=1,2"))
    (recipe.parent / "out" / "study.jsonl").write_bytes(b"\xff\n{}\n")
    with pytest.raises(
        RecipeError, match=r"study.jsonl: is damaged: .* \(delete it; finished runs are kept\)"
    ):
        run_sweep(about(recipe, "distillation.temperature=1,2"))


def test_more_values_and_seeds_run_what_is_new(recipe: Path, runs: Any) -> None:
    run_sweep(about(recipe, "distillation.temperature=1,2"))
    found = run_sweep(about(recipe, "distillation.temperature=1,2,4", seeds=2))
    assert len(found["rows"]) == 3 and found["seeds"] == [3, 4]
    assert runs.done("fit_teacher") == 1


@pytest.mark.parametrize(("trials", "jobs"), [(7, 1), (7, 3), (24, 2), (99, 4)])
def test_with_fewer_trials_than_settings_each_is_another(
    recipe: Path, runs: Any, trials: int, jobs: int
) -> None:
    runs.outcome = lambda recipe: 1 / temperature(recipe)
    grid = ("distillation.temperature=1,2,3,4,5", "distillation.soft_weight=0.1,0.3,0.5,0.7,0.9")
    found = run_sweep(about(recipe, *grid, trials=trials, jobs=jobs))
    rows = [tuple(row["settings"].values()) for row in found["rows"]]
    assert len(rows) == len({*rows}) == min(trials, 25) == runs.done("fit_student")
    found = run_sweep(about(recipe, *grid, trials=trials + 1, jobs=jobs))
    assert len(found["rows"]) == min(trials + 1, 25) == runs.done("fit_student")


def test_settings_run_at_a_time(recipe: Path, runs: Any) -> None:
    both = threading.Barrier(2, timeout=30)
    runs.outcome = lambda recipe: (both.wait() and 0.5) or 0.5
    assert run_sweep(about(recipe, "distillation.temperature=1,2,3,4", jobs=2))["best"] == 0


def test_a_folder_of_something_else_is_refused(recipe: Path, runs: Any) -> None:
    out = recipe.parent / "out"
    job = about(recipe, "distillation.temperature=1,2")
    out.write_text("")
    with pytest.raises(RecipeError, match=r"--out: .*out is a file, expected a folder \(choose another\)"):
        run_sweep(job)
    out.unlink()
    (out / "stages").mkdir(parents=True)
    with pytest.raises(
        RecipeError, match=r"--out: .*out holds something else than a sweep \(choose another\)"
    ):
        run_sweep(job)
    (out / "stages").rmdir()
    run_sweep(job)
    other = about(recipe, "distillation.temperature=1,2", **{"student.epochs": 9})
    with pytest.raises(RecipeError, match=r"out holds a sweep of another recipe \(choose another"):
        run_sweep(other)
    (recipe.parent / "a.csv").write_text("text,intent\na,y\n")
    with pytest.raises(RecipeError, match=r"out holds a sweep of other data \(choose another"):
        run_sweep(job)


def test_a_second_sweep_in_the_folder_is_refused(recipe: Path, runs: Any) -> None:
    job = about(recipe, "distillation.temperature=1,2")
    run_sweep(job)
    with locked(job.folder, "trials"), pytest.raises(RunLockedError, match="has been working in this folder"):
        run_sweep(job)


def test_ctrl_c_keeps_what_is_finished(recipe: Path, runs: Any, caplog: Any) -> None:
    def interrupted(recipe: dict[str, Any]) -> float:
        if temperature(recipe) == 2:
            raise KeyboardInterrupt
        return 0.5

    runs.outcome = interrupted
    job = about(recipe, "distillation.temperature=1,2,4")
    with pytest.raises(
        Interrupted, match=r"interrupted; 1 of 3 settings are finished \(run the same command to continue\)"
    ) as error:
        run_sweep(job)
    assert error.value.exit_code == 130
    runs.outcome = lambda recipe: 0.7
    caplog.set_level("INFO", LOG.name)
    assert [row["mean"] for row in run_sweep(job)["rows"]] == [0.5, 0.7, 0.7]
    assert "out: 1 of 3 settings are finished" in caplog.text


def test_why_a_process_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        b"student:  10%\r\xff\ndistill: out of memory: no more (free memory)\nsome library: bye\n"
    )
    assert _reason(2, log) == "out of memory: no more (free memory)"
    assert _reason(-9, log) == "killed by SIGKILL, probably as memory ran out"
    assert _reason(-11, log) == "killed by SIGSEGV"
    log.write_text("Traceback\nValueError: x\n\n")
    assert _reason(1, log) == "ValueError: x"
    log.write_text("")
    assert _reason(3, log) == "exit code 3"
