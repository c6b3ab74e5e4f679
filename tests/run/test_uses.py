"""What people come with: a file a class, a file of 0/1 columns, two heads of three labels."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from distill.recipe.load import dump_yaml, load_yaml
from export import Classifier

NUMBER = r"[0-9]+\.[0-9]{3,4}"
TOXIC = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")


@pytest.fixture
def root(pytestconfig):
    return pytestconfig.rootpath


@pytest.fixture
def tiny(tmp_path, tiny_encoder_folder) -> list[str]:
    """Settings that replace the hub's DistilBERT and BERT-tiny by small ones of the same architectures."""
    teacher = tiny_encoder_folder(tmp_path, "distilbert", hidden=32, layers=2)
    start = tiny_encoder_folder(tmp_path, "bert", hidden=128, layers=2)
    settings = {
        "teacher.encoder": teacher,
        "teacher.epochs": 4,
        "teacher.lr": 5e-3,
        "student.start": start,
        "student.epochs": 3,
        "student.batch_size": 32,
        "augment.copies": 1,
        "gates.int8_drop": 0.1,
        "trackers": "[]",
        "precision": "no",
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def epochs(stderr: str, side: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]", stderr) if line.startswith(f"{side}: epoch ")]


@pytest.mark.exporting
def test_three_files_one_a_class(root, tmp_path, tiny, toy_corpus, toy_heads, run_distill):
    corpus, labels = toy_corpus(360), toy_heads[0].labels
    (tmp_path / "classes").mkdir()
    for number, label in enumerate(labels):
        own = np.flatnonzero(corpus.labels["intent"] == number)
        lines = "\n".join(corpus.texts[i] for i in own)
        (tmp_path / "classes" / f"{label}.txt").write_text(lines, "utf-8")
    recipe, out = root / "recipes/three_files.yaml", tmp_path / "run"
    done = run_distill("run", recipe, "--data-root", tmp_path, "--out", out, *tiny)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "device" in line] == ["device: cpu, float32"]
    for side, count in (("teacher", 4), ("student", 3)):
        lines = epochs(done.stderr, side)
        shown = rf"loss {NUMBER}, accuracy {NUMBER} \(topic\)"
        for number, line in enumerate(lines, 1):
            assert re.fullmatch(rf"{side}: epoch {number}/{count}: {shown}; validation: {shown}", line), line
        assert len(lines) == count
    assert Classifier.load(out / "bundle").predict_topic("my money back please")["label"] == "refund"
    again = run_distill("run", recipe, "--data-root", tmp_path, "--out", out, *tiny, "--quiet")
    assert again.returncode == 0 and again.stderr == ""


@pytest.mark.exporting
def test_six_columns_of_0_and_1_with_rare_labels(root, tmp_path, tiny, toy_corpus, run_distill):
    corpus = toy_corpus(500)
    rows = []
    for number, text in enumerate(corpus.texts):
        intent, (urgent, polite) = corpus.labels["intent"][number], corpus.labels["flags"][number]
        toxic, rare = int(intent == 1), int(number in (3, 50, 200, 333))
        flags = [toxic, int(toxic and urgent), int(toxic and polite), rare, int(urgent), int(rare and toxic)]
        rows.append([f"{number:016x}", text, *flags])
    rows += [
        [f"x{number}", f"where is it {number}", *[-1] * 6] for number in range(20)
    ]  # which nobody labelled
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "comment_text", *TOXIC], *rows])
    out, recipe = tmp_path / "run", root / "recipes/jigsaw.yaml"
    done = run_distill("run", recipe, "--data-root", tmp_path, "--out", out, "--json", *tiny)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = report["heads"]["toxicity"]["test"]["int8"]
    assert {"label_accuracy", "subset_accuracy", "log_loss"} <= {*found} and found["label_accuracy"] > 0.8
    assert found["subset_accuracy"] <= found["label_accuracy"]
    assert report["labelled"]["toxicity"]["train"] < report["rows"]["train"]
    line = epochs(done.stderr, "teacher")[0]
    shown = rf"loss {NUMBER}, label_accuracy {NUMBER} \(toxicity\); validation: loss {NUMBER}, micro_f1"
    assert re.search(shown, line)
    classifier = Classifier.load(out / "bundle")
    assert classifier.labels("toxicity") == TOXIC and isinstance(classifier.predict_toxicity("it"), list)
    settings = json.loads((out / "stages/fit_student/heads.json").read_text("utf-8"))["settings"]
    assert settings["pooling"] == "cls"


def test_the_made_up_messages_are_written_a_file_an_intent(root, tmp_path):
    command = [sys.executable, root / "recipes/make_demo_data.py", "--out", tmp_path, "--classes"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    files = {path.stem: path.read_text("utf-8").splitlines() for path in (tmp_path / "classes").iterdir()}
    recipe = load_yaml((root / "recipes/demo.yaml").read_text("utf-8"))
    assert {*files} == {*recipe["heads"]["intent"]["labels"]}
    assert sum(map(len, files.values())) == 5000
    with (root / "recipes/demo/train.csv").open(encoding="utf-8", newline="") as file:
        labelled = [row for row in csv.DictReader(file) if row["intent"]]
    assert all(row["text"] in files[row["intent"]] for row in labelled[:200])


@pytest.mark.exporting
def test_two_heads_on_one_backbone(tmp_path, job, write_csv, run_distill):
    """Trained, saved, loaded: an answer by `predict_HEAD`, each head with three labels."""
    values = load_yaml(job.read_text("utf-8"))
    write_csv(tmp_path / "train.csv", 120, 1)
    with (tmp_path / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    for number, row in enumerate(rows):
        row["mood"] = "" if number % 7 == 0 else ("up", "down", "flat")[len(row["text"]) % 3]
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, ["text", "intent", "flags", "mood"])
        out.writeheader()
        out.writerows(rows)
    values["data"] = {"train": "train.csv"}
    values["heads"] = {"intent": {"column": "intent"}, "mood": {"column": "mood"}}
    values["teacher"] |= {"epochs": 2}
    values["student"] |= {"epochs": 2}
    values["gates"] = {"parity": 0.01, "allow": ["intent", "mood"]}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(values), "utf-8")
    done = run_distill("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    line = epochs(done.stderr, "student")[-1]
    shown = rf"accuracy {NUMBER} \(intent\), {NUMBER} \(mood\)"
    assert re.search(rf"epoch 2/2: loss {NUMBER}, {shown}; validation: loss {NUMBER}, {shown}$", line)
    classifier = Classifier.load(tmp_path / "run/bundle")
    both = classifier(["where is it", "thanks"])
    assert classifier.predict_intent(["where is it", "thanks"]) == [answer["intent"] for answer in both]
    assert classifier.predict_mood("thanks", top_k=3)[0]["label"] in ("up", "down", "flat")
    assert len(classifier.labels("intent")) == len(classifier.labels("mood")) == 3
