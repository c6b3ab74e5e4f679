from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from export.graph.gates import GateError, Int8Degradation, Int8Failures, check_int8, check_parity


def logits(texts: int = 8) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "intent": draw.normal(size=(texts, 3)).astype(np.float32),
        "flags": draw.normal(size=(texts, 2)).astype(np.float32),
    }


def failure(reference: Any, found: Any, tolerance: float = 1e-3, *what: str) -> str:
    (line,) = check_parity(reference, found, tolerance, *what)[1]
    return line


def test_same_logits() -> None:
    same = {"max_difference": 0.0, "other_labels": 0}
    measured = {"texts": 8, "heads": {"intent": same, "flags": same}}
    assert check_parity(logits(), logits(), 0.0) == (measured, [])


def test_measures_the_largest_difference() -> None:
    found = logits()
    found["intent"][5, 1] += 0.25
    found["intent"][2, 0] -= 0.125
    measured, failures = check_parity(logits(), found, 0.5)
    assert not failures
    assert list(measured["heads"]) == ["intent", "flags"]
    assert measured["heads"]["intent"]["max_difference"] == pytest.approx(0.25, rel=1e-6)
    assert measured["heads"]["flags"]["max_difference"] == 0.0


def test_counts_changed_labels() -> None:
    reference = {"intent": np.array([[1.0, 0.9], [0.0, 1.0], [2.0, 1.95]], np.float32)}
    found = {"intent": np.array([[0.9, 1.0], [0.0, 1.0], [1.9, 1.95]], np.float32)}
    assert check_parity(reference, found, 0.2)[0]["heads"]["intent"]["other_labels"] == 2


def test_difference_over_the_tolerance() -> None:
    found = logits(20)
    found["flags"][17, 1] += 0.031
    found["flags"][4, 0] -= 0.02
    assert failure(logits(20), found) == (
        "parity: head 'flags' of fp32 differs by 3.1e-02 (tolerance 1e-03) on text 17 of 20 "
        "(gates.parity sets the tolerance)"
    )


def test_the_error_names_the_form() -> None:
    found = logits()
    found["intent"][0, 0] += 1
    message = failure(logits(), found, 1e-3, "fp32, one text a batch")
    assert message.startswith("parity: head 'intent' of fp32, one text a batch differs by 1.0e+00")


def test_a_difference_equal_to_the_tolerance_passes() -> None:
    reference = {"intent": np.zeros((2, 2), np.float32)}
    found = {"intent": np.array([[0, 0], [0, -0.25]], np.float32)}
    assert check_parity(reference, found, 0.25)[0]["heads"]["intent"]["max_difference"] == 0.25
    assert "differs by 2.5e-01" in failure(reference, found, 0.2499)


def test_differences_are_not_rounded_to_half_precision() -> None:
    reference = {"intent": np.full((1, 2), 1000, np.float16)}
    found = {"intent": np.array([[1000, 1000.01]], np.float32)}
    assert "differs by 1.0e-02" in failure(reference, found)


@pytest.mark.parametrize("value, text", [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "inf")])
@pytest.mark.parametrize("side", ["reference", "found", "both"])
def test_not_finite(value: float, text: str, side: str) -> None:
    reference, found = logits(), logits()
    for name, form in (("reference", reference), ("found", found)):
        if side in (name, "both"):
            form["intent"][6, 2] = value
    with np.errstate(invalid="ignore"):
        message = failure(reference, found, 1e9)
    # infinity minus infinity is NaN
    assert f"head 'intent' of fp32 differs by {'nan' if side == 'both' else text} " in message
    assert "on text 6 of 8" in message


def test_nan_exceeds_any_difference() -> None:
    found = logits()
    found["intent"][1, 0], found["intent"][3, 0] = 1e6, np.nan
    assert "differs by nan" in failure(logits(), found)


def test_a_difference_that_is_not_finite_is_no_number_in_the_measurements() -> None:
    found = logits()
    found["intent"][1, 0] = np.nan
    assert check_parity(logits(), found, 1.0)[0]["heads"]["intent"]["max_difference"] is None


def test_order_of_heads() -> None:
    found = dict(reversed(logits().items()))
    with pytest.raises(GateError) as caught:
        check_parity(logits(), found, 1e9)
    assert str(caught.value) == (
        "parity: heads of fp32 are ['flags', 'intent'], expected ['intent', 'flags']"
    )


