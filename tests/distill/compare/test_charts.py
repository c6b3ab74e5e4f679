from itertools import combinations

import pytest

from distill.compare.charts import MEASURES, NARROW, POINT, WIDE, bubbles, short_names, specification
from tests.distill.compare.made_up import comparison

LATENCY, THROUGHPUT, _ = MEASURES


def points(chart):
    return [dict(zip(POINT, point, strict=True)) for point in chart["points"]]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_what_has_no_quality_is_not_drawn(measure):
    table = comparison()
    chart = bubbles(table, "topic", measure)
    assert chart is not None
    assert {table["rows"][point["row"]]["weights"] for point in points(chart)} == {True}
    assert len(points(chart)) == 9
    low, high = chart["xscale"]["domain"]
    assert all(low < point["x"] < high for point in points(chart))


def test_no_chart_without_a_point():
    table = comparison()
    for row in table["rows"]:
        row["latency_ms"] = {"p50": 0.0}  # no place on a logarithmic axis
    assert bubbles(table, "topic", LATENCY) is None


def test_one_candidate_is_a_chart():
    table = comparison()
    table["rows"] = table["rows"][7:8]
    chart = bubbles(table, "topic", LATENCY)
    assert chart is not None and len(chart["points"]) == 1


def test_the_front_rises_with_cost_and_falls_with_throughput():
    dear, fast = (bubbles(comparison(), "topic", measure) for measure in (LATENCY, THROUGHPUT))
    assert dear is not None and fast is not None
    assert [c["y"] for c in dear["front"]] == sorted(c["y"] for c in dear["front"])
    assert [c["y"] for c in fast["front"]] == sorted((c["y"] for c in fast["front"]), reverse=True)
    for chart in (dear, fast):
        assert [c["x"] for c in chart["front"]] == sorted(c["x"] for c in chart["front"])


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_names_do_not_overlap(measure, size):
    chart = bubbles(comparison(), "topic", measure, size)
    assert chart is not None
    boxes = []
    for point in points(chart):
        length = 6 * len(point["name"])
        left = point["tx"] - length * {"left": 0, "center": 0.5, "right": 1}[point["align"]]
        boxes.append((left, point["ty"] - 5, left + length, point["ty"] + 5))
        assert 0 <= point["ty"] <= size[1]
    for one, other in combinations(boxes, 2):
        across = min(one[2], other[2]) - max(one[0], other[0])
        assert across <= 0 or min(one[3], other[3]) - max(one[1], other[1]) <= 0


def test_seeds_are_a_bar():
    chart = bubbles(comparison(seeds=3), "topic", LATENCY)
    assert chart is not None and all(point["least"] < point["most"] for point in points(chart))


def test_names_are_short_where_that_is_clear():
    assert short_names(["google/bert-tiny", "./a/model/", "./b/model", "x"]) == [
        "bert-tiny",
        "./a/model/",
        "./b/model",
        "x",
    ]


def test_a_name_with_the_sign_of_a_placeholder_is_text():
    table = comparison()
    table["rows"][7]["candidate"] = "$width"
    chart = bubbles(table, "topic", LATENCY)
    assert chart is not None
    names = [point["name"] for point in specification(chart)["datasets"]["points"]]
    assert "$width" in names
