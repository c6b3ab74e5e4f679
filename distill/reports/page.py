"""The shell and the parts of every page: a self-contained HTML document, light and dark, also on a phone.

Markup is of the type `Html`. Every other value is escaped where it is put into a page, so text of users is
shown as text. The policy of a page allows no request and no script but those that the page is made with.
"""

from __future__ import annotations

import unicodedata
from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256
from html import escape

from distill.reports.style import STYLE
from distill.reports.text import one_line

LONGEST = 80  # characters of a label or a name that are shown
SHOWN = 20  # rows of a long table that are shown before the rest is folded
MANY_SECTIONS = 4  # sections from which on a page has a list of contents
RIGHT_TO_LEFT = ("R", "AL", "RLE", "RLO", "RLI")


class Html(str):
    """Markup, which is put into a page as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as the content of an element: markup as it is, everything else escaped and in one line.

    Text from right to left is isolated, so it does not reorder what stands beside it.
    """
    if isinstance(value, Html):
        return value
    line, given = one_line(value), str(value)
    before = " " if given[:1].isspace() else ""
    after = " " if line and given[-1:].isspace() else ""
    shown = Html(f"{before}{escape(line)}{after}")
    isolated = any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in line)
    return Html(f"<bdi>{shown}</bdi>") if isolated else shown


def join(parts: Iterable[object]) -> Html:
    """The parts in a row, each as `text` gives it."""
    return Html("".join(map(text, parts)))


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: Of the element.
        content: As `text` takes it.
        attributes: By name, `class_` and `aria_label` for class and aria-label. None leaves one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(one_line(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in ("br", "meta", "img") else f"</{name}>"
    return Html(f"<{name}{given}>{join(content)}{end}")


def short(value: object, limit: int = LONGEST) -> str:
    """The text, shortened to a number of characters."""
    line = one_line(value)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def page(
    title: object,
    intro: Iterable[object],
    sections: Sequence[tuple[str, Html]],
    *,
    kind: str = "tinyheads",
    scripts: Sequence[str] = (),
    style: str = "",
) -> str:
    """An HTML document.

    Args:
        title: Its heading.
        intro: What stands under the heading, before the contents.
        sections: Their headings (of level 2) and contents, in order.
        kind: What the page is, above the heading.
        scripts: JavaScript without the element, run in this order after the content is there. The policy of
            the page allows these by their digests, and forbids `eval` (vega-embed: `{ast: true}`).
        style: What the page adds to the style sheet of all pages.
    """
    numbered = [(f"s{number}", heading, body) for number, (heading, body) in enumerate(sections, 1)]
    links = [tag("li", tag("a", short(heading, 60), href=f"#{place}")) for place, heading, _ in numbered]
    contents = tag("nav", tag("ul", *links), aria_label="Contents") if len(links) >= MANY_SECTIONS else ""
    name = short(title)
    main = tag(
        "main",
        tag("header", tag("p", kind, class_="kind"), tag("h1", name), *intro),
        contents,
        *(
            tag("section", tag("h2", short(heading), id=place), body, aria_labelledby=place)
            for place, heading, body in numbered
        ),
    )
    # a closing tag within a script would end it
    safe = [script.replace("</script", "<\\/script").replace("<!--", "<\\!--") for script in scripts]
    digests = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in safe)
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag(
                "meta",
                http_equiv="Content-Security-Policy",
                content=policy + (digests and f"; script-src {digests}"),
            ),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", Html(escape(one_line(f"{name} · {kind}")))),
            tag("style", Html(STYLE + style)),
        ]
    )
    body = tag("body", main, *(tag("script", Html(script)) for script in safe))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


def paragraph(*content: object, class_: str | None = None) -> Html:
    """A paragraph."""
    return tag("p", *content, class_=class_)


def heading(value: object) -> Html:
    """A heading within a section."""
    return tag("h3", short(value))


def notice(title: str, lines: Iterable[object], *, bad: bool = False) -> Html:
    """Lines that a reader should see first, such as refusals and warnings."""
    items = tag("ul", *(tag("li", line) for line in lines))
    return tag("div", tag("strong", title), items, class_="notice bad" if bad else "notice")


def tiles(pairs: Iterable[tuple[object, object]]) -> Html:
    """The most important values, each with what it is."""
    cells = [tag("div", tag("dt", what), tag("dd", value)) for value, what in pairs]
    return tag("dl", *cells, class_="tiles")


def scroll(content: Html, label: object) -> Html:
    """Content that scrolls in a box of its own where it is wider than the page."""
    return tag("div", content, class_="scroll", role="group", tabindex=0, aria_label=short(label))


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    label: object,
    *,
    words: Collection[int] = (0,),
    shown: int = SHOWN,
) -> Html:
    """A table; what follows the first rows of a long one is folded.

    Args:
        header: Of the columns; an empty one is a column of row headings.
        rows: Cells, the first of which is the heading of its row.
        label: What the table shows, for those who cannot see it.
        words: Numbers of the columns that hold words, not numbers.
        shown: Rows of a long table that are not folded.
    """
    side = ["words" if number in words else None for number in range(len(header))]
    names = (tag("th", cell, scope="col", class_=c) for cell, c in zip(header, side, strict=True))
    top = tag("thead", tag("tr", *names)) if any(header) else ""
    lines = []
    for first, *others in rows:
        cells = (tag("td", cell, class_=c) for cell, c in zip(others, side[1:], strict=True))
        lines.append(tag("tr", tag("th", first, scope="row", class_=side[0]), *cells))

    def part(some: Iterable[Html]) -> Html:
        return scroll(tag("table", top, tag("tbody", *some)), label)

    if len(lines) <= 1.25 * shown:
        return part(lines)
    return join([part(lines[:shown]), details(f"{len(lines) - shown:,} more", part(lines[shown:]))])


def details(summary: object, *content: object) -> Html:
    """Content that is folded until a reader opens it."""
    return tag("details", tag("summary", summary), *content)


def bar(share: float | None) -> Html:
    """A bar that fills a share of its track, from 0 to 1."""
    width = min(1.0, max(0.0, share or 0.0))
    return tag("span", tag("i", style=f"width:{100 * width:.1f}%"), class_="bar", aria_hidden="true")


def interval(value: float | None, low: float, high: float, scale: tuple[float, float]) -> Html:
    """A value with its interval, drawn on a scale that the rows of a table share."""
    start, width = scale[0], max(scale[1] - scale[0], 1e-9)
    left, right = (100 * min(1.0, max(0.0, (x - start) / width)) for x in (low, high))
    marks = [tag("i", style=f"left:{left:.1f}%;width:{right - left:.1f}%")]
    if value is not None:
        marks.append(tag("b", style=f"left:{100 * min(1.0, max(0.0, (value - start) / width)):.1f}%"))
    return tag("span", *marks, class_="interval", aria_hidden="true")


def figure(picture: Html, title: object, note: object = "", *, wide: bool = False) -> Html:
    """A picture under its title. A wide one keeps its size and scrolls in a box of its own."""
    caption = tag("figcaption", tag("strong", title), *([tag("span", note)] if note else []))
    return tag(
        "figure", caption, scroll(picture, title) if wide else picture, class_="wide" if wide else None
    )


def grid(*cells: object) -> Html:
    """Figures beside each other where there is room."""
    return tag("div", *cells, class_="grid")
