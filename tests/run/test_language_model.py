"""Runs and commands whose heads are taught by a language model behind a server on loopback."""

import json
import subprocess
import time

import numpy as np
import pytest

from distill.recipe.data_section import RecipeError
from distill.recipe.load import dump_yaml, load_recipe, load_yaml
from export import Classifier
from tests.conftest import CLASSES, FLAGS
from tests.run.conftest import COMMAND, ENVIRONMENT, ROOT
from tests.teachers.llm.server import FakeServer, one_in_five, text_of

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


@pytest.mark.exporting
def test_a_teacher_that_was_stopped_still_says_what_was_asked(
    taught, llm_recipe, run_distill, kill_when, tmp_path
):
    command = ["run", llm_recipe(), "--out", tmp_path / "run", "--to", "fit_teacher"]
    assert kill_when("run/stages/fit_teacher/scratch/checkpoint.safetensors", tmp_path, *command)
    done = run_distill(*command)
    assert done.returncode == 0, done.stderr
    assert "fit_teacher: resumes where it stopped" in done.stderr
    [about] = asked_metrics(tmp_path / "run")
    assert (about["texts"], about["requests"], about["cached"]) == (300, 0, 300)


@pytest.mark.exporting
def test_manifest_and_report_say_what_the_model_was_asked(taught):
    out, _ = taught
    manifest = json.loads((out / "bundle/manifest.json").read_text("utf-8"))
    report = json.loads((out / "report.json").read_text("utf-8"))
    [about] = asked_metrics(out)
    assert manifest["asked"] == report["asked"] == [about]
    assert about["server"].startswith("127.0.0.1:")
    for teachers in (manifest["teachers"], report["teachers"]):
        model, encoder = teachers["intent"]
        assert (model["name"], model["kind"], model["terms"]) == (
            "open-model",
            "language model",
            "Apache-2.0",
        )
        assert encoder["kind"] == "fine-tuned encoder"
    assert "texts that a language model was asked about" in (out / "report.html").read_text("utf-8")


def test_a_dry_run_sends_nothing(llm_recipe, run_distill, fake, tmp_path):
    recipe, before = llm_recipe(cache=str(tmp_path / "cache"), input_price=2.0), len(fake.bodies)
    done = run_distill("ask", recipe, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["texts"], found["cached"], found["requests"], found["assumed"]) == (300, 0, 900, True)
    assert found["cost"] == pytest.approx(2e-6 * found["input_tokens"])
    checked = run_distill("check", recipe, "--no-measure")
    assert "requests (logprobs, assumed: the server was not asked yet)" in checked.stdout
    assert len(fake.bodies) == before


def test_ask_stops_after_max_requests_and_continues(llm_recipe, run_distill, fake, tmp_path):
    done = run_distill("ask", llm_recipe(cache=str(tmp_path / "cache"), max_requests=60))
    assert done.returncode == 2
    assert "max_requests: 60 requests are sent" in done.stderr.splitlines()[-1]
    before = len(fake.bodies)
    done = run_distill("ask", llm_recipe(cache=str(tmp_path / "cache")), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answered"] + found["dropped"] == 300
    assert found["cached"] >= 25
    assert len(fake.bodies) - before == found["requests"]
    assert "of 300 texts are answered" in found["summary"]


def test_a_run_that_is_killed_while_it_asks_resends_nothing_that_was_answered(
    llm_recipe, run_distill, fake, tmp_path
):
    recipe, before, answered = llm_recipe(cache=str(tmp_path / "cache")), len(fake.bodies), len(fake.answered)
    out = tmp_path / "run"
    command = [*COMMAND, "run", str(recipe), "--out", str(out), "--to", "fit_teacher"]
    run = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while len(fake.bodies) - before < 150 and run.poll() is None:
        time.sleep(0.02)
    run.kill()
    run.communicate(timeout=60)
    time.sleep(0.3)
    first = {text_of(body) for body in fake.answered[answered:]}
    start = len(fake.bodies)
    done = run_distill("run", recipe, "--out", out, "--to", "fit_teacher")
    assert done.returncode == 0, done.stderr
    [about] = asked_metrics(out)
    assert (about["texts"], about["answered"] + about["dropped"]) == (300, 300)
    assert about["cached"] >= 60
    resent = [text_of(body) for body in fake.bodies[start:] if text_of(body) in first]
    # in flight, or answered in part as a sample was bad
    assert len(resent) <= 8 + 150 // 5


def test_a_model_worse_than_one_answer_is_refused_before_it_labels_the_rest(
    job, fake, llm_recipe, run_distill, tmp_path
):
    heads = {
        "intent": {"column": "intent"},
        "flags": {"column": "flags", "kind": "multi_label", "none": "none"},
    }
    data = {"root": str(job.parent), "train": "train.csv", "unlabeled": ["inbox.txt"]}
    recipe = llm_recipe({"heads": heads, "data": data}, cache=str(tmp_path / "cache"), heads=["intent"])
    words, fake.words = (
        fake.words,
        {"track": CLASSES["thank"], "thank": CLASSES["refund"], "refund": CLASSES["track"]},
    )
    try:
        done = run_distill("run", recipe, "--out", tmp_path / "run")
    finally:
        fake.words = words
    assert done.returncode == 2
    assert "teacher.llm: head 'intent': accuracy 0." in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("base_url=localhost", "teacher.llm.base_url: must be an address such as http://localhost:8000/v1"),
        ("base_url=http://user:secret@host/v1", "teacher.llm.base_url: must hold no user, password or query"),
        ("base_url=http://host/v1?key=secret", "teacher.llm.base_url: must hold no user, password or query"),
        ("api_key_env=sk-secret", "teacher.llm.api_key_env: must be the name of an environment variable"),
        ("api_key=secret", "teacher.llm.api_key: unknown key (did you mean 'api_key_env'?)"),
        ("heads=[intnt]", "teacher.llm.heads: no head 'intnt' (did you mean 'intent'?)"),
        ("heads=3", "teacher.llm.heads: must be a list of heads, or a question a head, got 3"),
        ("heads=[intent]", "heads.flags: `labels` alone are for a teacher that knows them"),
        ("samples=0", "teacher.llm.samples: must be >= 1, got 0"),
        ("route=letters", "teacher.llm.route: must be one of 'logprobs', 'samples' or 'systemone'"),
    ],
)
def test_invalid_settings_are_one_line_without_what_may_be_a_key(llm_recipe, setting, line):
    with pytest.raises(RecipeError) as caught:
        load_recipe(llm_recipe(), overrides=[f"teacher.llm.{setting}"])
    assert line in str(caught.value)
    assert "secret" not in str(caught.value)


def test_ask_needs_a_language_model(job, run_distill):
    done = run_distill("ask", job)
    assert done.returncode == 2
    assert "teacher.llm: is missing, expected a language model" in done.stderr.splitlines()[-1]