@pytest.mark.parametrize("names", [["intent"], ["intent", "flags", "more"], ["intent", "flag"], []])
def test_other_heads(names: list[str]) -> None:
    found = dict.fromkeys(names, logits()["intent"])
    with pytest.raises(GateError) as caught:
        check_parity(logits(), found, 1e9, "int8")
    assert str(caught.value).startswith(f"parity: heads of int8 are {names}, expected")


LIMITS = {"drop": 0.005, "changed": 0.03, "log_loss": 0.02}


def degradation(
    fp32: float = 0.95,
    int8: float = 0.95,
    changed: float = 0.0,
    log_loss: float = 0.0,
    metric: str = "accuracy",
    p: float = 0.001,
    labelled: int = 60,
) -> Int8Degradation:
    return Int8Degradation(metric, fp32, int8, changed, log_loss, labelled, 80, p, p, p)


def test_within_the_gates() -> None:
    degradations = {
        "intent": degradation(int8=0.949),
        "flags": degradation(0.80, 0.85, 0.03, 0.02, "micro_f1"),
    }
    assert check_int8(degradations, **LIMITS) == Int8Failures({}, {}, {})
    unchanged = check_int8({"intent": degradation()}, drop=0.0, changed=0.0, log_loss=0.0)
    assert unchanged == Int8Failures({}, {}, {})


def test_every_gate_a_head_fails_is_a_line_with_its_number_of_texts() -> None:
    degradations = {"intent": degradation(), "flags": degradation(0.8, 0.7912, 0.051, 0.0212, "micro_f1")}
    assert check_int8(degradations, **LIMITS).refused == {
        "flags": [
            "drops in micro_f1 from 0.8000 to 0.7912 on 60 labelled texts of validation and test, "
            "by more than 0.005 (gates.int8_drop)",
            "changes 0.0510 of its decisions on 80 texts of validation and test, more than 0.03 "
            "(gates.int8_changed)",
            "is over-confident: its log loss increases by 0.0212 on 60 labelled texts of validation "
            "and test, more than 0.02 (gates.int8_log_loss)",
        ]
    }


def test_what_may_be_noise_is_not_refused() -> None:
    found = check_int8({"flags": degradation(0.8, 0.7, 0.05, 0.05, p=0.05)}, **LIMITS)
    assert not found.refused and len(found.noise["flags"]) == 3
    assert found.noise["flags"][0].endswith("(gates.int8_drop), which may be noise (p = 0.05)")
    assert (
        len(check_int8({"flags": degradation(0.8, 0.7, 0.05, 0.05, p=0.049)}, **LIMITS).refused["flags"]) == 3
    )


def test_a_head_without_labelled_texts_has_its_decisions_compared() -> None:
    unlabelled = degradation(np.nan, np.nan, 0.05, np.nan, labelled=0)
    assert [line[:7] for line in check_int8({"flags": unlabelled}, **LIMITS).refused["flags"]] == ["changes"]


def test_only_allowed_heads_may_fail() -> None:
    degradations = {"intent": degradation(int8=0.9), "flags": degradation(changed=0.2)}
    found = check_int8(degradations, **LIMITS, allow=["intent"])
    assert list(found.refused) == ["flags"] and list(found.allowed) == ["intent"]
    found = check_int8(degradations, **LIMITS, allow=["intent", "flags"])
    assert {head: len(lines) for head, lines in found.allowed.items()} == {"intent": 1, "flags": 1}
    assert not found.refused and "0.9500 to 0.9000" in found.allowed["intent"][0]


@pytest.mark.parametrize("largest", [0.001, 0.005, 0.01, 0.02])
def test_a_drop_equal_to_the_gate_passes(largest: float) -> None:
    """For any metrics: 0.05 - 0.005 is more than 0.045 in floating point."""
    limits = {**LIMITS, "drop": largest}
    for thousandths in range(20, 1001):
        was = thousandths / 1000
        assert not check_int8({"intent": degradation(was, round(was - largest, 3))}, **limits).refused
        assert check_int8({"intent": degradation(was, was - largest - 1e-6)}, **limits).refused


@pytest.mark.parametrize("name", ["fp32", "int8", "changed", "log_loss"])
def test_a_metric_that_is_not_a_number_is_refused(name: str) -> None:
    measured = {"intent": degradation(**{name: np.nan})}
    assert check_int8(measured, drop=0.5, changed=0.5, log_loss=0.5).refused
