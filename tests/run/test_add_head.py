"""A new head for a finished run, and a head that is trained again."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate import Accelerator

from distill.add_head import add_head, retrain_head
from distill.cli.main import main
from distill.heads import columns
from distill.models.predict import predict_logits
from distill.models.saved_networks import load_classifier
from distill.recipe.data_section import RecipeError
from distill.stages import fit_student
from distill.storage import digests, files_in
from distill.training.checkpoint import load_tensors
from export.graph.gates import GateError
from tinyheads import Classifier

TONES = {"track": "asks", "refund": "asks", "thank": "praises", "": ""}
QUICK = ["teacher.epochs=3", "student.epochs=3", "augment.copies=1", "gates.int8_log_loss=1"]


@pytest.fixture(scope="module")
def tones(job: Path) -> Path:
    """Texts with a `tone`, which their intent decides."""
    path = job.parent / "tones.csv"
    rows = list(csv.DictReader((job.parent / "train.csv").open(encoding="utf-8")))
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["text", "tone"])
        out.writerows([row["text"] + " today", TONES[row["intent"]]] for row in rows[:300])
    return path


@pytest.fixture(scope="module")
def texts(job: Path) -> list[str]:
    """Of the test split, and one that is longer than the student reads."""
    found = [row["text"] for row in csv.DictReader((job.parent / "test.csv").open(encoding="utf-8"))]
    return [*found, "where is the box " * 20]


def torch_logits(run: Path, texts: list[str]) -> dict[str, np.ndarray]:
    network, tokenizer = load_classifier(run / "stages/fit_student")
    encoded = network.text_encoder(tokenizer, tokenizer.model_max_length)(texts)
    every = predict_logits(network, encoded, Accelerator(cpu=True), exact=True)
    return {head.name: every[:, part] for head, part in columns(network.heads)}


def served(run: Path, variant: str, texts: list[str]) -> dict[str, np.ndarray]:
    classifier = Classifier.load(run / "bundle", variant=variant)
    together, alone = classifier.logits(texts), [classifier.logits([text]) for text in texts[:20]]
    return {head: np.concatenate([some, *(one[head] for one in alone)]) for head, some in together.items()}


def manifest(run: Path) -> dict:
    return {head["name"]: head for head in json.loads((run / "bundle/manifest.json").read_text())["heads"]}


def test_a_frozen_student_keeps_every_bit_of_its_heads(finished, tones, texts, kill_when, run_distill):
    earlier, new = finished["folder"], finished["folder"].with_name("run-tone")
    before = digests(earlier, files_in(earlier))
    command = ["add-head", earlier, "--head", "tone", "--data", tones, "--set", "student.dropout=0.3"]
    assert kill_when("run-tone/stages/fit_student/scratch/checkpoint.safetensors", earlier.parent, *command)
    done = run_distill(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert "fit_student: resumes where it stopped" in done.stderr
    for found in (torch_logits, lambda *a: served(a[0], "fp32", a[1]), lambda *a: served(a[0], "int8", a[1])):
        old, now = found(earlier, texts), found(new, texts)
        assert [*old, "tone"] == [*now] == ["intent", "flags", "tone"]
        for head in old:
            np.testing.assert_array_equal(old[head], now[head])
    kept, fitted = manifest(earlier), manifest(new)
    assert fitted.pop("tone")
    sides = json.loads((new / "stages/calibrate/calibration.json").read_text("utf-8"))
    assert all(sides["teacher"][head] == sides["student"][head] for head in kept)  # the earlier student
    assert fitted == kept
    report = json.loads(done.stdout)
    assert report["heads"]["tone"]["test"]["int8"]["accuracy"] > 0.9
    assert {name: (head["changed"], head["difference"]) for name, head in report["kept"].items()} == {
        "intent": (0, 0),
        "flags": (0, 0),
    }
    assert digests(earlier, files_in(earlier)) == before
    again = run_distill(*command)
    assert again.stderr.count("done before") == 8, again.stderr
    assert "kept: intent, flags (frozen)" in again.stdout


def test_a_head_is_trained_again_with_other_labels(finished, job, texts, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    abstain = ["--set", "heads.intent.abstain.coverage=0.8"]
    assert main(["run", str(job), "--out", str(run), *abstain]) == 0
    rows = list(csv.DictReader((job.parent / "train.csv").open(encoding="utf-8")))[:300]
    flags = [row["flags"].replace("none", "").split("|") for row in rows]
    names = {"urgent": "hurry", "polite": "polite"}
    table = {"body": [row["text"] for row in rows], "tags": [[names[x] for x in own if x] for own in flags]}
    data = datasets.Dataset.from_dict(table)
    done = retrain_head(
        run, "flags", data, column="tags", text="body", out=tmp_path / "again", overrides=QUICK
    )
    assert [*done.report["heads"]] == ["intent", "flags"]
    assert done.report["heads"]["flags"]["test"]["student"]["micro_f1"] > 0.9
    assert manifest(done.folder)["flags"]["labels"] == ["hurry", "polite"]
    assert [*done.report["kept"]] == ["intent"]
    old, now = torch_logits(run, texts), torch_logits(done.folder, texts)
    np.testing.assert_array_equal(old["intent"], now["intent"])
    assert manifest(run)["intent"]["abstain"]
    assert manifest(done.folder)["intent"] == manifest(run)["intent"]


def test_a_replay_is_behind_a_gate_of_each_old_head(finished, tones, tmp_path, monkeypatch):
    jobs, train = [], fit_student.fit
    monkeypatch.setattr(fit_student, "fit", lambda *a, **b: jobs.append(a[1]) or train(*a, **b))
    settings = [*QUICK, "gates.kept_changed=0.1", "gates.kept_drop=0.1"]
    done = add_head(finished["folder"], "tone", tones, mode="replay", out=tmp_path / "a", overrides=settings)
    kept = done.report["kept"]
    assert [*kept] == ["intent", "flags"] and not any(head["frozen"] for head in kept.values())
    assert jobs[-1].train.mixture and not jobs[-1].balanced  # the old heads have learnt already
    assert kept["intent"]["texts"] == 81 and kept["flags"]["texts"] == 90
    assert all(head["difference"] > 0 and head["after"] > 0.9 for head in kept.values())
    new, old = done.report["sources"]
    assert new["labelled"]["tone"]["train"] and not new["labelled"]["intent"]["train"]
    assert old["labelled"]["intent"]["test"] == 81 and not old["labelled"]["tone"]["train"]
    learnt = load_tensors(done.folder / "stages/fit_teacher/label_confidence.safetensors")[0]["tone"]
    read = int(learnt.isfinite().sum())  # of the old texts, which have no tone, it reads none
    assert read <= new["rows"]["train"] and len(learnt) == new["rows"]["train"] + old["rows"]["train"]
    ruined = [*QUICK, "student.lr=5", "student.epochs=1", "augment.copies=0", "export.quantize=none"]
    with pytest.raises(GateError) as refused:
        add_head(finished["folder"], "tone", tones, mode="replay", out=tmp_path / "b", overrides=ruined)
    lines = str(refused.value).splitlines()
    assert any("kept head 'intent':" in line and "of its decisions" in line for line in lines)
    assert any("on 81 labelled texts of test, by more than 0.003 (gates.kept_drop)" in line for line in lines)
    assert not (tmp_path / "b/bundle").exists() and (tmp_path / "b/report.html").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--head", "intent"], "run: has a head 'intent' already (choose another name, or retrain it)"),
        (["--head", "no way"], "head name 'no way': expected letters, digits and _ only"),
        (["--head", "tone", "--column", "tune"], "no column 'tune' (did you mean 'tone'?)"),
        (["--head", "tone", "--data", "none.csv"], "none.csv: no such file"),
        (["--head", "tone", "--set", "student.size=tiny"], "`encoder` and `size` both give the shape"),
        (["--head", "tone", "--set", "student.pooling=cls"], "head 'intent' has another kind, pooling or"),
        (["--head", "tone", "--out", "{run}/new"], "is in the folder of the earlier run (choose another)"),
        (["--head", "tone", "--out", "{run}"], "is in the folder of the earlier run (choose another)"),
    ],
)
def test_bad_arguments_are_one_line(finished, tones, tmp_path, capfd, arguments, message):
    run = finished["folder"]
    given = [one.format(run=run) for one in arguments]
    command = ["add-head", str(run), "--data", str(tones), "--out", str(tmp_path / "new"), *given]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "new").exists() or not (tmp_path / "new/bundle").exists()


def test_a_run_must_be_finished_and_whole(finished, tones, tmp_path):
    def refused(message: str, run: Path, head: str = "tone") -> None:
        with pytest.raises(RecipeError, match=message):
            add_head(run, head, str(tones), out=tmp_path / "new")

    refused("is no run", tmp_path / "nowhere")
    refused("is no run", finished["folder"] / "bundle")
    run = tmp_path / "moved"
    shutil.copytree(finished["folder"], run)
    with pytest.raises(RecipeError, match=r"has no head 'intents' .did you mean 'intent'"):
        retrain_head(run, "intents", str(tones))
    with pytest.raises(RecipeError, match="mode: 'melted', expected frozen or replay"):
        add_head(run, "tone", str(tones), mode="melted")
    with pytest.raises(TypeError, match=r"'colum' is no argument .did you mean 'column'"):
        add_head(run, "tone", str(tones), colum="tone")
    weights = run / "stages/fit_student/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    refused(r"fit_student.model.safetensors: is changed or damaged \(distill run", run)
    weights.write_bytes(whole)
    (run / "stages/calibrate/stage.json").unlink()
    refused("its stage calibrate is not finished", run)
    (run / "recipe.yaml").write_text("name: x", "utf-8")
    refused("data: is required", run)
    assert not (tmp_path / "new").exists()
