"""Thresholds of a wanted precision, and class weights, in a run of the real command."""

import json

import pytest
from safetensors.numpy import load_file

PRECISE = "heads.flags.thresholds={precision: {polite: 0.6, urgent: 0.99}, confidence: 0.8}"


@pytest.fixture(scope="module")
def run(tiny_job, tmp_path_factory, run_distill):
    """A function that runs the tiny job with these settings in one folder."""
    folder = tmp_path_factory.mktemp("thresholds") / "run"

    def run(*settings):
        done = run_distill("run", tiny_job, "--out", folder, *(x for one in settings for x in ("--set", one)))
        return folder, done

    return run


@pytest.mark.exporting
def test_a_wanted_precision_redoes_the_calibration_alone(run):
    folder, done = run()
    assert done.returncode == 0, done.stderr
    first = json.loads((folder / "stages/calibrate/calibration.json").read_text())
    folder, done = run(PRECISE)
    assert done.returncode == 0, done.stderr
    assert "fit_student: done before" in done.stderr and "calibrate: done before" not in done.stderr
    never = (
        "calibrate: head 'flags': labels that never apply, as no threshold of theirs has the wanted precision"
    )
    assert f"{never} on validation with confidence 0.8: 'urgent' (give" in done.stderr
    found = json.loads((folder / "stages/calibrate/calibration.json").read_text())
    labels = ["polite", "urgent"]
    assert found["student"]["flags"]["precision"] == {"polite": 0.6, "urgent": 0.99}
    assert found["student"]["intent"] == first["student"]["intent"]
    [flags] = [
        x for x in json.loads((folder / "bundle/manifest.json").read_text())["heads"] if x["name"] == "flags"
    ]
    assert flags["labels"] == labels and flags["thresholds"] == found["student"]["flags"]["thresholds"]
    assert flags["thresholds"][1] == 1
    analysis = json.loads((folder / "report.json").read_text())["analysis"]["heads"]
    assert analysis["flags"]["wanted_precision"] == {"polite": 0.6, "urgent": 0.99}
    assert analysis["intent"]["wanted_precision"] is None
    page = (folder / "report.html").read_text("utf-8")
    assert "Of 2 labels with a wanted precision, " in page and "average precision" in page
    folder, done = run("heads.flags.thresholds=f1")
    assert json.loads((folder / "stages/calibrate/calibration.json").read_text()) == first
    folder, done = run("heads.flags.thresholds={precision: {urgnt: 0.9}}")
    problem = "heads.flags.thresholds.precision: no label 'urgnt' (did you mean 'urgent'?)"
    assert done.returncode == 2 and problem in done.stderr.splitlines()[-1]


def test_class_weights_train_teacher_and_student(run, tiny_job):
    weights = "heads.intent.class_weight={track: 3}", "heads.flags.class_weight=balanced"
    before = load_file(run()[0] / "stages/fit_student/model.safetensors")
    folder, done = run(*weights)
    assert done.returncode == 0, done.stderr
    prepared = json.loads((folder / "stages/prepare/heads.json").read_text())
    counts = json.loads((folder / "data_report.json").read_text())
    positives = [counts["labels"]["flags"][label]["train"] for label in ("polite", "urgent")]
    texts = counts["labelled"]["flags"]["train"]
    assert prepared[0]["class_weights"] == [1, 1, 3]
    assert prepared[1]["class_weights"] == pytest.approx([(texts - n) / n for n in positives])
    for stage in ("fit_teacher", "fit_student"):
        assert json.loads((folder / f"stages/{stage}/heads.json").read_text())["heads"] == prepared
    after = load_file(folder / "stages/fit_student/model.safetensors")
    assert any((before[name] != after[name]).any() for name in before)
