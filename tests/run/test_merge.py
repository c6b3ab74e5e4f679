"""Runs that merge classifiers which exist already."""

import json

import pytest

from distill.cli.main import main
from distill.recipe.load import dump_yaml, load_yaml
from export.bundle.manifest import MANIFEST


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
    assert run(recipe, tmp_path, "--to", "label") == 0, capfd.readouterr()
    printed = capfd.readouterr().err
    assert "teacher.merge: head 'intent': accuracy 1.000 on 54 labelled texts" in printed
    # the encoder that is lent has no heads to try
    assert run(recipe, tmp_path) == 0, capfd.readouterr()
    assert "fit_teacher: done before" in capfd.readouterr().err
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    for head, metric in (("intent", "accuracy"), ("flags", "micro_f1")):
        assert report["heads"][head]["test"]["teacher"][metric] > 0.9


@pytest.mark.exporting
def test_the_report_and_the_manifest_name_the_teachers_of_each_head(merging, checkpoints, tmp_path, capfd):
    own = {"intent": {"model": str(checkpoints["intent"]), "terms": "for research"}}
    recipe = merging({"merge": own, "max_length": 32})
    assert run(recipe, tmp_path) == 0, capfd.readouterr()
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    [intent], [flags] = report["teachers"]["intent"], report["teachers"]["flags"]
    assert (intent["name"], intent["kind"]) == (str(checkpoints["intent"]), "sequence classifier")
    assert intent["terms"] == "for research" and len(intent["digest"]) > 32
    assert flags["kind"] == "fine-tuned encoder" and "terms" not in flags
    manifest = json.loads((tmp_path / "run/bundle" / MANIFEST).read_text("utf-8"))
    assert manifest["teachers"] == report["teachers"]
    card = (tmp_path / "run/bundle/README.md").read_text("utf-8")
    assert "for intent (terms of use: for research); `" in card and "fine-tuned for flags" in card
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "for research" in page and "sequence classifier" in page
    # the encoder learnt the other head alone
    heads = json.loads((tmp_path / "run/stages/fit_teacher/heads.json").read_text("utf-8"))["heads"]
    assert [head["name"] for head in heads] == ["flags"]
    # the terms change no result
    own["intent"]["terms"] = "for all"
    assert run(merging({"merge": own, "max_length": 32}), tmp_path) == 0
    printed = capfd.readouterr().err
    assert "check: done before" in printed and "bundle: done before" not in printed
    manifest = json.loads((tmp_path / "run/bundle" / MANIFEST).read_text("utf-8"))
    assert manifest["teachers"]["intent"][0]["terms"] == "for all"
    # another classifier does
    own["intent"]["model"] = str(checkpoints["other"])
    assert run(merging({"merge": own, "max_length": 32}), tmp_path, "--to", "fit_teacher") == 0
    assert "fit_teacher: done before" not in capfd.readouterr().err


def test_a_teacher_below_the_same_answer_to_every_text_stops_the_run(merging, checkpoints, tmp_path, capfd):
    wrong = {"track": "refund", "refund": "thank", "thank": "track"}
    recipe = merging({"merge": {"intent": {"model": str(checkpoints["intent"]), "labels": wrong}}})
    assert run(recipe, tmp_path) == 2
    printed = capfd.readouterr().err
    assert "label \\ teacher  refund  thank  track" in printed
    line = printed.strip().splitlines()[-1]
    assert (
        "teacher.merge: head 'intent': accuracy 0.000 on 54 labelled texts, expected at least the 0.333"
        in line
    )
    assert "Traceback" not in printed and not (tmp_path / "run/soft_labels").exists()


@pytest.mark.parametrize(
    "merge, message",
    [
        ({"intnt": "x/y"}, "teacher.merge: no head 'intnt' (did you mean 'intent'?)"),
        ({"intent": {"labels": {"a": "b"}}}, "teacher.merge.intent.0.model: is required"),
        ({"intent": {"model": "x", "labls": {}}}, "teacher.merge.intent.0.labls: unknown key"),
        ({"intent": []}, "teacher.merge.intent: expected a classifier's name, `{model: NAME, ...}`, or"),
        ({"intent": None}, "teacher.merge.intent: expected a classifier's name"),
        ({"intent": {"ensemble": ["x"], "terms": "y"}}, "teacher.merge.intent: `ensemble` stands alone"),
        ({"intent": "/nowhere"}, "teacher.merge.intent: /nowhere: no such folder"),
        ({"intent": "nobody/nothing"}, "teacher.merge.intent: nobody/nothing: cannot be loaded from the hub"),
        ({"flags": "INTENT"}, "is single_label, expected multi_label"),
        (
            {"intent": {"model": "INTENT", "labels": {"a": "b"}}},
            "labels: no label 'a', those of the teacher are",
        ),
        ({"intent": {"ensemble": ["INTENT", "FLAGS"]}}, "is multi_label, expected single_label"),
    ],
)
def test_faults_are_told_in_a_line(merge, message, merging, checkpoints, tmp_path, capfd):
    text = json.dumps(merge)
    for name in ("intent", "flags"):
        text = text.replace(f'"{name.upper()}"', json.dumps(str(checkpoints[name])))
    assert run(merging({"merge": json.loads(text)}), tmp_path) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) <= 3, error


