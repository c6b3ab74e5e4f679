"""Heads that abstain, and texts of no class, in runs of the real command."""

import json
import shutil

import pytest

from export.runtime.classifier import Classifier

WORDS = ["quarterly tax forms", "rain over the hills", "a goat in the garden", "the stars are far away"]
PROMISE = "heads.intent.abstain={accuracy: 0.6, confidence: 0.9}"
OOS = "data.oos={validation: oos_validation.txt, test: oos_test.txt}"


@pytest.fixture(scope="module")
def run(finished, job, tmp_path_factory, run_distill):
    """A function that runs the small job with these settings, in a copy of its finished folder."""
    folder = tmp_path_factory.mktemp("abstain") / "run"
    shutil.copytree(finished["folder"], folder)
    for split, extra in (("validation", []), ("test", ["a goat", "refund my order"])):
        rows = [f"{one} {split} {number}" for number in range(20) for one in WORDS] + extra
        (job.parent / f"oos_{split}.txt").write_text("\n".join(rows), "utf-8")

    def start(*settings, more=(), out=folder):
        given = [word for one in settings for word in ("--set", one)]
        return folder, run_distill("run", job, "--out", out, *given, *more)

    return start


@pytest.mark.exporting
def test_a_run_finds_when_to_abstain(run, job, run_distill):
    folder, done = run(PROMISE, OOS)
    assert done.returncode == 0, done.stderr
    assert "export: done before" in done.stderr and "check: done before" not in done.stderr
    assert "data.oos.test: 1 texts are removed, as other splits have them" in done.stderr
    classifier = Classifier.load(folder / "bundle", threads=1)
    rule = classifier.manifest.heads[0].abstain
    assert (rule.accuracy, rule.confidence) == (0.6, 0.9) and classifier.manifest.heads[1].abstain is None
    report = json.loads((folder / "report.json").read_text("utf-8"))
    found = report["analysis"]["heads"]["intent"]["abstention"]
    assert found["rule"]["threshold"] == rule.threshold and found["bound"] >= 0.6
    assert found["answered"]["validation"]["coverage"] == rule.coverage
    assert 0 <= found["answered"]["test"]["oos_refused"] <= 1
    assert set(found["auroc"]["test"]) == {"probability", "energy"}
    assert found["auroc"]["validation"][found["score"]] == max(found["auroc"]["validation"].values())
    assert report["analysis"]["heads"]["flags"]["abstention"] is None
    card = (folder / "bundle/README.md").read_text("utf-8")
    for text in ((folder / "report.html").read_text("utf-8"), card, done.stdout):
        assert "the promised accuracy of its answers is 0.6 with confidence 0.9" in text
        assert "AUROC of test texts" in text
    done = run_distill("evaluate", folder / "bundle", job.parent / "test.csv", "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["analysis"]["intent"]["answered"]
    assert measured == {key: found["answered"]["test"][key] for key in measured}
    page = folder.parent / "page.html"
    done = run_distill("evaluate", folder / "bundle", job.parent / "test.csv", "--report", page)
    assert f"intent: answers {measured['answered']} of {measured['texts']} texts" in done.stdout
    assert "The head abstains: it answers" in page.read_text("utf-8")
    folder, done = run(PROMISE, OOS)
    assert "check: done before" in done.stderr
    folder, done = run()
    assert Classifier.load(folder / "bundle").manifest.heads[0].abstain is None


@pytest.mark.exporting
def test_a_promise_that_validation_cannot_keep_is_refused(run):
    unkept = "heads.intent.abstain={accuracy: 0.999}"  # the data is prepared, so this is found late
    folder, done = run("heads.intent.abstain={coverage: 0.5}")
    assert done.returncode == 0, done.stderr
    before = (folder / "bundle/manifest.json").read_bytes()
    assert json.loads(before)["heads"][0]["abstain"]["accuracy"] is None
    folder, done = run(unkept)
    assert done.returncode == 1, done.stderr
    problem = "head 'intent': abstain: no threshold has answers on validation that are right at a rate of"
    assert problem in done.stderr and "--allow intent, which publishes" in done.stderr
    assert (folder / "bundle/manifest.json").read_bytes() == before
    assert "Refused" in (folder / "report.html").read_text("utf-8")
    folder, done = run(unkept, more=("--allow", "intent"))
    assert done.returncode == 0 and "allowed, so the head always answers" in done.stderr
    assert Classifier.load(folder / "bundle").manifest.heads[0].abstain is None
    assert "The head always answers" in (folder / "bundle/README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "heads.intent.abstain={accuracy: 0.999}",
            "texts of validation are labelled, expected 2995 or more for accuracy 0.999 with confidence 0.95 "
            "(label more of them, or leave abstain out)",
        ),
        ("heads.flags.abstain={accuracy: 0.9}", "`abstain` is for single_label heads"),
        ("heads.intent.abstain={}", "give either `accuracy`, such as 0.98, or `coverage`"),
        ("heads.intent.abstain={accuracy: 98}", "heads.intent.abstain.accuracy"),
        ("heads.intent.abstain=0.98", "heads.intent.abstain"),
        ("heads.intent.abstain={coverage: 0.9, confidence: 0.9}", "`confidence` is that of `accuracy`"),
        ("data.oos={validation: none.csv}", "none.csv"),
        ("data.oos={train: oos_test.txt}", "data.oos.train"),
        ("data.oos={test: empty.txt}", "empty.txt: is empty, expected rows of text"),
        ("data.oos={test: other.csv}", "other.csv"),
        ("data.oos={}", "data.oos"),
    ],
)
def test_what_a_recipe_cannot_ask(run, job, tmp_path, setting, problem):
    (job.parent / "empty.txt").write_text("", "utf-8")
    (job.parent / "other.csv").write_text("words,label\nhello,a\n", "utf-8")
    _, done = run(setting, out=tmp_path / "run")
    assert done.returncode == 2 and problem in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run/stages/fit_teacher").exists()
