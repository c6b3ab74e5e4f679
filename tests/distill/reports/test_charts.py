import re
from xml.etree import ElementTree

import pytest

from distill.reports import charts

HOSTILE = ['"><script>alert(1)</script>', "a\nb", "a b", "עברית", "w" * 5000, "{{1+1}} datum.x", "var(--ink)"]
POINTS = [{"confidence": 0.5, "accuracy": 0.25, "texts": 3, "coverage": 0.5, "threshold": None}]
SPECS = {
    "lines": charts.lines({name: [0.5, None, 0.25] for name in HOSTILE}, "loss", kept=2),
    "one epoch": charts.lines({"a": [0.5]}, "loss", kept=1),
    "reliability": charts.reliability(POINTS),
    "coverage": charts.coverage(POINTS),
    "matrix": charts.matrix(HOSTILE, [[i * j for j in range(7)] for i in range(7)]),
    "one label": charts.matrix(["a"], [[0]]),
}


@pytest.mark.parametrize("name", SPECS)
def test_pictures(name):
    drawn = charts.svg(SPECS[name], f"<{name}>")
    root = ElementTree.fromstring(drawn)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == f"<{name}>"
    assert "<script" not in drawn and "role=" not in drawn.split(">", 1)[1]
    assert drawn == charts.svg(SPECS[name], f"<{name}>")
    document = charts.picture(SPECS[name], "svg").decode()
    assert not re.search(r'(fill|stroke)="var', document) and '"white"' in document
    assert charts.picture(SPECS[name], "png").startswith(b"\x89PNG")


def test_ids_are_of_one_chart_alone():
    found = []
    for end in (2, 3):
        spec = {**charts.lines({"a": [1, end]}, "loss"), "view": {"clip": True}}
        spec["layer"][0]["mark"]["clip"] = True
        drawn = charts.svg(spec, "clipped")
        ids = re.findall(r'\bid="([^"]+)"', drawn)
        assert ids and set(re.findall(r"url\(#([^)]+)\)", drawn)) <= {*ids}
        found += ids
    assert len(found) == len({*found})


def test_labels_that_look_alike_stay_apart():
    drawn = charts.svg(charts.matrix(["a b", "a\nb"], [[1, 0], [0, 2]]), "two")
    shown = [element.text for element in ElementTree.fromstring(drawn).iter() if element.text]
    assert sorted(shown) == ["1", "2", "a b", "a b", "a b (2)", "a b (2)"]
