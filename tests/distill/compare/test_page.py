import json
import re
import xml.etree.ElementTree as ET

import pytest

from distill.compare.page import embedded, write_page
from distill.compare.sweep.page import sweep_markdown, sweep_text, write_sweep_page
from tests.distill.compare.made_up import comparison, sweep

HOSTILE = "</script><script>alert(1)</script> <!-- $x \u2028 \u202e|`<img src=x onerror=alert(2)>"


def is_picture(path):
    if path.suffix == ".png":
        return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return ET.fromstring(path.read_text("utf-8")).tag.endswith("svg")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    table = comparison(heads=3, seeds=3, name=HOSTILE)
    for row in table["rows"][:4]:  # all of the usual candidates with quality
        row |= {"quality": table["rows"][7]["quality"], "weights": True}
    table["head_names"][2] = HOSTILE
    table["metrics"][HOSTILE] = "f1"
    for row in table["rows"]:
        if row["quality"]:
            row["quality"] = {**row["quality"], HOSTILE: row["quality"]["topic"]}
    table["rows"][7]["candidate"] = HOSTILE
    return write_page(table, folder / "made" / "for it")


def test_a_page_is_at_most_a_megabyte(written):
    assert written.stat().st_size <= 1_000_000


def test_charts_of_more_heads_than_a_page_holds_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.compare.page.LARGEST", 946_000)
    page = write_page(comparison(heads=3), tmp_path)
    assert page.stat().st_size <= 946_000
    assert "The charts of 2 more heads are beside this page." in page.read_text("utf-8")
    assert len([*tmp_path.glob("*.png")]) == 9


def test_the_pictures_and_the_table_lie_beside_it(written):
    names = {path.name for path in written.parent.iterdir()}
    pictures = {
        f"{chart}-{head}.{form}"
        for chart in ("latency", "throughput", "training")
        for head in ("topic", "urgent", "3")
        for form in ("svg", "png")
    }
    assert names == {"index.html", "table.md", *pictures}
    assert all(is_picture(written.parent / name) for name in pictures)


def test_one_head_has_plain_names(tmp_path):
    write_page(comparison(), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"latency.png", "throughput.png", "training.png"}


def test_the_policy_forbids_requests_and_eval(written):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', written.read_text("utf-8"))
    assert policy and "default-src &#x27;none&#x27;" in policy[1]
    assert "unsafe-eval" not in policy[1]


def test_names_neither_end_a_script_nor_begin_an_element(written):
    markup, scripts = re.subn("<script>.*?</script>", "", written.read_text("utf-8"), flags=re.DOTALL)
    assert scripts == 3
    assert "<img" not in markup and "<script" not in markup and "&lt;img" in markup


def test_embedded_json_is_the_same_value():
    text = embedded({"a": HOSTILE, "b": [1.5, None]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": HOSTILE, "b": [1.5, None]}


def test_without_quality_there_are_no_charts(tmp_path):
    table = comparison()
    for row in table["rows"]:
        row |= {"quality": {}, "weights": False}
    page = write_page(table, tmp_path)
    assert page.stat().st_size < 60_000
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "table.md"}


@pytest.mark.parametrize(("keys", "charts"), [(1, {"values"}), (2, {"values", "grid"}), (3, {"values"})])
def test_a_sweep_has_a_heat_map_of_two_keys(tmp_path, keys, charts):
    page = write_sweep_page(sweep(keys), tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == charts
    assert all(is_picture(path) for path in tmp_path.glob("*.[sp][vn]g"))
    assert page.stat().st_size < 100_000


def test_a_sweep_of_hostile_values(tmp_path):
    found = sweep()
    found |= {"name": HOSTILE, "keys": [HOSTILE, "student.lr"]}
    for row in found["rows"]:
        row["settings"] = {HOSTILE: HOSTILE, "student.lr": [1, {"x": None}]}
    page = write_sweep_page(found, tmp_path).read_text("utf-8")
    assert "<img" not in page and page.count("<script") == 1
    assert "\u202e" not in sweep_text(found) and "<img" not in sweep_markdown(found).replace("\\<img", "")


def test_a_sweep_of_one_seed_or_of_failures_alone(tmp_path):
    write_sweep_page(sweep(seeds=1), tmp_path)
    found = sweep()
    for row in found["rows"]:
        row |= {"mean": None, "sd": None, "values": [None, None], "failed": "out of memory"}
    found["best"] = None
    page = write_sweep_page(found, tmp_path / "failed")
    assert "out of memory" in page.read_text("utf-8")
    assert "failed: " in sweep_text(found)


def test_a_sweep_says_what_was_measured_and_marks_the_best():
    text = sweep_text(sweep())
    assert "3,000 labelled validation texts" in text
    (line,) = [line for line in text.splitlines() if line.endswith("*")]
    assert line.split()[:2] == ["2", "0.001"]
