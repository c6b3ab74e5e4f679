"""`distill sweep` on a job of seconds: what is shared, what is compared, and what a kill leaves."""

import json
import shlex
import shutil
import signal
import sys
import time

import pytest

from distill.cli.main import main
from distill.compare.processes import Processes
from distill.pipeline import run
from distill.recipe.data_section import RecipeError
from distill.recipe.load import load_yaml
from distill.run import read_record

GRID = ["--grid", "distillation.temperature=1,2,4", "--grid", "distillation.soft_weight=0.5,0.9"]


def stages(folder):
    """The records of a stage in all runs of a sweep, by stage: {folder: inode}."""
    found = {}
    for path in sorted(folder.rglob("stages/*/stage.json")):
        found.setdefault(path.parent.name, {})[path.parents[2].relative_to(folder)] = path.stat().st_ino
    return found


@pytest.fixture(scope="module")
def in_this_process():
    """Runs in this process, which spares starting thirteen."""

    def run_here(self, recipe, folder, last, **_):
        try:
            run(recipe, folder, last=last)
        except RecipeError as error:
            return str(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processes, "run", run_here)
        yield


@pytest.fixture(scope="module")
def swept(tiny_job, tmp_path_factory, in_this_process):
    out = tmp_path_factory.mktemp("sweep") / "out"
    assert main(["sweep", str(tiny_job), *GRID, "--seeds", "2", "--out", str(out), "-q"]) == 0
    return out


def test_six_settings_of_two_seeds_train_one_teacher_and_write_its_labels_once(swept):
    found = stages(swept)
    assert {name: len({*inodes.values()}) for name, inodes in found.items()} == {
        "prepare": 1,
        "fit_teacher": 1,
        "label": 1,
        "fit_student": 12,
    }
    assert {name: len(inodes) for name, inodes in found.items()} == {
        "prepare": 13,
        "fit_teacher": 13,
        "label": 13,
        "fit_student": 12,
    }
    assert len({path.stat().st_ino for path in swept.rglob("soft_labels/*/*")}) == len(
        [*next(swept.glob("base/*/soft_labels")).glob("*/*")]
    )


def test_the_best_is_chosen_by_the_mean_of_the_validation_metric(swept):
    found = json.loads((swept / "sweep.json").read_text("utf-8"))
    for row in found["rows"]:
        values = "temperature={},soft_weight={}".format(*row["settings"].values())
        (folder,) = (path for path in (swept / "trials").glob(f"{values}-*") if path.is_dir())
        metrics = [
            read_record(folder / f"seed-{seed}" / "stages/fit_student/stage.json")["metrics"]
            for seed in (0, 1)
        ]
        assert row["values"] == [each["validation"]["mean"] for each in metrics]
        assert [each["seed"] for each in metrics] == [0, 1]
        assert row["mean"] == pytest.approx(sum(row["values"]) / 2)
    assert found["rows"][found["best"]]["mean"] == max(row["mean"] for row in found["rows"])
    page = (swept / "index.html").read_text("utf-8")
    assert "distillation.temperature" in page and len(page) < 1_000_000


