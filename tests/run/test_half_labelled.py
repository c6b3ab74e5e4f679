"""A run whose heads are labelled in few texts, and whose splits share nothing but a head."""

import csv
import json
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.recipe.load import dump_yaml
from tinyheads import Classifier


def strict(text: str) -> dict:
    """JSON as the standard has it, without NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture(scope="module")
def half(tmp_path_factory, toy_corpus, tiny_encoder_folder, run_distill) -> Path:
    """train: rating (1.0 and 0.0, every second row), flags, mood; validation: flags; test: rating."""
    folder = tmp_path_factory.mktemp("half")
    teacher = tiny_encoder_folder(folder, hidden=32, layers=2)
    for split, rows, columns in (
        ("train", 400, ("text", "rating", "flags", "mood")),
        ("validation", 60, ("text", "flags")),
        ("test", 60, ("text", "rating")),
    ):
        corpus = toy_corpus(rows, seed=len(split))
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, columns, extrasaction="ignore")
            out.writeheader()
            for i, (text, intent) in enumerate(zip(corpus.texts, corpus.labels["intent"], strict=True)):
                written = str(float(intent > 0)) if split == "train" else str(int(intent > 0))
                flags = "|".join(f for f, yes in zip("ab", corpus.labels["flags"][i], strict=True) if yes)
                row = {"text": text, "rating": written if i % 2 else "", "flags": flags or "none"}
                out.writerow({**row, "mood": "good" if intent else "bad"})
    recipe = {
        "name": "half",
        "data": {"train": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        "heads": {
            "rating": {"column": "rating"},
            "flags": {"column": "flags", "kind": "multi_label", "none": "none"},
            "mood": {"column": "mood"},
        },
        "teacher": {"encoder": str(teacher), "epochs": 3, "lr": 5e-3},
        "augment": {"copies": 1},
        "student": {"layers": 1, "hidden": 16, "attention_heads": 2, "epochs": 3, "lr": 1e-2},
        "gates": {"int8_drop": 1, "int8_changed": 1, "int8_log_loss": 9},
        "precision": "no",
        "trackers": [],
    }
    (folder / "recipe.yaml").write_text(dump_yaml(recipe), "utf-8")
    done = run_distill("run", folder / "recipe.yaml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout, "utf-8")
    (folder / "stderr").write_text(done.stderr, "utf-8")
    return folder


def test_every_count_is_of_labelled_texts(half) -> None:
    run = half / "run"
    report = strict((run / "report.json").read_text("utf-8"))
    labelled = {
        "rating": {"train": 200, "validation": 0, "test": 30},
        "flags": {"train": 400, "validation": 60, "test": 0},
        "mood": {"train": 400, "validation": 0, "test": 0},
    }
    assert report["labelled"] == labelled == strict((run / "data_report.json").read_text())["labelled"]
    heads = report["heads"]
    assert {name: (head["labelled"], head["texts"]) for name, head in heads.items()} == {
        "rating": (30, 60),
        "flags": (0, 60),
        "mood": (0, 60),
    }
    assert heads["rating"]["test"]["int8"]["accuracy"] is not None and heads["rating"]["retention"]
    assert heads["flags"]["test"]["int8"]["micro_f1"] is None and heads["flags"]["retention"] is None
    assert 0 <= heads["flags"]["agreement"] <= 1
    table = (half / "stdout").read_text("utf-8").splitlines()
    [row] = [line.split() for line in table if line.startswith("rating")]
    assert row[:5] == ["rating", "accuracy", "30", "of", "60"]
    [row] = [line.split() for line in table if line.startswith("mood")]
    assert row == ["mood", "agreement", "60", "-", f"{heads['mood']['agreement']:.4f}", "-", "-"]
    card = (run / "bundle" / "README.md").read_text("utf-8")
    assert "| rating, 30 of 60 texts | accuracy |" in card
    assert "(rating: 200 labelled, flags: 400 labelled, mood: 400 labelled)" in card
    assert ">rating</th><td>200 of 400</td><td>0 of 60</td><td>30 of 60</td>" in (
        run / "report.html"
    ).read_text("utf-8")
    for path in run.rglob("*.json"):
        strict(path.read_text("utf-8"))


def test_a_student_is_compared_with_its_teacher_where_validation_has_no_labels(half) -> None:
    stages = half / "run" / "stages"
    of_student, of_teacher = (
        strict((stages / name / "stage.json").read_text("utf-8"))["metrics"]["validation"]
        for name in ("fit_student", "fit_teacher")
    )
    assert of_teacher["mood.accuracy"] is None and of_teacher["mean"] == of_teacher["flags.micro_f1"]
    compared = [of_student[name] for name in ("rating.agreement", "flags.micro_f1", "mood.agreement")]
    assert of_student["mean"] == pytest.approx(sum(compared) / 3)
    assert "mood.accuracy" not in of_student
    fitted = strict((stages / "calibrate" / "calibration.json").read_text("utf-8"))
    assert fitted["teacher"]["mood"]["temperature"] == 1 != fitted["student"]["mood"]["temperature"]


def test_heads_without_labels_in_a_split_are_said(half) -> None:
    said = (half / "stderr").read_text("utf-8")
    for head, split in (
        ("rating", "validation"),
        ("mood", "validation"),
        ("mood", "test"),
        ("flags", "test"),
    ):
        assert f"data: head '{head}': no text of {split} is labelled, so it has no metrics there" in said
    assert "1.0' is '1'" in said


def test_labels_written_by_pandas_come_back_as_whole_numbers(half, capfd) -> None:
    bundle = half / "run" / "bundle"
    classifier = Classifier.load(bundle)
    assert classifier.labels("rating") == (0, 1) and classifier.labels("mood") == ("bad", "good")
    assert type(classifier("where is it")["rating"]["label"]) is int
    assert main(["evaluate", str(bundle), str(half / "test.csv"), "--heads=rating", "--json"]) == 0
    found = strict(capfd.readouterr().out)
    report = strict((half / "run" / "report.json").read_text("utf-8"))
    assert (found["rows"], found["texts"]) == (60, {"rating": 30})
    assert found["heads"]["rating"] == report["heads"]["rating"]["test"]["int8"]


def test_a_column_that_is_nearly_there_is_an_error(half, tmp_path, capfd) -> None:
    """A head without a column may be meant; a typing error is not."""
    text = (half / "test.csv").read_text("utf-8").replace("rating", "ratings", 1)
    (tmp_path / "test.csv").write_text(text, "utf-8")
    words = ["--set", f"data.test={tmp_path / 'test.csv'}"]
    assert main(["check", str(half / "recipe.yaml"), *words]) == 2
    assert "no column 'rating' (did you mean 'ratings'?)" in capfd.readouterr().err


def test_check_counts_labelled_texts(half, capfd) -> None:
    assert main(["check", str(half / "recipe.yaml"), "--no-measure"]) == 0
    rows = capfd.readouterr().out.splitlines()
    assert ["labelled,", "rating", "200", "0", "30"] in [row.split() for row in rows]
