"""`distill pretrain` on plain text, and a job whose student starts from what it left."""

import json

import pytest
from safetensors.torch import load_file

from distill.cli.main import main
from distill.recipe.load import dump_yaml, load_pretraining, load_yaml


@pytest.fixture(scope="module")
def recipe(job):
    """A pretraining on the texts of the small job, by its teacher's encoder as it is."""
    settings = load_yaml(job.read_text("utf-8"))
    pretraining = {
        "name": "start",
        "data": {"unlabeled": ["train.csv"]},
        "teacher": {"encoder": settings["teacher"]["encoder"]},
        "student": {"layers": 1, "hidden": 16, "attention_heads": 2, "epochs": 4},
        "max_length": 32,
        "precision": "no",
        "checkpoint_every": 7,
        "trackers": [],
    }
    path = job.parent / "pretrain.yaml"
    path.write_text(dump_yaml(pretraining), "utf-8")
    return path


@pytest.fixture(scope="module")
def pretrained(recipe, run_distill):
    run = recipe.parent / "pretrained"
    done = run_distill("pretrain", recipe, "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    return {"folder": run, "result": json.loads(done.stdout)}


def test_the_student_learns_the_teachers_embeddings(pretrained):
    figures = pretrained["result"]["metrics"]
    assert figures["metric"] == "mean" and max(figures["history"]) > 0.8
    start = pretrained["folder"] / "start"
    assert pretrained["result"]["start"] == str(start)
    assert sorted(p.name for p in start.iterdir()) == ["start.json", "start.safetensors"]
    assert json.loads((start / "start.json").read_text("utf-8"))["shape"]["hidden"] == 16
    # what a pretraining writes down can be run
    assert load_pretraining(pretrained["folder"] / "recipe.yaml").student.hidden == 16


def test_another_pooling_is_labelled_again(recipe, tmp_path, capfd):
    for pooling in ("mean", "cls"):
        settings = ["--set", "student.epochs=1", "--set", f"teacher.pooling={pooling}"]
        assert main(["pretrain", str(recipe), "--out", str(tmp_path / "run"), *settings]) == 0
        capfd.readouterr()
        figures = json.loads((tmp_path / "run/stages/label/stage.json").read_text("utf-8"))["metrics"]
        assert figures["labelled_texts"] > 500


def test_other_lengths_are_labelled_again(recipe, tmp_path, capfd):
    for tokens, reads in ((32, 32), (6, 6), (8192, 64)):
        settings = ["--set", "student.epochs=1", "--set", f"max_length={tokens}"]
        assert main(["pretrain", str(recipe), "--out", str(tmp_path / "run"), *settings]) == 0
        about = json.loads((tmp_path / "run/start/start.json").read_text("utf-8"))
        assert about["max_length"] == reads  # as far as the encoder has positions
        capfd.readouterr()
        figures = json.loads((tmp_path / "run/stages/label/stage.json").read_text("utf-8"))["metrics"]
        assert figures["labelled_texts"] > 500


def test_killed_and_run_again_it_ends_alike(recipe, pretrained, kill_when, run_distill, tmp_path):
    run = tmp_path / "run"
    pattern = "stages/fit_student/scratch/checkpoint.safetensors"
    assert kill_when(pattern, run, "pretrain", recipe, "--out", run)
    again = run_distill("pretrain", recipe, "--out", run, "--json")
    assert again.returncode == 0, again.stderr
    assert "fit_student: resumes where it stopped" in again.stderr
    weights = [(f / "start" / "start.safetensors").read_bytes() for f in (run, pretrained["folder"])]
    assert weights[0] == weights[1]


@pytest.mark.exporting
def test_a_job_starts_from_it(job, pretrained, tmp_path, capfd):
    start = pretrained["folder"] / "start"
    settings = ["--set", f"student.start={start}", "--to", "fit_student"]
    assert main(["run", str(job), "--out", str(tmp_path / "run"), *settings]) == 0, capfd.readouterr().err
    figures = json.loads((tmp_path / "run/stages/fit_student/stage.json").read_text("utf-8"))["metrics"]
    assert figures["start"] == f"pretrained student: {start}"
    assert figures["validation"]["mean"] > 0.9
    # of what is saved: in training, the embeddings are a projection of the teacher's
    weights = load_file(tmp_path / "run/stages/fit_student/model.safetensors")
    assert figures["parameters"] == sum(weight.numel() for weight in weights.values())
    capfd.readouterr()
    assert main(["check", str(job), "--no-measure", "--json", *settings[:2]]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["settings"]["student"]["parameters"] == figures["parameters"]


def test_a_start_of_another_shape_is_refused(job, pretrained, finished, tmp_path, capfd):
    start = pretrained["folder"] / "start"
    settings = ["--set", f"student.start={start}", "--set", "student.hidden=24", "--to", "fit_student"]
    assert main(["run", str(job), "--out", str(tmp_path / "run"), *settings]) == 2
    assert "is Shape(layers=1, hidden=16, attention_heads=2), expected" in capfd.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ("data.unlabeled=[]", "data.unlabeled: is required"),
        ("data.unlabeled=[inbox.txt]", "data.unlabeled: 3 texts, expected at least 100"),
        ("data.unlabeled=[none.txt]", "none.txt"),
        ("student.start=random", "student.start: unknown key"),
        ("student.metric=cosine", "a pretrained student has no heads"),
        ("teacher.epochs=3", "teacher.epochs: unknown key"),
        ("student.hidden=32", "student.hidden: 32 is too wide for factorised embeddings"),
        ("heads={}", "heads: unknown key"),
    ],
)
def test_faults_are_told_in_a_line(recipe, tmp_path, capfd, change, message):
    run = tmp_path / "run"
    assert main(["pretrain", str(recipe), "--out", str(run), "--set", change]) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (run / "start").exists()
