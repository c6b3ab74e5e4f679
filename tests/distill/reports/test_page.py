import re
from html import unescape

from distill.reports import page as pages
from distill.reports.page import Html, bar, interval, short, table, tag, text

HOSTILE = "\"><script>alert(1)</script> \x1b[31m\n# **x** &amp; \u202e 'onload=x"


def test_only_markup_is_markup():
    assert text(Html("<b>")) == "<b>" and text("<b>") == "&lt;b&gt;" and text(3) == "3"
    # what is not built with `tag` is no markup, so it is shown
    assert text(Html("<b>") + "<script>") == "&lt;b&gt;&lt;script&gt;"
    assert text(f"{Html('<b>')}") == "&lt;b&gt;"
    assert tag("p", "<", Html("<br>"), class_='"x', title=None) == '<p class="&quot;x">&lt;<br></p>'


def test_text_from_right_to_left_is_isolated_and_emoji_stay_whole():
    assert text("שלום!") == "<bdi>שלום!</bdi>"
    assert text("👩‍💻 a\u202eb") == "👩‍💻 a\ufffdb"


def test_a_page_shows_text_of_any_kind_as_text():
    body = table((HOSTILE, "n"), [(HOSTILE, 1)], HOSTILE)
    found = pages.page(HOSTILE, [pages.notice(HOSTILE, [HOSTILE])], [(HOSTILE, body)] * 4, kind=HOSTILE)
    assert "<script" not in found and "\x1b" not in found and "\u202e" not in found
    assert "script-src" not in found and "default-src 'none'" in unescape(found)
    assert not re.search(r"<[^>]*onload", re.sub(r'"[^"]*"', "", found))


def test_the_policy_allows_the_scripts_of_the_page_alone():
    found = pages.page("a", [], [], scripts=["x = '</script>'", "y"])
    assert found.count("</script>") == 2 and unescape(found).count("'sha256-") == 2
    assert "unsafe-eval" not in found and "script-src 'unsafe-inline'" not in unescape(found)


def test_long_tables_are_folded():
    rows = [(number, number) for number in range(60)]
    found = table(("a", "b"), rows, "numbers")
    assert found.count("<table") == 2 and "<summary>40 more</summary>" in found
    assert table(("a", "b"), rows[:25], "numbers").count("<table") == 1


def test_drawn_values_stay_within_their_track():
    assert "width:100.0%" in bar(7.0) and "width:0.0%" in bar(None)
    assert "left:50.0%" in interval(0.5, 0.4, 2.0, (0.0, 1.0)) and "width:60.0%" in interval(
        None, 0.4, 2, (0, 1)
    )
    assert short("x" * 200, 10) == "x" * 9 + "…"
