"""Runs that merge classifiers which exist already."""

import json

import pytest

from distill.cli.main import main
from distill.recipe.load import dump_yaml, load_yaml


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, classifier_folder):
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "intent": classifier_folder(root / "intent", "intent", "mpnet", order=[2, 0, 1]),
        "flags": classifier_folder(root / "flags", "flags", "distilbert", order=[1, 0]),
        "other": classifier_folder(root / "other", "intent", "roberta", order=[1, 2, 0]),
    }


@pytest.fixture
def merging(tiny_job, tmp_path):
    """A function that writes the tiny job's recipe with another section `teacher`, and other changes."""

    def write(teacher, **changes):
        settings = load_yaml(tiny_job.read_text("utf-8"))
        settings["data"]["root"] = str(tiny_job.parent)
        settings["teacher"] |= teacher
        for key, value in changes.items():
            settings[key] = value if key == "heads" else settings.get(key, {}) | value
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_yaml(settings), "utf-8")
        return path

    return write


def run(recipe, tmp_path, *options, name="run"):
    return main(["run", str(recipe), "--out", str(tmp_path / name), *options])


def metrics(tmp_path, stage, name="run"):
    return json.loads((tmp_path / name / "stages" / stage / "stage.json").read_text("utf-8"))["metrics"]


@pytest.mark.exporting
def test_two_classifiers_become_one_student(merging, checkpoints, tmp_path, capfd):
    recipe = merging({"merge": {head: str(checkpoints[head]) for head in ("intent", "flags")}})
    assert run(recipe, tmp_path) == 0, capfd.readouterr()
    printed = capfd.readouterr().err
    assert "teacher.merge: head 'intent': accuracy 1.000 on 54 labelled texts" in printed
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    for head, metric in (("intent", "accuracy"), ("flags", "micro_f1")):
        assert report["heads"][head]["test"]["teacher"][metric] > 0.9
