"""A browser for the tests of pages; they are skipped where there is none."""

import os
from pathlib import Path

import pytest

from tests.browser.chromium import PROGRAM, Chromium


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    if PROGRAM is None:
        pytest.skip("needs chromium")
    with Chromium() as found:
        yield found


@pytest.fixture(scope="session")
def axe() -> Path | None:
    """The file axe.min.js of the npm package axe-core, which the environment variable AXE_CORE names."""
    return Path(os.environ["AXE_CORE"]) if "AXE_CORE" in os.environ else None


HOSTILE = {
    "html": '"><img src=//x.example/a onerror=alert(1)><b>bold</b>&amp;<!--',
    "script": "</script></style></svg><script>alert(document.domain)</script>",
    "markdown": "**x** [link](javascript:alert(1)) `code` | cell # head",
    "breaks": "first line\nsecond line\r\nthird\u2028fourth\ttab\x1b[31m",
    "right to left": "שלום עולם مرحبا \u202egnirts\u202c",
    "emoji": "👩‍💻 🇩🇪 🧑🏽‍🚀",
    "long word": "w" * 5000,
    "template": "{{constructor.constructor('alert(1)')()}} ${alert(1)} datum.x signal var(--ink)",
    "quotes": "'onload='alert(1)' \" ` \\",
    "css": "}*{display:none} url(//x.example/b) @import '//x.example/c';",
}


@pytest.fixture(scope="session")
def hostile() -> dict[str, str]:
    """Texts that a page must show as text, by what they try."""
    return HOSTILE


@pytest.fixture(scope="session")
def check_page(browser, axe):
    """A function (path) that refuses a page that asks, says, runs or scrolls, in light, dark and on a phone.

    Returns the text that it shows, in light.
    """

    def check(path: Path) -> str:
        shown = ""
        for width, dark in ((1100, False), (1100, True), (390, False), (390, True)):
            tab = browser.open(path, width=width, dark=dark)
            tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert tab.requests == [] and tab.messages == []
            assert tab.sideways() <= 0, f"scrolls to the side at {width} px"
            assert tab.evaluate("document.querySelectorAll('main img, main script, main style').length") == 0
            assert tab.evaluate("document.querySelectorAll('h1').length") == 1
            if axe:
                assert tab.faults(axe) == []
            shown = shown or tab.evaluate("document.body.textContent")
            tab.close()
        return shown

    return check
