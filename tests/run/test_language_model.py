"""Runs and commands whose heads are taught by a language model behind a server on loopback."""

import json

import numpy as np
import pytest

from distill.recipe.load import dump_yaml, load_yaml
from export import Classifier
from tests.conftest import CLASSES, FLAGS
from tests.teachers.llm.server import FakeServer, one_in_five

HEADS = {
    "intent": {"labels": {"refund": "wants money back", "thank": None, "track": None}},
    "flags": {"kind": "multi_label", "labels": ["polite", "urgent"]},
}


@pytest.fixture(scope="module")
def fake():
    server = FakeServer(logprobs=False)
    server.words = CLASSES | FLAGS
    server.fault = one_in_five()
    with server.running() as url:
        server.url = url
        yield server


@pytest.fixture(scope="module")
def llm_recipe(job, fake, tmp_path_factory, toy_corpus):
    """A function (settings of teacher.llm) that writes a recipe of texts without labels."""
    folder = tmp_path_factory.mktemp("llm")
    texts = toy_corpus(300, seed=7).texts
    (folder / "texts.txt").write_text("\n".join(texts), "utf-8")

    def write(sections=None, **llm):
        settings = load_yaml(job.read_text("utf-8"))
        settings |= {"name": "llm", "data": {"unlabeled": ["texts.txt"]}, "heads": HEADS} | (sections or {})
        about = {"base_url": fake.url, "model": "open-model", "cache": str(folder / "cache")}
        settings["teacher"] = {**settings["teacher"], "epochs": 4, "llm": about | llm}
        settings["student"]["epochs"] = 3
        recipe = folder / "recipe.yaml"
        recipe.write_text(dump_yaml(settings), "utf-8")
        return recipe

    return write


def asked_metrics(out):
    return json.loads((out / "stages/fit_teacher/stage.json").read_text("utf-8"))["metrics"]["asked"]


@pytest.fixture(scope="module")
def taught(llm_recipe, run_distill, fake, tmp_path_factory):
    """A run without a label, and what it printed."""
    out = tmp_path_factory.mktemp("taught") / "run"
    done = run_distill("run", llm_recipe(terms="Apache-2.0"), "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.mark.exporting
def test_a_run_without_a_label_learns_from_the_model(taught, toy_corpus):
    out, done = taught
    assert "open-model at 127.0.0.1" in done.stderr
    [about] = asked_metrics(out)
    assert (about["model"], about["route"], about["heads"]) == ("open-model", "samples", ["intent", "flags"])
    assert (about["texts"], about["answered"] + about["dropped"], about["failed"]) == (300, 300, 0)
    assert about["bad_answers"] and about["retries"]
    test = toy_corpus(60, seed=9)
    labels = [tuple(CLASSES)[label] for label in test.labels["intent"]]
    predicted = Classifier.load(out / "bundle").predict(test.texts, "intent")
    assert np.mean([x == y for x, y in zip(predicted, labels, strict=True)]) > 0.6


@pytest.mark.exporting
def test_a_second_run_sends_no_request(taught, llm_recipe, run_distill, fake, tmp_path):
    before = len(fake.bodies)
    done = run_distill("run", llm_recipe(), "--out", tmp_path / "again", "--to", "fit_teacher")
    assert done.returncode == 0, done.stderr
    assert len(fake.bodies) == before
    [about] = asked_metrics(tmp_path / "again")
    assert (about["requests"], about["cached"]) == (0, 300)
