"""The rows of a comparison, from what its candidates left."""

from types import SimpleNamespace

import pytest

from distill.compare import compare as comparing
from distill.compare.candidates import parse
from distill.compare.compare import Comparison
from distill.compare.processes import Processes
from distill.recipe.data_section import RecipeError
from distill.storage import write_json

TRAINED = {
    "fit_seconds": 100.0,
    "teacher_seconds": 60.0,
    "fit_seconds_estimated": False,
    "train_rss_bytes": 1_000_000_000,
    "train_gpu_bytes": None,
    "parameters": 4_400_000,
    "bytes": {"fp32": 17_600_000, "int8": 4_400_000},
    "encoder": None,
    "variant": "int8",
    "weights": True,
}
MEASURED = {
    "latency_ms": {"p50": 0.5, "p99": 1.0, "fp32_p50": 0.8},
    "rss_bytes": 100_000_000,
    "throughput": 2000.0,
    "batch_size": 16,
}


def quality(value):
    return {"topic": {"value": value, "low": value - 0.02, "high": value + 0.01, "metrics": {}}}


def comparison(tmp_path, **changes):
    values = {"seeds": (0, 1), "budget_ms": 1.0, "budget_mb": 5.0, **changes}
    return Comparison(SimpleNamespace(), tmp_path, parse(["distilled:tiny"]), **values)


def leave(about, seed, value):
    place = about.place(about.candidates[0], seed)
    place.mkdir(parents=True)
    forms = {"int8": quality(value), "fp32": quality(value + 0.01)}
    write_json(place / "trained.json", {**TRAINED, "fit_seconds": 100.0 + seed, "quality": forms})
    return place


def row(about, failed=()):
    return comparing._row(about, about.candidates[0], dict(failed))


def test_seeds_are_averaged(tmp_path):
    about = comparison(tmp_path)
    write_json(leave(about, 0, 0.90) / "measured.json", MEASURED)
    leave(about, 1, 0.92)
    found = row(about)
    assert found["seeds"] == [0, 1] and found["failed"] is None and found["fits"] is True
    assert found["quality"]["topic"] == {
        "value": pytest.approx(0.91),
        "low": pytest.approx(0.89),
        "high": pytest.approx(0.92),
        "seeds": [0.90, 0.92],
    }
    assert found["quality_fp32"]["topic"]["value"] == pytest.approx(0.92)
    assert (found["fit_seconds"], found["teacher_seconds"]) == (100.5, 60.0)


def test_one_seed_that_failed_leaves_the_others(tmp_path):
    about = comparison(tmp_path)
    write_json(leave(about, 1, 0.92) / "measured.json", MEASURED)
    found = row(about, {("distilled:tiny", 0): "killed by SIGKILL"})
    assert found["seeds"] == [1] and found["failed"] == "killed by SIGKILL"
    assert found["latency_ms"] == MEASURED["latency_ms"]


def test_a_candidate_that_cannot_be_measured_keeps_its_quality(tmp_path):
    about = comparison(tmp_path, seeds=(0,))
    leave(about, 0, 0.9)
    found = row(about, {("distilled:tiny", comparing.UNMEASURED): "out of memory"})
    assert found["failed"] == "out of memory" and found["quality"]["topic"]["value"] == 0.9
    assert found["throughput"] is None and found["latency_ms"]["p50"] is None


@pytest.mark.parametrize(
    ("budget", "fits"), [({"budget_ms": 0.4}, False), ({"budget_mb": 4.0}, False), ({}, True)]
)
def test_budgets(tmp_path, budget, fits):
    about = comparison(tmp_path, seeds=(0,), **budget)
    write_json(leave(about, 0, 0.9) / "measured.json", MEASURED)
    assert row(about)["fits"] is fits


def test_speed_is_measured_once_and_kept(tmp_path, monkeypatch):
    about, asked = comparison(tmp_path, seeds=(0,)), []
    place = leave(about, 0, 0.9)

    def module(self, name, arguments, log, **more):
        asked.append(name)
        job = comparing.read_json(arguments[0])
        part = ("latency_ms", "rss_bytes") if job["latency_only"] else (*MEASURED,)
        write_json(comparing.Path(job["result"]), {key: MEASURED[key] for key in part})

    monkeypatch.setattr(Processes, "module", module)
    for _ in range(2):
        assert comparing._measure(about, about.candidates[0], 0, Processes()) is None
    assert asked == ["distill.compare.measure"] * 2  # int8, and the latency of fp32
    found = comparing.read_json(place / "measured.json")
    assert found["throughput"] == 2000.0 and found["latency_ms"]["fp32_p50"] == 0.5


@pytest.mark.parametrize(
    ("names", "networks", "last"),
    [
        (["tfidf"], (), "prepare"),
        (["tfidf"], ("run/stages/fit_teacher",), "fit_teacher"),  # whose tokenizer an encoder borrows
        (["tfidf", "distilled:tiny"], (), "label"),
    ],
)
def test_the_base_runs_as_far_as_the_candidates_need(tmp_path, names, networks, last):
    recipe = SimpleNamespace(teacher=SimpleNamespace(networks=networks))
    comparison, wanted = Comparison(recipe, tmp_path, parse(names), [0]), []
    processes = SimpleNamespace(run=lambda recipe, folder, last, threads: wanted.append(last) or "stopped")
    with pytest.raises(RecipeError, match="stopped"):
        comparing._run_all(comparison, processes)
    assert wanted == [last]


@pytest.mark.parametrize(
    ("ms", "mb", "latency", "served", "fits"),
    [
        (None, None, {"p50": 1.0}, 1_000_000, None),
        (2.0, 2.0, {"p50": 1.0}, 1_000_000, True),
        (2.0, 0.5, {"p50": 1.0}, 1_000_000, False),
        (2.0, 2.0, None, 1_000_000, None),  # a latency that was not measured does not fit
        (2.0, 0.5, None, 1_000_000, False),
    ],
)
def test_a_candidate_fits_all_budgets(tmp_path, ms, mb, latency, served, fits):
    comparison = Comparison(None, tmp_path, [], [0], budget_ms=ms, budget_mb=mb)
    assert comparing._fits(comparison, latency, served) is fits
