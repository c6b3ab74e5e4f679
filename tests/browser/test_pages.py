"""Reports in a browser: text of any kind is shown as text, nothing runs, nothing is requested."""

import pytest

from distill.reports import page
from distill.reports.charts import lines, svg
from distill.reports.evaluate_page import write_evaluate_page
from distill.reports.report import write_report
from distill.reports.text import one_line
from tests.distill.reports.example import analysed_head, write_run


def test_a_report_shows_text_of_any_kind_as_text(tmp_path, check_page, hostile):
    texts = [*hostile.values()]
    write_run(tmp_path, " ".join(texts), texts, texts, refused=texts)
    write_report(tmp_path)
    shown = check_page(tmp_path / "report.html")
    for text in texts:
        assert shown.count(one_line(text)[:100]) > 10


def test_an_evaluation_shows_text_of_any_kind_as_text(tmp_path, check_page, hostile):
    texts = [*hostile.values()]
    analysis = {
        name: {**analysed_head(kind, texts, texts), "intervals": {"int8": [0.8, 0.9]}}
        for name, kind in ((texts[0], "single_label"), (texts[1], "multi_label"))
    }
    result = {
        "rows": 1200,
        "variant": "int8",
        "dropped": {texts[2]: 3},
        "texts": dict.fromkeys(analysis, 1066),
        "unknown_labels": {texts[0]: dict.fromkeys(texts, 2)},
        "heads": {name: {found["metric"]: 0.85} for name, found in analysis.items()},
        "analysis": analysis,
    }
    path = write_evaluate_page(tmp_path / "page.html", texts[3], texts[4], result)
    assert one_line(texts[4]) in check_page(path)


def test_a_report_of_many_labels(tmp_path, check_page):
    write_run(tmp_path, labels=[f"label_number_{number}" for number in range(150)])
    write_report(tmp_path)
    assert "125 more are left out" in check_page(tmp_path / "report.html")


def test_no_script_runs_but_those_of_the_page(tmp_path, browser):
    chart = svg(lines({"a": [1, 2]}, "loss"), "a chart")
    smuggled = page.Html(
        "<script>document.title = 'smuggled'</script><img src=x onerror=\"document.title='on'\">"
    )
    own = "document.querySelector('h1').textContent = '</script> ran'"
    path = tmp_path / "page.html"
    path.write_text(page.page("title", [chart, smuggled], [], scripts=[own]), "utf-8")
    tab = browser.open(path)
    assert tab.evaluate("document.querySelector('h1').textContent") == "</script> ran"
    assert tab.evaluate("document.title") == "title · tinyheads"
    assert any("Content Security Policy" in message for message in tab.messages)


@pytest.mark.parametrize("scheme", [False, True])
def test_charts_have_the_colours_of_the_page(tmp_path, browser, scheme):
    path = tmp_path / "page.html"
    path.write_text(page.page("title", [svg(lines({"a": [1, 2]}, "loss"), "a chart")], []), "utf-8")
    tab = browser.open(path, dark=scheme)
    stroke = "getComputedStyle(document.querySelector('svg path[stroke^=\"var(--c1\"]')).stroke"
    assert tab.evaluate(stroke) == ("rgb(126, 169, 255)" if scheme else "rgb(37, 88, 196)")
