"""`distill compare` on the small job: every kind of candidate, failures, reruns."""

import json
import subprocess

import pytest

from distill.cli.main import main
from distill.recipe.load import load_recipe


@pytest.fixture(scope="module")
def encoder(tiny_job):
    return load_recipe(tiny_job).teacher.encoder


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The folder of an encoder whose weights are missing."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "config.json").write_text("{}", "utf-8")
    return folder


def rows(table):
    return {row["candidate"]: row for row in table["rows"]}


@pytest.fixture(scope="module")
def compared(tiny_job, encoder, broken, tmp_path_factory, run_distill):
    out = tmp_path_factory.mktemp("compare") / "out"
    names = f"tfidf,{encoder},{broken},bert-tiny,distilled:tiny"
    arguments = ["compare", tiny_job, "--out", out, "--candidates", names, "--budget-mb", 0.1, "--json"]
    done = run_distill(*arguments)
    assert done.returncode == 0, done.stderr
    return {"out": out, "arguments": arguments, "table": json.loads(done.stdout), "stderr": done.stderr}


def test_every_candidate_has_a_row(compared, encoder, broken):
    table = compared["table"]
    found = rows(table)
    assert table["head_names"] == ["intent", "flags"]
    assert table["texts"]["test"] == {"intent": 21, "flags": 24}
    for name in ("tfidf", str(encoder), "distilled:tiny"):
        row = found[name]
        assert row["failed"] is None and row["weights"] and row["seeds"] == [0]
        assert {*row["quality"]} == {"intent", "flags"}
        for quality in row["quality"].values():
            assert quality["low"] <= quality["value"] <= quality["high"] and len(quality["seeds"]) == 1
    for name in ("tfidf", str(encoder), "distilled:tiny", "bert-tiny"):
        row = found[name]
        assert row["parameters"] > 0 and row["fit_seconds"] > 0 and row["throughput"] > 0, name
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        assert row["train_rss_bytes"] > 1e7 and row["inference_rss_bytes"] > 1e7
    assert found["distilled:tiny"]["teacher_seconds"] > 0
    assert found["distilled:tiny"]["how"] == "distilled" and found[str(encoder)]["how"] == "fine-tuned"
    # serving needs no torch, so its memory is far below that of training
    assert found["bert-tiny"]["inference_rss_bytes"] < found["bert-tiny"]["train_rss_bytes"] / 2


def test_a_candidate_without_weights_is_measured_from_its_configuration(compared):
    row = rows(compared["table"])["bert-tiny"]
    assert not row["weights"] and row["quality"] == {} and row["fit_seconds_estimated"]
    assert row["failed"] is None and 4.3e6 < row["bytes"]["int8"] < 4.6e6


def test_a_candidate_that_fails_is_a_row_with_its_reason(compared, broken):
    row = rows(compared["table"])[str(broken)]
    assert "model.safetensors" in row["failed"] and "Traceback" not in row["failed"]
    assert row["quality"] == {} and row["latency_ms"]["p50"] is None


def test_budgets_mark_what_fits(compared, encoder):
    found = rows(compared["table"])
    assert found[str(encoder)]["fits"] is True and found["bert-tiny"]["fits"] is False


def test_finished_candidates_are_kept(compared, encoder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in compared["out"].glob("candidates/*/*/*.json")}
    trained = {path for path in before if path.name in ("trained.json", "measured.json")}
    assert len(trained) == 4 + 4  # the broken one has none
    assert main([*map(str, compared["arguments"])]) == 0
    assert all(path.stat().st_mtime_ns == before[path] for path in trained)


def test_the_same_encoder_as_the_teacher_is_trained_once(compared, encoder):
    out = compared["out"]
    [own] = [
        path
        for path in out.glob("candidates/*/seed-0/run")
        if (path / "recipe.yaml").exists() and "distilled" not in str(path)
    ]
    name = "stages/fit_teacher/model.safetensors"
    assert (own / name).samefile(out / "base" / name)


def test_pages_and_tables_are_written(compared):
    out = compared["out"]
    assert (out / "index.html").stat().st_size < 1_000_000
    assert json.loads((out / "table.json").read_text("utf-8")) == compared["table"]
    assert "distilled:tiny" in (out / "table.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidates", "minlm-l6"], "did you mean 'minilm-l6'"),
        (["--candidates", "tfidf", "--seeds", "0"], "--seeds: must be > 0"),
        (["--candidates", "tfidf", "--jobs", "-1"], "--jobs: must be > 0"),
        (["--candidates", "tfidf", "--budget-ms", "nan"], "--budget-ms: must be > 0"),
        (["--candidates", "tfidf", "--set", "student.sise=1"], "student.sise: unknown key"),
    ],
)
def test_bad_arguments_are_one_line(tiny_job, tmp_path, capfd, arguments, message):
    assert main(["compare", str(tiny_job), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tiny_job, compared, tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    assert main(["compare", str(tiny_job), "--out", str(tmp_path), "--candidates", "tfidf"]) == 2
    assert "holds something else" in capfd.readouterr().err
    arguments = ["compare", str(tiny_job), "--out", str(compared["out"]), "--candidates", "tfidf"]
    assert main([*arguments, "--set", "seed=7"]) == 2
    assert "another recipe" in capfd.readouterr().err


def test_the_preparation_fails_in_its_own_words(tiny_job, tmp_path, capfd):
    arguments = ["compare", str(tiny_job), "--out", str(tmp_path / "out"), "--candidates", "tfidf"]
    assert main([*arguments, "--set", "data.text=body"]) == 2
    assert "no column 'body'" in capfd.readouterr().err


def test_measuring_needs_no_torch(compared, run_blocked):
    [job] = compared["out"].glob("candidates/distilled-tiny-*/seed-0/measure.json")
    code = f"from pathlib import Path; from distill.compare.measure import main; main(Path({str(job)!r}))"
    done = run_blocked(code)
    assert isinstance(done, subprocess.CompletedProcess) and done.returncode == 0, done.stderr
