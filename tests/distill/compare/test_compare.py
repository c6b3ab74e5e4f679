"""What a comparison runs first, and what fits a budget."""

from types import SimpleNamespace

import pytest

from distill.compare.candidates import parse
from distill.compare.compare import Comparison, _fits, _run_all
from distill.recipe.data_section import RecipeError


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
        _run_all(comparison, processes)
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
    assert _fits(comparison, latency, served) is fits
