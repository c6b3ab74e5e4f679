"""What reports and model cards say of a head that abstains."""

from distill.reports import charts
from distill.reports.heads import answered_by
from distill.reports.text import abstention

RULE = {
    "score": "probability",
    "threshold": 0.91234567,
    "accuracy": 0.98,
    "confidence": 0.95,
    "coverage": 0.9,
}
TEST = {"texts": 1000, "answered": 900, "coverage": 0.9, "accuracy": 0.99, "accuracy_on_all": 0.96}
NONE = {"probability": None, "energy": None}


def found(**changes):
    values = {
        "wanted": {"accuracy": 0.98, "confidence": 0.95},
        "score": "probability",
        "auroc": {"validation": NONE, "test": NONE},
        "rule": RULE,
        "bound": 0.981,
        "answered": {"test": {**TEST, "oos_refused": None}},
    }
    return {**values, **changes}


def test_sentences():
    assert [*abstention(None)] == []
    assert [*abstention(found())] == [
        "The head abstains below a probability of 0.912346: the promised accuracy of its answers is 0.98 "
        "with confidence 0.95.",
        "On test it answers 90.0% of 1,000 labelled texts, 99.00% of them right; 96.00% of all would be "
        "right.",
    ]
    aurocs = {"validation": NONE, "test": {"probability": 0.9, "energy": 0.95}}
    told = "AUROC of test texts that have a class against those of none: probability 0.9000, energy 0.9500."
    assert [*abstention(found(wanted=None, rule=None, answered={}, auroc=aurocs))] == [told]
    unkept = [*abstention(found(rule=None, answered={}))]
    assert unkept == [
        "The head always answers: no threshold on validation has an accuracy of 0.98 with confidence 0.95."
    ]
    rule = {**RULE, "score": "energy", "accuracy": None, "confidence": None}
    silent = {**TEST, "answered": 0, "coverage": 0.0, "accuracy": None, "oos_refused": 0.75}
    told = [*abstention(found(wanted={"coverage": 0.9}, rule=rule, answered={"test": silent}))]
    assert told == [
        "The head abstains below an energy of 0.912346, which answers 90.0% of the validation texts.",
        "Of the test texts of no class, 75.0% get no answer.",
    ]


def test_the_chart_marks_where_the_head_abstains():
    points = [{"coverage": x / 10, "accuracy": 1 - x / 100, "threshold": 0.9} for x in range(1, 11)]
    plain = charts.coverage(points)
    assert plain["mark"]["type"] == "line"
    assert answered_by({"abstention": found()}) == {**TEST, "oos_refused": None}
    assert answered_by({"answered": {**TEST, "answered": 0}}) is None and answered_by({}) is None
    marked = charts.coverage(points, TEST)
    assert [layer["mark"]["type"] for layer in marked["layer"]] == ["line", "point"]
    assert marked["layer"][1]["data"]["values"] == [{"coverage": 0.9, "accuracy": 0.99}]
    assert "<svg" in str(charts.svg(marked, "coverage"))
