"""What `check` says of a run, beside what the run then does. The time that it estimates is never asserted."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.memory import available_memory
from distill.pipeline import STAGES
from distill.recipe.load import dump_yaml, load_yaml
from distill.run import read_record


@pytest.fixture
def planned(capfd):
    """A function that gives the plan of a recipe, as `check --json` prints it."""

    def check(recipe: Path, *options: str) -> dict:
        assert main(["check", str(recipe), "--json", *options]) == 0
        return json.loads(capfd.readouterr().out)

    return check


def metrics(run: Path, stage: str) -> dict:
    return read_record(run / "stages" / stage / "stage.json")["metrics"]


OPEN = [f"--set={key}=null" for key in ("teacher.epochs", "teacher.lr", "student.epochs", "student.lr")]


@pytest.mark.parametrize(
    "options",
    [
        ["--set=augment.copies=0"],
        [*OPEN, "--set=augment.copies=2", "--set=student.accumulate=2"],
        [*OPEN, "--set=augment.copies=1", "--set=export.max_length=null", "--set=match.hidden=1"],
    ],
    ids=["given", "accumulate", "match"],
)
def test_the_plan_is_what_the_run_then_records(tiny_job, tmp_path, planned, options):
    plan = planned(tiny_job, *options)
    run = tmp_path / "run"
    assert main(["run", str(tiny_job), "--out", str(run), "--to", "fit_student", *options]) == 0
    teacher, label, student = (metrics(run, name) for name in ("fit_teacher", "label", "fit_student"))
    recipe = load_yaml((run / "recipe.yaml").read_text("utf-8"))
    prepared = metrics(run, "prepare")
    assert {key: plan[key] for key in prepared} == prepared
    for side, found in (("teacher", teacher), ("student", student)):
        settings = plan["settings"][side]
        assert plan["steps"][side] == found["steps"]
        for key in ("epochs", "lr", "batch_size", "accumulate"):
            assert settings[key] == recipe[side][key], key
        assert settings["parameters"] == found["parameters"]
    assert plan["settings"]["teacher"]["max_length"] == teacher["max_length"]
    assert plan["settings"]["teacher"]["head_lr"] == recipe["teacher"]["head_lr"]
    assert plan["lengths"]["train"]["truncated"] == teacher["truncated_texts"]
    assert plan["settings"]["student"]["initialisation"] == student["start"]
    assert plan["settings"]["augment"]["copies"] == recipe["augment"]["copies"]
    assert plan["transfer"]["exact"]
    assert plan["transfer"]["texts"] == label["transfer_texts"] == student["texts"]
    assert plan["transfer"]["texts_to_label"] == label["labelled_texts"]
    assert {*plan["minutes"]} == {*(stage.name for stage in STAGES), "total"}
    assert all(value >= 0 for value in plan["minutes"].values()) and plan["memory_bytes"]["process"] > 1e8
    assert plan["disk_bytes"] > 4 * (teacher["parameters"] + student["parameters"])
    assert set(plan["settings"]["distillation"]) == set(plan["heads"])
    assert plan["settings"]["distillation"]["intent"] == {"loss": "kl", "temperature": 1.0}


def test_copies_that_the_run_would_choose(tiny_job, planned, tmp_path):
    plan = planned(tiny_job, "--no-measure", "--set=augment.copies=null", "--set=student.epochs=null")
    assert plan["minutes"] is plan["memory_bytes"] is None
    assert plan["settings"]["augment"]["copies"] == 160 and plan["settings"]["student"]["epochs"] == 20
    run = tmp_path / "run"
    options = ["--set=augment.copies=null", "--out", str(run), "--to", "label"]
    assert main(["run", str(tiny_job), *options]) == 0
    # the words of augmented texts are near by the trained teacher, which check has not
    assert plan["transfer"]["texts"] == pytest.approx(metrics(run, "label")["transfer_texts"], rel=0.02)


def test_a_sample_stands_for_all_texts(tiny_job, planned, monkeypatch):
    exact = planned(tiny_job, "--no-measure", "--set=augment.copies=40")
    monkeypatch.setattr("distill.rehearsal.SAMPLE_TEXTS", 400)
    about = planned(tiny_job, "--set=augment.copies=40")
    assert exact["transfer"]["exact"] and not about["transfer"]["exact"]
    assert about["transfer"]["texts"] == pytest.approx(exact["transfer"]["texts"], rel=0.1)
    assert about["steps"]["student"] == pytest.approx(exact["steps"]["student"], rel=0.1)
    same = ("rows", "lengths", "classes", "labelled")
    assert {key: about[key] for key in same} == {key: exact[key] for key in same}


def test_networks_of_earlier_runs(job, finished, planned, tmp_path):
    recipe = load_yaml(job.read_text("utf-8"))
    recipe["teacher"] = {"networks": [str(finished["folder"] / "stages" / "fit_teacher")]}
    edited = job.parent / "adopts.yaml"
    edited.write_text(dump_yaml(recipe), "utf-8")
    plan = planned(edited)
    assert plan["steps"]["teacher"] == 0 and plan["minutes"]["label"] >= 0
    assert plan["settings"]["teacher"] == {
        "networks": recipe["teacher"]["networks"],
        "max_length": metrics(finished["folder"], "fit_teacher")["max_length"],
        "parameters": metrics(finished["folder"], "fit_teacher")["parameters"],
    }
    del recipe["heads"]["flags"]
    edited.write_text(dump_yaml(recipe), "utf-8")
    assert main(["check", str(edited)]) == 2, "a run would refuse it, so check does"


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_packed_networks(tiny_job, planned, network):
    described = {
        "intent": "{track: where is my parcel, refund: my money back, thank: thanks}",
        "flags": "{urgent: now, polite: please}",
    }
    options = [f"--set=heads.{head}.descriptions={texts}" for head, texts in described.items()]
    plan = planned(tiny_job, f"--set={network}.network=packed", *options)
    assert plan["minutes"]["total"] > 0
    assert plan["settings"]["distillation"]["intent"]["loss"] == "kl"


def test_nothing_is_left_behind(tiny_job, planned, tmp_path, monkeypatch):
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    for folder in (here, temporary):
        folder.mkdir()
    before = {path: path.stat().st_mtime_ns for path in tiny_job.parent.rglob("*")}
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    planned(tiny_job)
    assert not [*here.iterdir(), *temporary.iterdir()]
    assert before == {path: path.stat().st_mtime_ns for path in tiny_job.parent.rglob("*")}


def test_for_people(tiny_job, capfd):
    assert main(["check", str(tiny_job)]) == 0
    printed = capfd.readouterr()
    rows = [line.split() for line in printed.out.splitlines()]
    assert ["texts", "48", "12", "24", "3"] in rows and ["total"] in [row[:1] for row in rows]
    assert any(line.startswith("warning: head 'intent': ") for line in printed.out.splitlines())
    assert "teacher:" not in printed.err and "|" not in printed.err, "no message and no bar of a training"


def test_what_the_data_leaves_to_be_desired(tmp_path, tiny_encoder_folder, planned):
    rows = [(f"the parcel number {n} is late", "track", "late") for n in range(396)]
    rows += [
        ("my money", "refund", ""),
        ("my money back", "refund", ""),
        (f"{'thanks ' * 90}", "track", "late"),
    ]
    lines = ["text,intent,flags", *(",".join(row) for row in rows)]
    (tmp_path / "train.csv").write_text("\n".join(lines), "utf-8")
    (tmp_path / "validation.csv").write_text("text,intent,flags\nwhere,track,lost\n", "utf-8")
    test = ["text,intent,flags", *(f"where is number {n},track,late" for n in range(60))]
    (tmp_path / "test.csv").write_text("\n".join(test), "utf-8")
    recipe = {
        "name": "few",
        "data": {split: f"{split}.csv" for split in ("train", "validation", "test")},
        "heads": {
            "intent": {"column": "intent"},
            "flags": {"column": "flags", "kind": "multi_label", "labels": ["late", "lost"]},
        },
        "teacher": {"encoder": str(tiny_encoder_folder(tmp_path)), "max_length": 5},
        "student": {"layers": 1, "hidden": 16, "attention_heads": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(recipe), "utf-8")
    plan = planned(path, "--no-measure")
    few = "1 labelled text in validation, too few to compare epochs and calibrate (label 50 at least)"
    assert plan["warnings"][:5] == [
        f"head 'intent': {few}",
        "head 'intent': labels of 3 training texts or fewer: 'refund' (2) (add texts, or set min_texts)",
        "head 'intent': 99.5% of the training texts have the label 'track' (add texts of others)",
        f"head 'flags': {few}",
        "head 'flags': labels that no training text has: lost (add texts, or leave them out)",
    ]
    [truncated] = [line for line in plan["warnings"] if "truncated" in line]
    assert truncated.startswith(
        "99% of the training texts have more than 5 tokens and are truncated, the longest"
    )
    assert plan["classes"]["intent"]["refund"] == {"train": 2, "validation": 0, "test": 0}


def test_a_machine_that_is_too_small(tiny_job, planned, monkeypatch):
    monkeypatch.setattr("distill.plan.available_memory", lambda: 10_000_000)
    free = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr("distill.plan.shutil.disk_usage", lambda path: free)
    warnings = planned(tiny_job)["warnings"]
    assert any("10 MB are available (set smaller teacher.batch_size" in line for line in warnings)
    assert any("are free here (give --out another disk)" in line for line in warnings)


def test_available_memory_is_at_most_that_of_the_control_group(tmp_path):
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    assert available_memory(tmp_path) == 51200
    groups = tmp_path / "sys/fs/cgroup"
    groups.mkdir(parents=True)
    for limit, expected in (("max", 51200), ("40000", 40000)):
        (groups / "memory.max").write_text(limit)
        assert available_memory(tmp_path) == expected
