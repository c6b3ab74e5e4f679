"""The pages of a comparison and of a sweep in headless Chromium."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill.compare.page import write_page
from distill.compare.sweep.page import write_sweep_page
from tests.browser.chromium import PROGRAM
from tests.distill.compare.made_up import comparison, sweep

pytestmark = pytest.mark.skipif(not PROGRAM, reason="needs Chromium")
AXE = os.environ.get("AXE_CORE", "")
HOSTILE = '</script><img src="http://127.0.0.1/x" onerror="alert(1)">'
ROWS = "[...document.querySelectorAll('.sorts tbody tr')].map(row => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    table = comparison(heads=3, seeds=3, name=HOSTILE)
    table["rows"][7]["candidate"] = f"./models/{HOSTILE}"
    table["rows"][-1]["failed"] = HOSTILE
    return {"compare": write_page(table, folder / "c"), "sweep": write_sweep_page(sweep(), folder / "s")}


def opened(browser, path, **how):
    tab = browser.open(path, **how)
    for _ in range(100):
        if tab.evaluate("!window.comparison || document.body.dataset.drawn === 'yes'"):
            break
        tab.evaluate("new Promise(done => setTimeout(done, 100))")
    return tab


@pytest.mark.parametrize("page", ["compare", "sweep"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_a_page_opens_offline_without_a_fault(browser, pages, page, dark, width):
    tab = opened(browser, pages[page], width=width, dark=dark)
    assert tab.requests == [] and tab.messages == []
    assert tab.sideways() == 0
    assert tab.evaluate("document.querySelectorAll('img').length") == 0
    if AXE:
        assert tab.faults(Path(AXE)) == []


@pytest.mark.parametrize("width", [1100, 390])
def test_the_charts_are_drawn_in_the_colours_of_the_page(browser, pages, width):
    tab = opened(browser, pages["compare"], width=width, dark=True)
    assert tab.evaluate("document.querySelectorAll('.chart svg').length") == 3
    symbol = "getComputedStyle(document.querySelector('.chart .mark-symbol path')).fill"
    assert tab.evaluate(symbol) in ("rgb(126, 169, 255)", "rgb(251, 154, 91)")
    assert tab.evaluate("document.querySelector('.chart').textContent.includes('x\" onerror')")
    width_of = "document.querySelector('.chart svg').getBoundingClientRect().right <= innerWidth"
    assert tab.evaluate(width_of)


def test_a_head_is_chosen(browser, pages):
    tab = opened(browser, pages["compare"])
    title = "document.querySelector('.chart').textContent.includes('urgent: f1')"
    assert not tab.evaluate(title)
    tab.evaluate(
        "{const s = document.querySelector('#head'); s.value = 1; s.dispatchEvent(new Event('change'))}"
    )
    tab.evaluate("new Promise(done => setTimeout(done, 1500))")
    assert tab.evaluate(title)


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_pointing_at_a_candidate_shows_its_row(browser, pages, touch):
    tab = opened(browser, pages["compare"], width=390 if touch else 1100)
    place = tab.evaluate(
        "(() => {const s = [...document.querySelectorAll('.chart .mark-symbol.role-mark path')].at(-1);"
        "s.scrollIntoView({block: 'center', behavior: 'instant'}); const b = s.getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]})()"
    )
    if touch:
        tab.send("Emulation.setTouchEmulationEnabled", enabled=True)
        finger = {"x": place[0], "y": place[1]}
        tab.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[finger])
        tab.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    else:
        tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    tab.evaluate("new Promise(done => setTimeout(done, 300))")
    tip = tab.evaluate(
        "document.querySelector('.tip').hidden ? '' : document.querySelector('.tip').textContent"
    )
    assert "p50 / p99 ms" in tip and "topic accuracy" in tip


@pytest.mark.parametrize("page", ["compare", "sweep"])
def test_a_table_sorts_by_click_and_by_key(browser, pages, page):
    tab = opened(browser, pages[page])
    before = tab.evaluate(ROWS)
    button = "[...document.querySelectorAll('.sorts button')]"
    tab.evaluate(f"{button}[0].focus()")
    for kind in ("keyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                 windowsVirtualKeyCode=13)  # fmt: skip
    rising = tab.evaluate(ROWS)
    assert sorted(before) == sorted(rising) and rising != before
    sort = "document.querySelector('.sorts th').getAttribute('aria-sort')"
    assert tab.evaluate(sort) == "ascending"
    tab.evaluate(f"{button}[0].click()")
    assert tab.evaluate(sort) == "descending"
    falling = tab.evaluate(ROWS)
    assert falling[0] == rising[-1] and falling[-1] == rising[0]
    tab.evaluate(f"{button}[2].click()")
    value = (
        "[...document.querySelectorAll('.sorts tbody tr')].map(row => +row.cells[2].dataset.value || null)"
    )
    values = tab.evaluate(value)
    measured = [found for found in values if found is not None]
    assert measured == sorted(measured, reverse=True)
    assert values[: len(measured)] == measured  # what was not measured is last