def test_the_last_line_is_the_command_that_completes_the_best_setting(tiny_job, swept, capsys, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    words = ["sweep", str(tiny_job), *GRID, "--seeds", "2", "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "6 of 6 settings are finished" in printed.err
    program, *command = shlex.split(printed.out.splitlines()[-1].partition(": ")[2])
    assert program == "distill" and command[:2] == ["run", str(tiny_job)]
    before = stages(out)
    assert main([*command, "--to", "calibrate"]) == 0
    after = stages(out)
    assert len(after.pop("calibrate")) == 1 and after == before
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["command"] == ["distill", *command]


def test_a_setting_that_cannot_be_trained_is_a_row(tiny_job, tmp_path, capsys, in_this_process):
    out = tmp_path / "out"
    grid = ["--grid", "match.layers=[1],[7]", "--set", "match.hidden=1", "--set", "student.encoder="]
    grid[-1] += load_yaml(tiny_job.read_text("utf-8"))["teacher"]["encoder"]
    shape = [
        word for key in ("layers", "hidden", "attention_heads") for word in ("--set", f"student.{key}=null")
    ]
    assert main(["sweep", str(tiny_job), *grid, *shape, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rows"][0]["failed"] is None
    assert found["rows"][1]["failed"].startswith("match.layers: ")
    assert found["best"] == 0


def test_a_stage_that_a_run_does_again_leaves_the_run_alone_that_it_is_linked_to(
    tiny_job, swept, tmp_path, in_this_process
):
    out = tmp_path / "out"
    shutil.copytree(swept, out, copy_function=lambda source, target: shutil.copy2(source, target))
    from distill.compare.linked_runs import link

    (base,) = (path for path in (out / "base").iterdir() if path.is_dir())
    link(base, out / "other", ["prepare", "fit_teacher", "label"])
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in base.rglob("*") if path.is_file()}
    # other texts, so that every stage writes other files
    change = ["--set", "teacher.lr=0.001", "--set", "augment.copies=2", "--set", "data.unlabeled=[]"]
    assert main(["run", str(tiny_job), "--out", str(out / "other"), "--to", "label", *change]) == 0
    (shard, *_) = (out / "other").glob("soft_labels/*/*.safetensors")
    shard.unlink()
    assert main(["run", str(tiny_job), "--out", str(out / "other"), "--to", "fit_student"]) == 0
    after = {path: (path.read_bytes(), path.stat().st_ino) for path in base.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "distillation.temprature=1"], "unknown key (did you mean 'temperature'?)"),
        (["--grid", "student.lr=-1"], "--grid: student.lr: must be > 0"),
        ([], "--grid: is required"),
        ([*GRID, "--seeds", "0"], "--seeds: 0 is too small"),
        ([*GRID, "--jobs", "0"], "--jobs: 0 is too small"),
        ([*GRID, "--trials", "0"], "--trials: 0 is too small"),
        (
            [*GRID, "--set", "distillation.temperature=3"],
            "distillation.temperature: is in --grid and in --set",
        ),
        ([*GRID, "--data-root", "/nowhere"], "inbox.txt: no such file or folder in /nowhere"),
    ],
)
def test_bad_words_are_refused_in_a_line_before_anything_is_written(
    tiny_job, tmp_path, capsys, words, message
):
    assert main(["sweep", str(tiny_job), *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_extra_is_named(tiny_job, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("distill.compare.sweep")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", str(tiny_job), *GRID, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == "distill: optuna is not installed (pip install 'tinyheads[sweep]')\n"
    assert not (tmp_path / "out").exists()


def test_killed_and_interrupted_a_sweep_continues(
    tiny_job, tmp_path, kill_when, run_distill, start_distill, swept
):
    """In processes of their own: kill -9 leaves the run of a setting, for which the next sweep waits."""
    out = tmp_path / "out"
    words = ["sweep", tiny_job, "--grid", "distillation.soft_weight=0.5,0.9", "--out", out]
    assert kill_when("trials/*/seed-0/stages/fit_student/begun.json", out, *words)
    assert not (out / "sweep.json").exists() and (out / "study.jsonl").exists()
    (teacher,) = out.glob("base/*/stages/fit_teacher/stage.json")
    before = teacher.stat().st_ino
    process = start_distill(*words)
    while not (out / "sweep.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.stderr.read().decode()
    assert process.wait() == 130, error
    assert error.splitlines()[-1] == (
        f"distill: {out}: interrupted; 1 of 2 settings are finished (run the same command to continue)"
    )
    done = run_distill(*words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert teacher.stat().st_ino == before and len({*stages(out)["fit_teacher"].values()}) == 1
    whole = json.loads((swept / "sweep.json").read_text("utf-8"))
    expected = {r["settings"]["distillation.soft_weight"]: r["values"][0] for r in whole["rows"]
                if r["settings"]["distillation.temperature"] == 1}  # fmt: skip
    assert {
        row["settings"]["distillation.soft_weight"]: row["values"][0] for row in found["rows"]
    } == expected