def test_an_ensemble_is_calibrated_on_validation(merging, checkpoints, tmp_path, capfd):
    members = [str(checkpoints["intent"]), {"model": str(checkpoints["other"])}]
    recipe = merging({"merge": {"intent": {"ensemble": members}}})
    assert run(recipe, tmp_path, "--to", "fit_teacher") == 0, capfd.readouterr()
    kept = json.loads((tmp_path / "run/stages/fit_teacher/merged.json").read_text("utf-8"))
    assert len(kept["temperatures"]["intent"]) == 2
    assert all(0.1 <= t < 1 for t in kept["temperatures"]["intent"])  # right on all validation texts
    # what a run writes down can be run
    assert run(tmp_path / "run/recipe.yaml", tmp_path, "--to", "fit_teacher") == 0
    assert "fit_teacher: done before" in capfd.readouterr().err


@pytest.mark.exporting
def test_heads_that_are_labelled_nowhere_have_the_classifiers_labels(merging, checkpoints, tmp_path, capfd):
    merge = {head: str(checkpoints[head]) for head in ("intent", "flags")}
    data = {
        "train": None,
        "test": {"from": "train", "fraction": 0.2},
        "unlabeled": ["train.csv", "inbox.txt"],
    }
    recipe = merging({"merge": merge}, data=data, heads={"intent": {}, "flags": {}})
    assert run(recipe, tmp_path) == 0, capfd.readouterr()
    heads = json.loads((tmp_path / "run/stages/prepare/heads.json").read_text("utf-8"))
    assert [head["labels"] for head in heads] == [["thank", "track", "refund"], ["polite", "urgent"]]
    assert [head["kind"] for head in heads] == ["single_label", "multi_label"]
    assert "no labelled text to compare it with" in capfd.readouterr().err


@pytest.mark.parametrize("heads", [["intent"], ["intent", "flags"]])
def test_check_tries_the_classifiers_and_compares_them(heads, merging, checkpoints, capfd):
    merge = {head: {"model": str(checkpoints[head])} for head in heads}
    assert main(["check", str(merging({"merge": merge}))]) == 0, capfd.readouterr()
    printed = capfd.readouterr()
    assert str(checkpoints["intent"]) in printed.out
    merge["intent"]["labels"] = {"track": "refund", "refund": "thank", "thank": "track"}
    assert main(["check", str(merging({"merge": merge}))]) == 2
    assert "teacher.merge: head 'intent': accuracy 0.000 on " in capfd.readouterr().err


def test_the_encoder_of_one_classifier_learns_the_answers_of_all(merging, checkpoints, tmp_path, capfd):
    merge = {head: str(checkpoints[head]) for head in ("intent", "flags")}
    teacher = {"merge": merge, "fit_merged": True, "encoder": merge["intent"], "epochs": 6, "max_length": 32}
    data = {"train": None, "test": {"from": "train", "fraction": 0.2}, "unlabeled": ["train.csv"]}
    recipe = merging(teacher, data=data, heads={"intent": {}, "flags": {}})
    assert run(recipe, tmp_path, "--to", "label") == 0, capfd.readouterr()
    stage = tmp_path / "run/stages/fit_teacher"
    heads = json.loads((stage / "heads.json").read_text("utf-8"))["heads"]
    assert [head["name"] for head in heads] == ["intent", "flags"]
    assert json.loads((stage / "config.json").read_text("utf-8"))["model_type"] == "mpnet"
    found = metrics(tmp_path, "fit_teacher")
    kinds = [[one["kind"] for one in of] for of in found["teachers"].values()]
    assert kinds == [["sequence classifier", "fine-tuned encoder"]] * 2
    assert found["validation"]["intent.agreement"] > 0.8
    assert run(merging({"fit_merged": True}), tmp_path) == 2
    assert "teacher: `fit_merged` is for `merge`, which is missing" in capfd.readouterr().err
