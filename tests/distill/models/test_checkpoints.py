"""What weights a recipe names, and what a student starts from where the recipe does not say."""

import json

import pytest

from distill.models.checkpoints import usual_start, weights_named
from distill.recipe.load import dump_yaml, load_recipe
from students import pretrained_files as start_folder
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
    """A start of the tiny shape, shipped for the tiny teacher."""
    folder = tmp_path / "starts" / "some"
    folder.mkdir(parents=True)
    sha256 = file_sha256(tmp_path / "tiny-bert" / "model.safetensors")
    (folder / "start.json").write_text(json.dumps({"shape": TINY, "teacher_sha256": sha256}), "utf-8")
    (folder / "start.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(start_folder, "SHIPPED", folder.parent)
    return folder


def test_a_local_teacher_gives_its_own_start_or_the_one_shipped_for_it(recipe, shipped):
    assert usual_start(recipe()) == str(shipped)
    assert usual_start(recipe(student={"layers": 2, "hidden": 128, "attention_heads": 2})) == str(shipped)
    assert usual_start(recipe(student={"size": "mini"})) == "teacher"


def test_other_weights_have_no_start(recipe, shipped):
    about = json.loads((shipped / "start.json").read_text("utf-8"))
    (shipped / "start.json").write_text(json.dumps(about | {"teacher_sha256": "0" * 64}), "utf-8")
    assert usual_start(recipe()) == "teacher"


def test_a_teacher_from_the_hub_gives_the_miniature(recipe, shipped):
    hub = {"encoder": "distilbert/distilbert-base-uncased"}
    assert usual_start(recipe(teacher=hub)) == "google/bert_uncased_L-2_H-128_A-2"
    assert usual_start(recipe(teacher=hub, student=TINY)) == "teacher"


def test_the_start_is_among_what_tells_a_run_from_another(recipe, shipped):
    before = weights_named(recipe())["student"]
    (shipped / "start.safetensors").write_bytes(b"others")
    after = weights_named(recipe())["student"]
    assert len(before) == len(after) == 1 and before != after
    assert weights_named(recipe(student={"start": "random"}))["student"] == []


def test_a_teacher_that_is_not_there(recipe):
    with pytest.raises(EncoderError, match="no such folder"):
        usual_start(recipe(teacher={"encoder": "./none"}))
