"""Runs that are taught by soft labels in files."""

import csv
import json

import numpy as np
import pandas
import pytest

from distill.cli.main import main
from distill.recipe.load import dump_yaml, load_yaml

LABELS = ["track", "refund", "thank"]


@pytest.fixture
def importing(tiny_job, tmp_path):
    """A function that writes soft labels of the training texts, and the tiny job's recipe with them."""

    def write(soft_labels, rows=None, **changes):
        settings = load_yaml(tiny_job.read_text("utf-8"))
        settings["data"] |= {"train": str(tiny_job.parent / "train.csv"), "root": str(tmp_path)}
        settings["data"] |= {"test": str(tiny_job.parent / "test.csv"), "unlabeled": []}
        settings["teacher"]["soft_labels"] = soft_labels
        settings |= changes
        if rows is not None:
            lines = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
            (tmp_path / "soft.jsonl").write_text(lines, "utf-8")
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_yaml(settings), "utf-8")
        return path

    return write


@pytest.fixture
def rows(tiny_job):
    """The training texts with a probability of each label of the intent."""
    with (tiny_job.parent / "train.csv").open(encoding="utf-8") as file:
        found = []
        for row in csv.DictReader(file):
            own = LABELS.index(row["intent"]) if row["intent"] else 0
            found.append(
                {
                    "text": f" {row['text']} ",
                    "id": 1,
                    "intent": dict(zip(LABELS, np.roll([0.8, 0.1, 0.1], own), strict=True)),
                }
            )
        return found


def run(recipe, tmp_path, *options):
    return main(["run", str(recipe), "--out", str(tmp_path / "run"), *options])


@pytest.mark.exporting
def test_soft_labels_in_a_file_teach(importing, rows, tmp_path, capfd):
    recipe = importing({"files": "soft.jsonl", "terms": "CC0"}, rows)
    assert run(recipe, tmp_path) == 0, capfd.readouterr()
    printed = capfd.readouterr().err
    assert "teacher.soft_labels: head 'intent': accuracy 1.000 on 54 labelled texts" in printed
    assert "head 'intent': 60 of 84 texts have soft labels that other teachers gave" in printed
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    first, second = report["teachers"]["intent"]
    assert (first["name"], first["kind"], first["terms"]) == ("soft.jsonl", "soft labels", "CC0")
    assert second["kind"] == "fine-tuned encoder" and len(report["teachers"]["flags"]) == 1
    # the content of the file is an input
    rows[0]["intent"] = {"track": 0.1, "refund": 0.9}
    assert run(importing({"files": "soft.jsonl", "terms": "CC0"}, rows), tmp_path, "--to", "prepare") == 0
    assert "prepare: done before" in capfd.readouterr().err


@pytest.mark.parametrize("form", ["objects", "lists", "logits"])
def test_parquet_of_pandas(form, importing, rows, tmp_path, capfd):
    table = pandas.DataFrame(rows)
    if form != "objects":
        table["intent"] = [[row[label] for label in sorted(LABELS)] for row in table["intent"]]
    if form == "logits":
        table["intent"] = [np.log(cell) * 3 for cell in table["intent"]]
    table.to_parquet(tmp_path / "soft.parquet")
    heads = {"intent": {"column": "intent", "labels": sorted(LABELS)}}
    assert run(importing("soft.parquet", heads=heads, gates={}), tmp_path, "--to", "fit_teacher") == 0
    assert "teacher.soft_labels: head 'intent': accuracy 1.000 on 54" in capfd.readouterr().err


def test_a_head_that_is_labelled_in_no_file_learns_from_soft_labels(importing, rows, tmp_path, capfd):
    heads = {
        "intent": {"labels": LABELS},
        "flags": {"column": "flags", "kind": "multi_label", "none": "none"},
    }
    gates = {"allow": ["intent", "flags"], "parity": 0.01}
    assert run(importing(["soft.jsonl"], rows, heads=heads, gates=gates), tmp_path, "--to", "label") == 0
    assert "head 'intent': no labelled text to compare it with" in capfd.readouterr().err


def test_a_head_that_nothing_teaches_is_refused(importing, rows, tmp_path, capfd):
    heads = {"intent": {"column": "intent"}, "tone": {"labels": ["kind", "rude"]}}
    assert run(importing("soft.jsonl", rows, heads=heads, gates={}), tmp_path) == 2
    assert "heads.tone: no text of train has a label or a soft label, expected some" in capfd.readouterr().err


@pytest.mark.parametrize(
    "files, content, message",
    [
        ("soft.csv", "", "soft.csv: no such file"),
        ("soft.jsonl", "", "soft.jsonl: is empty"),
        (
            "recipe.yaml",
            "",
            "recipe.yaml: is no file of soft labels, expected .jsonl or .parquet (convert it)",
        ),
        (
            "soft.jsonl",
            '{"text": "a", "intnt": {"track": 1}}',
            "no column is a head (did you mean 'intnt'?), the col",
        ),
        (
            "soft.jsonl",
            '{"txt": "a", "intent": {"track": 1}}',
            "soft.jsonl: no column 'text' (did you mean 'txt'?)",
        ),
        (
            "soft.jsonl",
            '{"text": "a", "intent": {"trak": 1}}',
            "soft.jsonl:1: intent: unknown label 'trak' (did you",
        ),
        ("soft.jsonl", '{"text": "a", "intent": {"track": 1}}', "teacher.soft_labels: knows none of the "),
        ("soft.jsonl", '{"text": "", "intent": {"track": 1}}', "soft.jsonl:1: empty text, expected a text"),
        ("soft.jsonl", '{"text": "a", "intent": {"track": 1}}\n{', "soft.jsonl:2: is not a JSON object"),
        ([], "", "teacher.soft_labels.files: "),
        ({"file": "x"}, "", "teacher.soft_labels.file: unknown key"),
        ({"files": "soft.jsonl", "values": "percent"}, "", "teacher.soft_labels.values: must be one of"),
    ],
)
def test_faults_are_told_in_a_line(files, content, message, importing, tmp_path, capfd):
    assert run(importing(files, content), tmp_path) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error, error


def test_check_reads_the_soft_labels(importing, rows, tmp_path, capfd):
    heads = {
        "intent": {"labels": LABELS},
        "flags": {"column": "flags", "kind": "multi_label", "none": "none"},
    }
    gates = {"allow": ["intent", "flags"], "parity": 0.01}
    assert main(["check", str(importing("soft.jsonl", rows, heads=heads, gates=gates))]) == 0, (
        capfd.readouterr()
    )
    rows[3]["intent"] = {"x": 1.0}
    assert main(["check", str(importing("soft.jsonl", rows, heads=heads, gates=gates))]) == 2
    assert "soft.jsonl:4: intent: unknown label 'x'" in capfd.readouterr().err
