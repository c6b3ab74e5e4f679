"""What a sweep found: a page with its pictures, and tables for a terminal and for documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.compare.charts import short_names
from distill.compare.page import explained, sortable, template, write_pictures, write_text
from distill.compare.table import (
    NOTHING,
    Column,
    Row,
    aligned,
    at,
    cut,
    markdown_table,
    meanings,
    number,
    numbers,
    plain,
)
from distill.reports.charts import Spec, svg
from distill.reports.page import figure, join, notice, page, paragraph
from distill.reports.text import markdown, one_line

Sweep = Mapping[str, Any]
DRAWN = 60  # settings in the dot plot; the table has all


def write_sweep_page(sweep: Sweep, folder: Path) -> Path:
    """Write index.html, table.md and the pictures of a sweep.

    Args:
        sweep: Its name, metric, split, texts, keys, seeds, rows and the index of the best row.
        folder: Made if it is missing.

    Returns:
        The path of index.html.
    """
    chosen = _columns(sweep)
    specs = {"values": dots(sweep), "grid": heat_map(sweep)}
    titles = {"values": "Mean and seeds of each setting", "grid": "Mean of each pair of values"}
    figures = []
    for name, spec in specs.items():
        if spec and spec["data"]["values"]:
            write_pictures(spec, folder, name)
            figures.append(figure(svg(spec, titles[name]), titles[name], wide=True))
    failed = _failures(sweep)
    body = join(
        [
            sortable(chosen, _ordered(sweep), sweep["rows"], "Settings"),
            explained(chosen),
            *([notice("Failed", failed, bad=True)] if failed else []),
        ]
    )
    note = "Large dots: means. Small dots: seeds. Bars: one standard deviation to either side."
    charts = join([paragraph(note, class_="quiet"), *figures])
    sections = [*([("Charts", charts)] if figures else []), ("Settings", body)]
    seeds = ", ".join(map(str, sweep["seeds"]))
    intro = [
        paragraph(
            f"{len(sweep['rows'])} settings, seeds {seeds}. {sweep['metric']} on {sweep['texts']:,} labelled "
            f"{sweep['split']} texts; test texts choose nothing."
        )
    ]
    write_text(folder / "table.md", sweep_markdown(sweep))
    text = page(
        sweep["name"],
        intro,
        sections,
        kind="Sweep",
        scripts=[template("page.js")],
        style=template("page.css"),
    )
    return write_text(folder / "index.html", text)


def _columns(sweep: Sweep) -> list[Column]:
    """The columns of a sweep: a column a key, then the metric, its spread and what it took."""
    best = sweep["rows"][sweep["best"]] if sweep["best"] is not None else None
    seeds = ", ".join(map(str, sweep["seeds"]))
    measured = f"mean over the seeds {seeds}, on {sweep['texts']:,} labelled {one_line(sweep['split'])} texts"
    return [
        *map(_setting_column, sweep["keys"]),
        numbers(one_line(sweep["metric"]), at("mean"), _metric(at("mean")), measured),
        numbers("sd", at("sd"), _metric(at("sd")), "standard deviation over the seeds"),
        numbers("each seed", at("mean"), lambda row: "  ".join(map(_four, row["values"]))),
        numbers("epochs", at("epochs"), plain(at("epochs")), "the epoch that is kept, mean over the seeds"),
        numbers("seconds", at("seconds"), plain(at("seconds")), "all seeds together"),
        Column(
            "best",
            lambda row: float(row is best) + float(row.get("tied", False)),
            lambda row: "*" if row is best else "=" if row.get("tied") else "",
            "*: the highest mean; =: within the spread of it, two standard errors over the seeds"
            if len(sweep["seeds"]) > 1
            else "*: the highest mean; one seed cannot tell small differences from chance (--seeds 3)",
        ),
    ]


def _ordered(sweep: Sweep) -> list[Row]:
    """The rows of a sweep, highest mean first, those without one last."""
    return sorted(sweep["rows"], key=lambda row: (row["mean"] is None, -(row["mean"] or 0.0)))


def sweep_text(sweep: Sweep) -> str:
    """The sweep for a terminal."""
    chosen = _columns(sweep)
    rows = [[cut(column.text(row)) for column in chosen] for row in _ordered(sweep)]
    lines = aligned([[column.title for column in chosen], *rows], [column.words for column in chosen])
    return "\n".join([*lines, "", *meanings(chosen), *(f"failed: {line}" for line in _failures(sweep))])


def sweep_markdown(sweep: Sweep) -> str:
    """The sweep as Markdown."""
    chosen = _columns(sweep)
    rows = [[markdown(column.text(row)) for column in chosen] for row in _ordered(sweep)]
    notes = [*meanings(chosen), *(f"failed: {line}" for line in _failures(sweep))]
    parts = [f"# {markdown(sweep['name'])}", markdown_table(chosen, rows), *map(markdown, notes)]
    return "\n\n".join(parts) + "\n"


def _failures(sweep: Sweep) -> list[str]:
    """The settings that failed, each with its reason."""
    return [
        f"{_settings(row['settings'])}: {one_line(row['failed'])}" for row in sweep["rows"] if row["failed"]
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    """Settings in one line, as `--set` takes them."""
    return ", ".join(f"{one_line(key)}={_setting(value)}" for key, value in settings.items())


def _setting(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return one_line(value)


def dots(sweep: Sweep) -> Spec:
    """A row for each of the best settings: its mean, a bar of one standard deviation, a small dot a seed."""
    rows = [row for row in _ordered(sweep) if row["mean"] is not None][:DRAWN]
    names = dict(zip(sweep["keys"], short_names(sweep["keys"], "."), strict=True))
    values = [
        {
            "settings": _settings({names[key]: value for key, value in row["settings"].items()}),
            "mean": row["mean"],
            "low": row["mean"] - (row["sd"] or 0.0),
            "high": row["mean"] + (row["sd"] or 0.0),
            "seeds": [value for value in row["values"] if value is not None],
        }
        for row in rows
    ]
    y = {
        "field": "settings",
        "type": "nominal",
        "sort": [value["settings"] for value in values],
        "axis": {
            "title": None,
            "domain": False,
            "ticks": False,
            "labelLimit": 300,
            "labelColor": "var(--ink)",
        },
    }
    axis = {"title": f"{one_line(sweep['metric'])}, {one_line(sweep['split'])}", "tickCount": 5}

    def x(field: str) -> Spec:
        return {"field": field, "type": "quantitative", "scale": {"zero": False}, "axis": axis}

    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.3, "color": "var(--accent)"},
            "encoding": {"y": y, "x": x("low"), "x2": {"field": "high"}},
        },
        {
            "transform": [{"flatten": ["seeds"], "as": ["value"]}],
            "mark": {"type": "point", "filled": True, "size": 18, "color": "var(--muted)", "opacity": 0.9},
            "encoding": {"y": y, "x": x("value")},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "color": "var(--accent)", "opacity": 1},
            "encoding": {"y": y, "x": x("mean")},
        },
    ]
    sides = {"left": 40, "right": 8, "top": 4, "bottom": 4}  # a browser's font may be wider
    size = {"width": 340, "height": {"step": 24}, "padding": sides}
    return {**size, "data": {"values": values}, "layer": layers}


def heat_map(sweep: Sweep) -> Spec | None:
    """The mean of each pair of values of a sweep's two keys; None for another number of keys."""
    if len(sweep["keys"]) != 2:
        return None
    down, across = sweep["keys"]
    means = [row["mean"] for row in sweep["rows"] if row["mean"] is not None]
    low, high = min(means, default=0.0), max(means, default=1.0)
    values = [
        {
            "down": _setting(row["settings"].get(down)),
            "across": _setting(row["settings"].get(across)),
            "share": 1.0 if high == low else (row["mean"] - low) / (high - low),
            "text": f"{row['mean']:.4f}",
        }
        for row in sweep["rows"]
        if row["mean"] is not None
    ]
    axis = {"domain": False, "ticks": False, "labelAngle": 0, "labelLimit": 72, "labelColor": "var(--ink)"}

    def position(field: str, key: str) -> Spec:
        found = sorted((row["settings"].get(key) for row in sweep["rows"]), key=_sort_key)
        sort = list(dict.fromkeys(map(_setting, found)))
        return {"field": field, "type": "nominal", "sort": sort, "axis": {**axis, "title": one_line(key)}}

    shade = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": [0.05, 0.55]},
        "legend": None,
    }
    cells = {"type": "rect", "color": "var(--accent)", "stroke": "var(--paper)", "strokeWidth": 2}
    return {
        "width": {"step": 76},
        "height": {"step": 40},
        "data": {"values": values},
        "encoding": {"x": position("across", across), "y": position("down", down)},
        "layer": [
            {"mark": cells, "encoding": {"fillOpacity": shade}},
            {"mark": {"type": "text"}, "encoding": {"text": {"field": "text", "type": "nominal"}}},
        ],
    }


def _sort_key(value: object) -> tuple[bool, float, str]:
    found = None if isinstance(value, bool) else number(value)
    return found is None, found or 0.0, _setting(value)


def _setting_column(key: str) -> Column:
    def value(row: Row) -> float | str | None:
        setting = row["settings"].get(key)
        return setting if isinstance(setting, (int, float)) else _setting(setting)

    return Column(one_line(key), value, lambda row: _setting(row["settings"].get(key)), words=True)


def _metric(value: Callable[[Row], Any]) -> Callable[[Row], str]:
    return lambda row: _four(value(row))


def _four(value: object) -> str:
    return NOTHING if (found := number(value)) is None else f"{found:.4f}"
