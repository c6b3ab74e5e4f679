"""Damaged files are refused, or used without harm. `python -m tests.fuzz` tries more of them."""

import pytest

from tests.fuzz.targets import Case, targets
from tests.fuzz.worker import attempt, run_cases

CASES = {"manifest": 60, "tokenizer": 60, "graph": 60, "recipe": 25, "parquet": 6, "saved": 8}


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_damaged_files(target):
    problems = []

    def try_one(case: Case) -> None:
        problems.append(attempt(target, case))

    run_cases(target, try_one, CASES.get(target.name, 12))
    assert {*problems} <= {None, "refused"}
    assert "refused" in problems and None in problems
