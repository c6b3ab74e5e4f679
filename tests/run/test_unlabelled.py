"""Runs without a labelled training text: networks of an earlier run label all of it."""

import json

import pandas
import pytest

import tinyheads
from distill.cli.main import main
from distill.recipe.load import dump_yaml, load_recipe, load_yaml
from tinyheads import Classifier

HEADS = {
    "intent": {"column": "intent", "labels": ["refund", "thank", "track"]},
    "flags": {"kind": "multi_label", "labels": ["polite", "urgent"]},
}


@pytest.fixture(scope="module")
def texts_alone(job, finished, toy_corpus):
    """A function that writes a recipe of unlabelled texts beside the small job; some are repeated."""
    texts = toy_corpus(300, seed=7).texts
    (job.parent / "texts.txt").write_text("\n".join([*texts, *texts[:20], ""]), "utf-8")

    def write(**data):
        settings = load_yaml(job.read_text("utf-8"))
        settings |= {
            "name": "alone",
            "data": {"unlabeled": ["texts.txt"], **data},
            "heads": HEADS,
            "teacher": {"networks": [str(finished["folder"] / "stages/fit_teacher")]},
        }
        recipe = job.parent / "alone.yaml"
        recipe.write_text(dump_yaml(settings), "utf-8")
        return recipe

    return write


@pytest.fixture(scope="module")
def alone(texts_alone, tmp_path_factory, run_distill):
    """A whole run without a label, and what it printed."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = run_distill("run", texts_alone(), "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def metrics(folder, stage):
    return json.loads((folder / "stages" / stage / "stage.json").read_text("utf-8"))["metrics"]


@pytest.mark.exporting
def test_a_run_without_a_label(alone, job, capfd):
    folder, done = alone
    assert "Warning" not in done.stderr
    assert metrics(folder, "prepare")["rows"] == {"train": 240, "validation": 30, "test": 30, "unlabeled": 0}
    # epochs are compared by the agreement with the teacher, under its own name
    student = metrics(folder, "fit_student")
    assert {*student["validation"]} == {
        *("intent.agreement", "intent.cross_entropy", "flags.agreement", "flags.cross_entropy", "mean")
    }
    assert student["validation"]["mean"] > 0.9 and student["history"][0] < student["history"][-1]
    # the student takes the teacher's confidence, and no threshold is fitted to its answers
    fitted = metrics(folder, "calibrate")
    assert all(
        fitted["teacher"][head]["temperature"] == 1 != fitted["student"][head]["temperature"]
        for head in HEADS
    )
    assert fitted["student"]["flags"]["thresholds"] == [0.5, 0.5]
    # the reports say what there is
    assert [line.split()[:5] for line in done.stdout.splitlines()[1:3]] == [
        [name, "agreement", "30", "-", f"{metrics(folder, 'check')['quality'][name]['agreement']:.4f}"]
        for name in HEADS
    ]
    card = (folder / "bundle/README.md").read_text("utf-8")
    assert "- Data: `texts.txt`\n- Texts: 240 for training, none labelled\n" in card
    assert "intent: no test text is labelled.\n\nAgreement with the teacher: " in card
    assert "accuracy" not in card and "None" not in card
    page = (folder / "report.html").read_text("utf-8")
    assert "0 of 30 test texts are labelled. The student agrees with the teacher on" in page
    assert "retention" not in page and "<th>accuracy</th>" not in page
    # the bundle answers, and is evaluated on labelled texts, each head in the column of its name
    assert Classifier.load(folder / "bundle")("where is my parcel")["intent"]["label"] == "track"
    assert main(["evaluate", str(folder / "bundle"), str(job.parent / "test.csv"), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["heads"]
    assert found["intent"]["accuracy"] > 0.9 and found["flags"]["micro_f1"] > 0.8


@pytest.mark.exporting
def test_labelled_test_texts_measure_it(texts_alone, tmp_path, capfd):
    recipe = texts_alone(test="test.csv")
    assert main(["check", str(recipe), "--no-measure"]) == 0
    rows = [row.split() for row in capfd.readouterr().out.splitlines()]
    assert ["labelled,", "intent", "0", "0", "81"] in rows and ["labelled,", "flags", "0", "0", "0"] in rows
    settings = ["--set", "student.metric=intent.accuracy", "--out", str(tmp_path / "run")]
    assert main(["run", str(recipe), *settings]) == 0
    assert "'intent' has no labels in validation, so epochs are compared by its agreement" in (
        capfd.readouterr().err
    )
    assert metrics(tmp_path / "run", "fit_student")["metric"] == "intent.agreement"
    heads = metrics(tmp_path / "run", "check")["quality"]
    assert heads["intent"]["labelled"] == 81 and heads["intent"]["test"]["int8"]["accuracy"] > 0.9
    assert heads["flags"]["labelled"] == 0 and heads["flags"]["test"]["int8"]["micro_f1"] is None


def test_what_a_run_writes_down_runs_again(alone, texts_alone):
    folder, _ = alone
    written = load_recipe(folder / "recipe.yaml", data_root=texts_alone().parent)
    assert written.data.train is None
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/stage.json")}
    tinyheads.run(written, folder)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/stage.json")}


def test_other_texts_redo_what_reads_them(texts_alone, tmp_path, job):
    recipe, out = texts_alone(), tmp_path / "run"
    last = ["--out", str(out), "--to", "fit_teacher"]
    assert main(["run", str(recipe), *last]) == 0
    first = (out / "stages/fit_teacher/stage.json").read_bytes()
    more = job.parent / "more.txt"
    more.write_text(
        "\n".join(["the box is late"] * 3 + ["we love it", "refund the box now", "a day", "b", "c"])
    )
    assert main(["run", str(recipe), *last, "--set", "data.unlabeled=[texts.txt, more.txt]"]) == 0
    assert (out / "stages/fit_teacher/stage.json").read_bytes() != first
    assert metrics(out, "prepare")["rows"]["train"] == 244


def test_texts_in_memory(texts_alone, tmp_path):
    settings = load_yaml(texts_alone().read_text("utf-8"))
    texts = pandas.DataFrame({"text": (texts_alone().parent / "texts.txt").read_text("utf-8").splitlines()})
    settings["data"] = {"unlabeled": texts}
    done = tinyheads.run(settings, tmp_path / "run", last="prepare")
    assert done.report["metrics"]["rows"]["train"] == 240


def test_faults_are_told_in_a_line(texts_alone, tmp_path, capfd):
    recipe = str(texts_alone())
    for setting, message in (
        (
            "teacher.networks=[]",
            "heads.flags: `labels` alone are for a teacher that knows them: networks, merge, ",
        ),
        ("data.unlabeled=[]", "data.train: is required (or give data.unlabeled"),
        ("heads.intent.labels=null", "heads.intent.labels: is required without data.train (list the labels)"),
    ):
        assert main(["run", recipe, "--out", str(tmp_path / "run"), "--set", setting]) == 2
        error = capfd.readouterr().err
        assert message in error and "Traceback" not in error
