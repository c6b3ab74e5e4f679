"""The pages of a comparison and of a sweep: one file each that opens offline, with its pictures beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from distill.compare.charts import MEASURES, NARROW, POINT, TEMPLATE, WIDE, bubbles, heading, specification
from distill.compare.table import (
    Column,
    Row,
    Table,
    columns,
    facts,
    failures,
    ordered,
    table_markdown,
    unmeasured,
)
from distill.reports.charts import CONFIG, Spec, picture
from distill.reports.page import Html, join, notice, page, paragraph, scroll, tag
from distill.reports.text import one_line
from distill.storage import written_whole

LARGEST = 1_000_000  # bytes of a page


def write_page(table: Table, folder: Path) -> Path:
    """Write index.html, table.md and the pictures of a comparison.

    Args:
        table: The comparison.
        folder: Made if it is missing.

    Returns:
        The path of index.html, which has the charts of as many heads as fit into a megabyte.
    """
    heads: list[dict[str, dict[str, Spec]]] = []
    for number, head in enumerate(table["head_names"], 1):
        charts: dict[str, dict[str, Spec]] = {}
        heads.append(charts)
        for measure in MEASURES:
            wide, narrow = (bubbles(table, head, measure, size) for size in (WIDE, NARROW))
            if wide and narrow:
                charts[measure.name] = {"wide": wide, "narrow": narrow}
                spec = {"title": heading(table, head, measure), **specification(wide)}
                write_pictures(spec, folder, measure.name + _suffix(head, number, len(table["head_names"])))
    write_text(folder / "table.md", table_markdown(table))
    text = _page(table, heads)
    while len(text.encode()) > LARGEST and heads:
        heads.pop()
        text = _page(table, heads)
    return write_text(folder / "index.html", text)


def _page(table: Table, heads: Sequence[Mapping[str, Any]]) -> str:
    """The page, with the charts of the first heads."""
    data = embedded({"template": TEMPLATE, "config": CONFIG, "fields": POINT, "heads": heads})
    drawn = [_vega(), f"window.comparison = {data};"] if any(heads) else []
    return page(
        table["name"],
        map(paragraph, facts(table)),
        [*([("Charts", _charts(table, len(heads)))] if drawn else []), ("Candidates", _candidates(table))],
        kind="Comparison of models",
        scripts=[*drawn, template("page.js")],
        style=template("page.css"),
    )


def template(name: str) -> str:
    """The content of a file in templates/."""
    return Path(__file__).with_name("templates").joinpath(name).read_text("utf-8")


def embedded(value: Any) -> str:
    """A JSON value as JavaScript that neither ends its element nor breaks a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _charts(table: Table, heads: int) -> Html:
    names = [one_line(head) for head in table["head_names"][:heads]]
    choice = [
        tag(
            "label",
            Html("Head "),
            tag("select", *(tag("option", n, value=i) for i, n in enumerate(names)), id="head"),
        )
    ]
    figures = [
        tag(
            "figure",
            tag("figcaption", tag("strong", measure.title)),
            tag("div", id=measure.name, class_="chart", role="img", aria_label=measure.title),
        )
        for measure in MEASURES
    ]
    missing = unmeasured(table)
    notes = [f"Not drawn, since their weights could not be loaded: {', '.join(missing)}."] if missing else []
    if others := len(table["head_names"]) - heads:
        notes.append(f"The charts of {others} more heads are beside this page.")
    several = any(len(row["seeds"]) > 1 for row in table["rows"])
    note = (
        "Area is the size of the model file. The dashed line is the Pareto front: no other candidate is as "
        "good in one and better in the other. Bars are 95 % intervals over the test texts"
        + ("; thick bars reach from the lowest to the highest seed" if several else "")
        + ". Point at a candidate for its values."
    )
    return join(
        [
            paragraph(note, class_="quiet"),
            tag("noscript", paragraph("The charts need JavaScript; their pictures are beside this page.")),
            *(choice if len(names) > 1 else []),
            *figures,
            *(paragraph(line, class_="quiet") for line in notes),
        ]
    )


def _candidates(table: Table) -> Html:
    chosen = columns(table)
    failed = [f"{who}: {reason}" for who, reason in failures(table)]
    return join(
        [
            sortable(chosen, ordered(table), table["rows"], "Candidates"),
            explained(chosen),
            *([notice("Failed", failed, bad=True)] if failed else []),
        ]
    )


def sortable(chosen: Sequence[Column], rows: Sequence[Row], every: Sequence[Row], label: str) -> Html:
    """A table whose columns sort; rows carry their place among all rows."""
    side = ["words" if column.words else None for column in chosen]
    top = [
        tag(
            "th",
            tag("button", column.title, type="button"),
            scope="col",
            class_=c,
            title=column.meaning or None,
        )
        for column, c in zip(chosen, side, strict=True)
    ]
    lines = []
    for row in rows:
        cells = [
            tag("td" if number else "th", column.text(row), class_=side[number], data_value=column.value(row),
                scope=None if number else "row")
            for number, column in enumerate(chosen)
        ]  # fmt: skip
        index = next(index for index, other in enumerate(every) if other is row)
        lines.append(tag("tr", *cells, data_row=index, class_="best" if chosen[-1].value(row) else None))
    return scroll(tag("table", tag("thead", tag("tr", *top)), tag("tbody", *lines), class_="sorts"), label)


def explained(chosen: Sequence[Column]) -> Html:
    """What the columns mean, as a list."""
    lines = [tag("li", tag("b", c.title), Html(": "), f"{c.meaning}.") for c in chosen if c.meaning]
    return tag("ul", *lines, class_="quiet meanings")


def _suffix(head: str, number: int, heads: int) -> str:
    """What tells the pictures of heads apart; a name that is no plain file name gives way to its number."""
    if heads == 1:
        return ""
    return f"-{head}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,39}", head) else f"-{number}"


def write_pictures(spec: Spec, folder: Path, name: str) -> None:
    """Write a chart as NAME.svg and NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    forms: tuple[Literal["svg"], Literal["png"]] = ("svg", "png")
    for form in forms:
        with written_whole(folder / f"{name}.{form}") as file:
            file.write_bytes(picture(spec, form))


def write_text(path: Path, text: str) -> Path:
    """Write a file and the folders that it needs; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write_text(text, encoding="utf-8")
    return path


@cache
def _vega() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle
