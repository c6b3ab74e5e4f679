"""A teacher made of networks that earlier runs left: an assistant, an ensemble."""

import json

import numpy as np
import pytest
from accelerate import Accelerator

from distill.cli.main import main
from distill.data.dataset import load_split
from distill.models.network_teacher import NetworkTeacher
from distill.models.predict import predict_logits
from distill.models.saved_networks import load_classifier
from distill.recipe.load import dump_yaml, load_recipe, load_yaml
from teachers.soft_labels import SoftLabels, text_digests


@pytest.fixture(scope="module")
def taught_by(job, finished):
    """A function that writes the small job's recipe beside it, its teacher the named stages' networks."""

    def write(*stages: str, **changes):
        settings = load_yaml(job.read_text("utf-8"))
        networks = [str(finished["folder"] / "stages" / stage) for stage in stages]
        settings |= {"teacher": {"networks": networks}, **changes}
        recipe = job.parent / "networks.yaml"
        recipe.write_text(dump_yaml(settings), "utf-8")
        return recipe

    return write


def test_an_ensemble_labels_by_the_mean(taught_by, finished, tmp_path, capfd):
    recipe = taught_by("fit_student", "fit_teacher")
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), "--to", "label"]) == 0, (
        capfd.readouterr()
    )
    record = json.loads((tmp_path / "run/stages/fit_teacher/stage.json").read_text("utf-8"))
    assert record["metrics"]["max_length"] == 64  # the student alone has but 32 positions
    stages = finished["folder"] / "stages"
    texts = load_split(stages / "prepare", "test")["text"]
    alone = []
    for stage in ("fit_teacher", "fit_student"):
        network, tokenizer = load_classifier(stages / stage)
        encode = network.text_encoder(tokenizer, 32)
        alone.append(predict_logits(network, encode(texts), Accelerator(cpu=True)))
    (folder,) = (tmp_path / "run/soft_labels").iterdir()
    soft = SoftLabels(folder, {"intent": 3, "flags": 2})
    found = np.concatenate([*soft.logits(soft.rows(text_digests(texts))).values()], -1)
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, atol=2e-2)
    teacher = NetworkTeacher(tmp_path / "run/stages/fit_teacher", 32, Accelerator(cpu=True))
    assert len(teacher.networks) == 2 and list(teacher.labels) == ["intent", "flags"]
    again = np.concatenate([*teacher.logits(texts).values()], -1)
    np.testing.assert_allclose(again, found, atol=2e-2)
    record = json.loads((tmp_path / "run/stages/fit_teacher/stage.json").read_text("utf-8"))["metrics"]
    assert record["networks"] == 2
    # what a run writes down can be run
    assert load_recipe(tmp_path / "run/recipe.yaml").teacher == load_recipe(recipe).teacher
    assert record["validation"]["mean"] > 0.9
    # an ensemble is not taken for its first network, and no run for its own teacher
    own = tmp_path / "run/stages/fit_teacher"
    for out, network, message in (
        ("other", own, "is an ensemble (name its networks instead)"),
        ("run", own / "member-2", "is of this run, whose stages are redone (set another --out)"),
    ):
        settings = ["--out", str(tmp_path / out), "--set", f"teacher.networks=[{network}]"]
        assert main(["run", str(recipe), *settings]) == 2
        assert message in capfd.readouterr().err
    assert (own / "member-2/model.safetensors").exists()


@pytest.mark.exporting
def test_an_assistant_teaches_to_the_bundle(taught_by, tmp_path, capfd):
    recipe = taught_by("fit_student")
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 0, capfd.readouterr()
    card = (tmp_path / "run/bundle/README.md").read_text("utf-8")
    assert "Teacher: the networks `" in card
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    assert report["heads"]["intent"]["test"]["student"]["accuracy"] > 0.9


FLAGS = {"flags": {"column": "flags", "kind": "multi_label", "none": "none"}}
INTENT = {"intent": {"column": "intent"}}
ORDER = {"intent": {"column": "intent", "labels": ["thank", "track", "refund"]}, **FLAGS}


@pytest.mark.parametrize(
    "stage, heads, settings, message",
    [
        ("prepare", None, [], "prepare holds no network, expected RUN/stages/fit_teacher or fit_student"),
        ("fit_teacher", FLAGS, [], "head 'intent' has 3 labels, expected 'flags' with 2"),
        ("fit_teacher", INTENT, [], "has 2 heads, expected 1 (run both on the same heads)"),
        ("fit_teacher", ORDER, [], "has its labels in another order (set heads.intent.labels: ["),
        ("fit_teacher", None, ["--set", "teacher.epochs=3"], "used as they are; leave out epochs"),
    ],
)
def test_faults_are_told_in_a_line(taught_by, tmp_path, capfd, stage, heads, settings, message):
    recipe = taught_by(stage, **({"heads": heads} if heads else {}))
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), *settings]) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
