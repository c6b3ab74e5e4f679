"""Packed networks in runs: teacher and student, the teacher of heads, and of labels that it never saw."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.cli.main import main
from distill.models.saved_networks import load_classifier
from distill.recipe.load import dump_yaml
from export.targets.registry import TARGETS
from teachers.soft_labels import SoftLabels
from tinyheads import Classifier

pytestmark = pytest.mark.exporting
INTENTS = ["parcel", "money_back", "love"]  # words that the tiny tokenizer knows
FLAGS = ["now", "please"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, toy_corpus: Any, tiny_bert: Any, tiny_tokenizer: Any
) -> Path:
    """A folder with an encoder that attends at once, and the toy corpus under labels that it can read."""
    import torch

    place = tmp_path_factory.mktemp("packed")
    encoder = tiny_bert(hidden=32, layers=2)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
    encoder.save_pretrained(place / "encoder")
    tiny_tokenizer.save_pretrained(place / "encoder")
    for name, size, seed in (("train.csv", 480, 1), ("test.csv", 90, 2)):
        corpus = toy_corpus(size, seed)
        rows = zip(corpus.texts, corpus.labels["intent"], corpus.labels["flags"], strict=True)
        with (place / name).open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["text", "intent", "flags"])
            for text, intent, said in rows:
                flags = [name for name, yes in zip(FLAGS, said, strict=True) if yes]
                out.writerow([text, INTENTS[intent], "|".join(flags) or "none"])
    (place / "texts.txt").write_text("\n".join(toy_corpus(300, 7).texts), "utf-8")
    return place


@pytest.fixture(scope="module")
def write(folder: Path) -> Callable[..., Path]:
    """A function (name, changed sections) that writes a recipe beside the data."""

    def recipe(name: str, **changes: Any) -> Path:
        described = {"parcel": "where is the delivery", "money_back": None, "love": "thanks"}
        training = {"lr": 5e-3, "batch_size": 16}
        settings: dict[str, Any] = {
            "name": name,
            "data": {"train": "train.csv", "test": "test.csv"},
            "heads": {
                "intent": {"column": "intent", "labels": described, "hypothesis": "they"},
                "flags": {"column": "flags", "kind": "multi_label", "none": "none"},
            },
            "teacher": {
                "encoder": "encoder",
                "network": "packed",
                "negatives": 2,
                "epochs": 12,
                "head_lr": 0.01,
                **training,
            },
            "student": {"layers": 2, "hidden": 32, "attention_heads": 2, "epochs": 5, **training},
            "augment": {"copies": 0},
            "export": {"max_length": 24},
            "gates": {"allow": ["intent", "flags"]},
            "precision": "no",
            "trackers": [],
        }
        for section, values in changes.items():
            settings[section] = values if section in ("data", "heads") else settings[section] | values
        if "networks" in settings["teacher"]:
            settings["teacher"] = {"networks": settings["teacher"]["networks"]}
        else:
            settings["teacher"]["encoder"] = str(folder / "encoder")
        path = folder / f"{name}.yaml"
        path.write_text(dump_yaml(settings), "utf-8")
        return path

    return recipe


@pytest.fixture(scope="module")
def packed(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, run_distill: Any) -> Path:
    """A run whose teacher and student are packed."""
    out = tmp_path_factory.mktemp("both") / "run"
    done = run_distill("run", write("both", student={"network": "packed"}), "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return Path(out)


def metrics(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / stage / "stage.json").read_text("utf-8"))["metrics"]


def test_a_packed_bundle(packed: Path, folder: Path) -> None:
    manifest = json.loads((packed / "bundle/manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "packed" and manifest["label_length"] == 21
    assert [head.get("hypothesis") for head in manifest["heads"]] == ["they", None]
    assert manifest["heads"][0]["descriptions"] == {"parcel": "where is the delivery", "love": "thanks"}
    quality = metrics(packed, "check")["quality"]
    for form in ("teacher", "student", "fp32", "int8"):
        assert quality["intent"]["test"][form]["accuracy"] > 0.9
        assert quality["flags"]["test"][form]["micro_f1"] > 0.9
    assert all(head["max_difference"] < 1e-4 for head in metrics(packed, "check")["parity"]["heads"].values())
    classifier = Classifier.load(packed / "bundle")
    assert classifier("where is my parcel now")["intent"]["label"] == "parcel"
    assert (
        classifier("where is my parcel now", labels=["love", "parcel"], heads=["intent"])["intent"]["label"]
        == "parcel"
    )
    card = (packed / "bundle/README.md").read_text("utf-8")
    assert "Labels are input" in card and 'labels=["' in card
    report = json.loads((packed / "report.json").read_text("utf-8"))
    assert report["heads"]["intent"]["test"]["int8"]["accuracy"] > 0.9


def test_commands(packed: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle, test = str(packed / "bundle"), str(folder / "test.csv")

    def ask(*arguments: str) -> Any:
        assert main(["predict", bundle, "where is my parcel", *arguments]) == 0, capfd.readouterr().err
        return json.loads(capfd.readouterr().out)

    assert ask("--heads", "intent", "--labels", "love, parcel")["intent"]["label"] == "parcel"
    assert {x["label"] for x in ask("--heads", "flags", "--labels", "red,late", "--top-k", "9")["flags"]} == {
        "red",
        "late",
    }
    for name, labels in (
        ("list.json", ["love", "parcel, late"]),
        ("object.json", {"love": None, "parcel, late": "where"}),
    ):
        (tmp_path / name).write_text(json.dumps(labels), "utf-8-sig")
        assert ask("--heads", "intent", "--labels", str(tmp_path / name))["intent"]["label"] == "parcel, late"
    assert main(["doctor", bundle]) == 0
    assert "int8: correct" in capfd.readouterr().out
    assert main(["evaluate", bundle, test, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["heads"]["intent"]["accuracy"] > 0.9
    assert main(["bench", bundle]) == 0
    for target in TARGETS:
        assert main(["export", bundle, "--target", target, "--out", str(tmp_path / "out")]) == 2
        assert "its labels are input, which no target supports" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "distill: labels: position 0: is empty"),
        ("late,,red", "distill: labels: position 1: is empty"),
        ("late,late", "distill: labels: position 1: 'late' is read as 'late' before it (remove one)"),
        ("nowhere.json", "distill: --labels: nowhere.json: cannot be read: No such file"),
        ({"late": 3}, "distill: labels: position 0: description must be str, got int 3"),
        ("[", "must be JSON in UTF-8: "),
        ("[" * 100_000, "must be JSON in UTF-8: "),
        ("\udcff", "must be JSON in UTF-8: "),
        (3, "must be a list of labels or an object of descriptions"),
        ("null", "must be a list of labels or an object of descriptions"),
    ],
)
def test_invalid_labels(
    packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], labels: Any, message: str
) -> None:
    file = tmp_path / "labels.json"
    if not isinstance(labels, str) or labels[:1] in ("[", "\udcff") or labels == "null":
        text = labels if isinstance(labels, str) else json.dumps(labels)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        labels = str(file)
    command = ["predict", str(packed / "bundle"), "where", "--heads", "intent", "--labels", labels]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1


def test_labels_of_several_heads(packed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["predict", str(packed / "bundle"), "where", "--labels", "late,red"]
    for heads in ([], ["--heads", "intent,flags"]):
        assert main([*command, *heads]) == 2
        assert "labels: are of one head, expected" in capfd.readouterr().err


def test_a_packed_teacher_of_heads(write: Callable[..., Path], tmp_path: Path, run_distill: Any) -> None:
    recipe = write("heads", teacher={"epochs": 1}, student={"epochs": 1})
    done = run_distill("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "run/soft_labels").iterdir()
    soft = SoftLabels(folder, {"intent": 3, "flags": 2})
    logits = soft.logits(np.arange(10))
    assert all(np.abs(part).max() < 1e3 for part in logits.values()), "of every label"
    manifest = json.loads((tmp_path / "run/bundle/manifest.json").read_text("utf-8"))
    assert not manifest.keys() & {"kind", "label_length"}
    assert not {key for head in manifest["heads"] for key in head} & {"hypothesis", "descriptions"}
    assert "Labels are input" not in (tmp_path / "run/bundle/README.md").read_text("utf-8")


def test_labels_that_the_teacher_never_saw(
    write: Callable[..., Path], packed: Path, tmp_path: Path, run_distill: Any
) -> None:
    heads = {
        "intent": {"labels": {"late": "where is the parcel", "thanks": None, "refund": None, "box": None}}
    }
    recipe = write(
        "other",
        data={"unlabeled": ["texts.txt"]},
        heads=heads,
        teacher={"networks": [str(packed / "stages/fit_teacher")]},
        gates={"allow": ["intent"]},
    )
    done = run_distill("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    network, _ = load_classifier(tmp_path / "run/stages/fit_teacher")
    assert network.family == "packed" and network.heads[0].labels == ("late", "thanks", "refund", "box")
    assert network.heads[0].descriptions == {"late": "where is the parcel"}
    classifier = Classifier.load(tmp_path / "run/bundle")
    assert classifier.manifest.kind == "heads" and classifier.labels("intent") == network.heads[0].labels
    assert metrics(tmp_path / "run", "check")["quality"]["intent"]["agreement"] > 0.7
