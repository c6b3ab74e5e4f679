"""The identities of encoders, and the default initialisation of a student."""

import json
import shutil

import pytest

from distill.models.checkpoints import default_initialisation, encoder_identities, kept_from
from distill.recipe.load import dump_yaml, load_recipe
from distill.storage import write_json, write_sealed
from students import pretrained_files
from teachers.checkpoints import EncoderError, file_sha256

TINY = {"layers": 2, "hidden": 128, "attention_heads": 2}


@pytest.fixture
def recipe(tmp_path, tiny_encoder_folder):
    """A function (**sections) -> Recipe of a local tiny teacher."""
    teacher = tiny_encoder_folder(tmp_path)

    def read(**sections):
        settings = {"name": "r", "data": {"train": "t.csv"}, "heads": {"a": {"column": "a"}}}
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_yaml(settings | {"teacher": {"encoder": str(teacher)}} | sections), "utf-8")
        return load_recipe(path)

    return read


@pytest.fixture
def shipped(tmp_path, recipe, monkeypatch):
    """A pretrained student of the tiny shape, shipped for the tiny teacher."""
    folder = tmp_path / "starts" / "some"
    folder.mkdir(parents=True)
    sha256 = file_sha256(tmp_path / "tiny-bert" / "model.safetensors")
    (folder / "start.json").write_text(json.dumps({"shape": TINY, "teacher_sha256": sha256}), "utf-8")
    (folder / "start.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(pretrained_files, "SHIPPED", folder.parent)
    return folder


def test_default_with_a_local_teacher(recipe, shipped):
    assert default_initialisation(recipe()) == str(shipped)
    assert default_initialisation(recipe(student={"layers": 2, "hidden": 128, "attention_heads": 2})) == str(
        shipped
    )
    assert default_initialisation(recipe(student={"size": "mini"})) == "teacher"


def test_no_pretrained_student_for_other_weights(recipe, shipped):
    about = json.loads((shipped / "start.json").read_text("utf-8"))
    (shipped / "start.json").write_text(json.dumps(about | {"teacher_sha256": "0" * 64}), "utf-8")
    assert default_initialisation(recipe()) == "teacher"


def test_default_with_a_teacher_from_the_hub(recipe, shipped):
    hub = {"encoder": "distilbert/distilbert-base-uncased"}
    assert default_initialisation(recipe(teacher=hub)) == "google/bert_uncased_L-2_H-128_A-2"
    assert default_initialisation(recipe(teacher=hub, student=TINY)) == "teacher"


def test_the_identity_changes_with_the_pretrained_student(recipe, shipped):
    before = encoder_identities(recipe())["student"]
    (shipped / "start.safetensors").write_bytes(b"other weights")
    after = encoder_identities(recipe())["student"]
    assert len(before) == len(after) == 1 and before != after
    assert encoder_identities(recipe(student={"start": "random"}))["student"] == []


def test_a_frozen_head_that_abstains_needs_its_threshold(recipe, tmp_path):
    student = tmp_path / "earlier/stages/fit_student"
    student.mkdir(parents=True)
    (student.parent / "calibrate").mkdir()
    fitted = json.dumps({"student": {"a": {"temperature": 1.0}}})
    (student.parent / "calibrate/calibration.json").write_text(fitted, "utf-8")
    heads = {"a": {"column": "a", "abstain": {"accuracy": 0.9}}, "b": {"column": "b"}}

    def found(**changes):
        about = {"encoder": str(student), "train": ["b"], **changes}
        teacher = {"encoder": str(tmp_path / "tiny-bert"), "merge": {"a": str(student)}}
        return kept_from(recipe(heads=heads, student=about, teacher=teacher))

    with pytest.raises(EncoderError, match="no threshold below which head 'a' abstains"):
        found()
    assert found(train=["encoder", "heads"])["heads"]["a"]["abstention"] is None  # a replay fits it again
    (student.parent / "check").mkdir()
    write_sealed(student.parent / "check/stage.json", {"metrics": {"abstention": {"a": {"threshold": 0.7}}}})
    assert found()["heads"]["a"]["abstention"] == {"threshold": 0.7}


def test_a_frozen_encoder_keeps_the_scales_of_the_earlier_student(recipe, tmp_path):
    stages = tmp_path / "earlier/stages"
    for name, content in (
        ("calibrate/calibration", {"student": {"a": {}}}),
        ("export/scales", {"x": [0.5, 3]}),
    ):
        (stages / name).parent.mkdir(parents=True)
        write_json(stages / f"{name}.json", content)

    def scales(stage="fit_student", train=("b",)):
        source = str(stages / stage)
        about = {"encoder": source, "train": [*train]}
        teacher = {"encoder": str(tmp_path / "tiny-bert"), "merge": {"a": source}}
        heads = {"a": {"column": "a"}, "b": {"column": "b"}}
        return kept_from(recipe(heads=heads, student=about, teacher=teacher))["scales"]

    assert scales() == {"x": [0.5, 3]}
    assert scales(train=("encoder", "heads")) == {}  # of a replay, whose activations change
    assert scales("fit_teacher") == {}  # another network than the one that was exported
    (stages / "export/scales.json").unlink()
    assert scales() == {}


def test_missing_teacher(recipe):
    with pytest.raises(EncoderError, match="no such folder"):
        default_initialisation(recipe(teacher={"encoder": "./none"}))


def test_a_damaged_network_of_an_earlier_run_is_no_teacher(recipe, tmp_path):
    """Also where its stage was copied elsewhere."""
    stage = tmp_path / "copied"
    shutil.copytree(tmp_path / "tiny-bert", stage)
    (stage / "heads.json").write_text("{}")
    files = {f"stages/fit_student/{file.name}": file_sha256(file) for file in stage.iterdir()}
    write_sealed(stage / "stage.json", {"stage": "fit_student", "files": files | {"start/x": "elsewhere"}})
    networks = recipe(teacher={"networks": [str(stage)]})
    assert encoder_identities(networks)["teacher"]
    content = bytearray((stage / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (stage / "model.safetensors").write_bytes(content)
    with pytest.raises(
        EncoderError, match=r"model.safetensors: is changed or damaged \(run its recipe again"
    ):
        encoder_identities(networks)
