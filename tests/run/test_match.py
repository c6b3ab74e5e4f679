"""Runs whose student matches what lies inside its teacher, and a pretraining's."""

import functools
import json
import shutil

import pytest
from safetensors.torch import load_file

from distill.cli.main import main
from distill.models.saved_networks import load_classifier
from distill.recipe.load import dump_yaml, load_yaml
from distill.stages import fit_student

MATCH = ["--set", "match.hidden=1"]


@pytest.fixture(scope="module")
def taught(job, tmp_path_factory):
    """The small job as far as the soft labels."""
    run = tmp_path_factory.mktemp("taught") / "run"
    assert main(["run", str(job), "--out", str(run), "--to", "label"]) == 0
    return run


@pytest.fixture
def copied(taught, tmp_path):
    """A function (name) that gives a copy of that run."""
    return lambda name: shutil.copytree(taught, tmp_path / name)


@pytest.fixture(scope="module")
def matched(job, taught):
    """The small job's student, matched inside: where it lies, and its figures."""
    run = shutil.copytree(taught, taught.with_name("matched"))
    assert main(["run", str(job), "--out", str(run), *MATCH, "--to", "fit_student"]) == 0
    folder = run / "stages/fit_student"
    return {"folder": folder, **json.loads((folder / "stage.json").read_text("utf-8"))["metrics"]}


def test_the_student_is_a_network_like_any_other(matched, taught):
    assert min(matched["validation"][f"{h}"] for h in ("intent.accuracy", "flags.micro_f1")) > 0.9
    network, _ = load_classifier(matched["folder"])
    assert set(load_file(matched["folder"] / "model.safetensors")) == set(network.state_dict())
    teacher, _ = load_classifier(taught / "stages/fit_teacher")
    assert (network.config.hidden_size, teacher.config.hidden_size) == (16, 32)


def test_the_teacher_is_taught_and_asked_once(matched, taught):
    for stage in ("prepare", "fit_teacher", "label"):
        records = [f / stage / "stage.json" for f in (matched["folder"].parent, taught / "stages")]
        assert records[0].read_bytes() == records[1].read_bytes()


def test_stopped_and_run_again_it_ends_alike(job, matched, copied, monkeypatch, capfd):
    run, fit = copied("run"), fit_student.fit
    command = ["run", str(job), "--out", str(run), *MATCH, "--to", "fit_student"]

    def stop(event, state):
        if event == "step" and state.step == 8:  # a checkpoint is written every 7 steps
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_student, "fit", functools.partial(fit, hook=stop))
        assert main(command) == 130
    kept = load_file(run / "stages/fit_student/scratch/checkpoint.safetensors")
    assert any("projections" in name for name in kept)
    assert main(command) == 0
    assert "fit_student: resumes where it stopped" in capfd.readouterr().err
    weights = [
        (f / "model.safetensors").read_bytes() for f in (run / "stages/fit_student", matched["folder"])
    ]
    assert weights[0] == weights[1]


def test_a_start_is_taught_with_it(job, tmp_path, capfd):
    teacher = load_yaml(job.read_text("utf-8"))["teacher"]["encoder"]
    recipe = tmp_path / "pretrain.yaml"
    pretraining = {
        "name": "start",
        "data": {"unlabeled": [str(job.parent / "train.csv")]},
        "teacher": {"encoder": teacher},
        "student": {"layers": 1, "hidden": 16, "attention_heads": 2, "epochs": 4, "lr": 1e-2},
        "match": {"hidden": 0.5, "layers": [1]},
        "max_length": 32,
        "precision": "no",
        "trackers": [],
    }
    recipe.write_text(dump_yaml(pretraining), "utf-8")
    assert main(["pretrain", str(recipe), "--out", str(tmp_path / "run"), "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)["metrics"]
    assert figures["validation"]["mean"] > 0.8
    weights = load_file(tmp_path / "run/start/start.safetensors")
    assert not any("projections" in name for name in weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("match.layers=[1, 2]", "match.layers: 2 numbers for a student of 1 layers"),
        ("match.layers=[3]", "match.layers: 3, but the teacher has 2 layers"),
        ("match.layer=[1]", "match.layer: unknown key (did you mean 'layers'?)"),
        ("student.train=[heads]", "match: the student's encoder is frozen"),
    ],
)
def test_faults_are_told_in_a_line(job, copied, capfd, change, message):
    command = ["run", str(job), "--out", str(copied("run")), *MATCH, "--set", change, "--to", "fit_student"]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_student_of_another_vocabulary_is_refused(job, copied, tiny_bert, tiny_tokenizer, tmp_path, capfd):
    other = tmp_path / "other"
    tiny_bert().save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["parcels"] = vocabulary.pop("parcel")
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    settings = load_yaml(job.read_text("utf-8"))
    settings["student"] = {"encoder": str(other), "epochs": 1}
    settings["data"]["root"] = str(job.parent)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(settings), "utf-8")
    command = ["run", str(recipe), "--out", str(copied("run")), "--to", "fit_student"]
    assert main([*command, *MATCH]) == 2
    assert "match: the student's vocabulary differs from the teacher's" in capfd.readouterr().err
    assert main(command) == 0  # which matters to nothing else
