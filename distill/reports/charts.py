"""Charts: Vega-Lite specifications, and their pictures without a browser.

Colours are the CSS variables of `style.COLOURS`, so a chart in a page is light or dark with it. Text of users
is in data values alone, where Vega-Lite evaluates nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from typing import Any, Literal

import vl_convert

from distill.reports.page import Html
from distill.reports.style import COLOURS, SERIES
from distill.reports.text import one_line

Spec = dict[str, Any]
SMALL = 6  # labels of a confusion matrix that stands beside other charts
BINS = 15  # of a reliability diagram
WIDTH, HEIGHT = 290, 190  # of a chart without its axes, in pixels of a page
CELL = 24  # of a confusion matrix

CONFIG: Spec = {
    "aria": False,
    "background": None,
    "padding": {"left": 2, "top": 5, "right": 12, "bottom": 2},
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "text": {"color": "var(--ink)", "fontSize": 11},
    "rule": {"color": "var(--muted)"},
    "range": {"category": SERIES},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 130,
        "tickSize": 4,
        "labelPadding": 4,
    },
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "columns": 2,
        "columnPadding": 18,
        "labelColor": "var(--ink)",
        "labelFontSize": 11,
        "labelLimit": 130,
        "symbolStrokeWidth": 2.5,
        "title": None,
    },
}


def svg(spec: Spec, title: str) -> Html:
    """A chart as an inline `<svg>` of a page, with its title for those who cannot see it."""
    picture = vl_convert.vegalite_to_svg(_complete(spec))
    prefix = f"v{sha256(json.dumps(spec).encode()).hexdigest()[:8]}-"  # ids are of the whole page

    def inline(element: re.Match[str]) -> str:
        plain = re.sub(r' (role|class|aria-\w+|xmlns:\w+|pointer-events)="[^"]*"', "", element[0])
        return re.sub(r'\bid="|url\(#', lambda start: start[0] + prefix, plain)

    picture = re.sub(r"<[^>]*>", inline, picture)
    label = f'<svg role="img" aria-label="{escape(one_line(title))}" '
    return Html(picture.replace("<svg ", label, 1))


def picture(spec: Spec, form: Literal["svg", "png"]) -> bytes:
    """A chart as a file for documents, on white."""
    light = json.dumps(_complete({"background": "white", **spec}))
    for name, (colour, _) in COLOURS.items():
        light = light.replace(f'"var(--{name})"', f'"{colour}"')
    if form == "png":
        found: bytes = vl_convert.vegalite_to_png(light, scale=2.0)
        return found
    return str(vl_convert.vegalite_to_svg(light)).encode()


def _complete(spec: Spec) -> Spec:
    return {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "config": CONFIG, **spec}


def lines(
    series: Mapping[str, Sequence[float | None]], title: str, *, kept: int | None = None, zero: bool = False
) -> Spec:
    """A line a series over the epochs, from 1; the epoch whose weights are kept is marked.

    More than eight series have one colour and no legend.

    Args:
        series: Values by name, at least one; None where there is none.
        title: Of the vertical axis.
        kept: The epoch to mark.
        zero: Whether the vertical axis begins at 0.
    """
    values: list[Spec] = [
        {"series": one_line(name), "epoch": epoch, "value": value}
        for name, every in series.items()
        for epoch, value in enumerate(every, 1)
        if value is not None
    ]
    last: int = max((value["epoch"] for value in values), default=1)
    ticks = list(range(1, last + 1, max(1, -(-last // 8))))
    x = {
        "field": "epoch",
        "type": "quantitative",
        "scale": {"domain": [1, max(last, 2)], "nice": False},
        "axis": {"title": "epoch", "grid": False, "values": ticks, "format": "d"},
    }
    axis = {"title": title, "tickCount": 5, "format": "~g", "domain": False, "ticks": False}
    scale: Spec = {"zero": zero}
    if len(levels := {value["value"] for value in values}) == 1:
        scale["domain"] = [min(levels) - 0.1, max(levels) + 0.1]
    y = {"field": "value", "type": "quantitative", "scale": scale, "axis": axis}
    names = list(dict.fromkeys(value["series"] for value in values))
    colour: Spec = {"field": "series", "type": "nominal"}
    if many := len(names) > len(SERIES):
        colour |= {"scale": {"domain": names, "range": ["var(--muted)"]}, "legend": None}
    else:
        colour["scale"] = {"domain": names, "range": SERIES[: len(names)]}
    layers: list[Spec] = [
        {
            "data": {"values": values},
            "mark": {
                "type": "line",
                "strokeWidth": 1 if many else 2,
                "point": {"size": 22} if not many else False,
            },
            "encoding": {"x": x, "y": y, "color": colour},
        }
    ]
    if kept is not None:
        at = {"datum": kept, "type": "quantitative"}
        near_end = kept > (1 + last) / 2
        text = {"type": "text", "text": "kept", "align": "right" if near_end else "left", "baseline": "top"}
        layers += [
            {"mark": {"type": "rule", "strokeDash": [3, 3]}, "encoding": {"x": at}},
            {
                "mark": {**text, "dx": -4 if near_end else 4, "dy": 3, "color": "var(--muted)"},
                "encoding": {"x": at, "y": {"value": HEIGHT - 16}},
            },
        ]
    return {"width": WIDTH, "height": HEIGHT, "data": {"values": [{}]}, "layer": layers}


def reliability(bins: Sequence[Mapping[str, Any]]) -> Spec:
    """Accuracy by confidence beside the diagonal of perfect calibration, over the number of texts.

    Args:
        bins: Each with `confidence`, `accuracy` and `texts`.
    """
    values: list[Spec] = [
        {key: found[key] for key in ("confidence", "accuracy", "texts")}
        | {"bin": (min(int(found["confidence"] * BINS), BINS - 1) + 0.5) / BINS}
        for found in bins
    ]
    unit = {"domain": [0, 1], "nice": False}

    def x(title: str | None) -> Spec:
        axis = {"title": title, "format": "%", "grid": False, "labels": title is not None, "tickCount": 5}
        return {"field": "confidence", "type": "quantitative", "scale": unit, "axis": axis}

    axis = {"title": "accuracy", "format": "%", "tickCount": 5, "domain": False, "ticks": False}
    y = {"field": "accuracy", "type": "quantitative", "scale": unit, "axis": axis}
    ends = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    diagonal = {
        "data": {"values": ends},
        "mark": {"type": "line", "strokeDash": [4, 4], "color": "var(--muted)", "strokeWidth": 1},
        "encoding": {"x": x(None), "y": y},
    }
    line = {"type": "line", "color": "var(--accent)", "strokeWidth": 1.5, "opacity": 0.5}
    curve = {"mark": line, "encoding": {"x": x(None), "y": y}}
    area = {"field": "texts", "type": "quantitative", "scale": {"range": [14, 110]}, "legend": None}
    points = {
        "mark": {"type": "circle", "color": "var(--accent)", "opacity": 1},
        "encoding": {"x": x(None), "y": y, "size": area},
    }
    count_axis = {"title": "texts", "tickCount": 2, "domain": False, "ticks": False, "format": "~s"}
    counts = {
        "height": 45,
        "width": WIDTH,
        "mark": {"type": "bar", "color": "var(--accent)", "opacity": 0.55, "width": WIDTH / BINS - 2},
        "encoding": {
            "x": {**x("confidence"), "field": "bin"},
            "y": {"field": "texts", "type": "quantitative", "axis": count_axis},
        },
    }
    upper = {"width": WIDTH, "height": HEIGHT - 30, "layer": [diagonal, curve, points]}
    return {"data": {"values": values}, "vconcat": [upper, counts], "spacing": 10}


def coverage(points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None = None) -> Spec:
    """Accuracy against the share of texts that are answered, the most confident first.

    Args:
        points: Each with `coverage` and `accuracy`.
        chosen: The same of the threshold below which the head abstains, which is marked.
    """
    values: list[Spec] = [{key: point[key] for key in ("coverage", "accuracy")} for point in points]
    least = min((value["accuracy"] for value in values), default=0.0)
    x = {
        "field": "coverage",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "nice": False},
        "axis": {"title": "texts answered", "format": "%", "grid": False, "tickCount": 5},
    }
    y = {
        "field": "accuracy",
        "type": "quantitative",
        "scale": {"domain": [max(0.0, least - 0.02), 1], "nice": True, "zero": False},
        "axis": {
            "title": "accuracy of these",
            "format": "~%",
            "tickCount": 5,
            "domain": False,
            "ticks": False,
        },
    }
    mark = {"type": "line", "color": "var(--accent)", "strokeWidth": 2, "interpolate": "linear"}
    line: Spec = {
        "data": {"values": values},
        "mark": {**mark, "point": {"color": "var(--accent)", "size": 14}},
        "encoding": {"x": x, "y": y},
    }
    if not chosen:
        return {"width": WIDTH, "height": HEIGHT, **line}
    ring = {
        "data": {"values": [{key: chosen[key] for key in ("coverage", "accuracy")}]},
        "mark": {"type": "point", "color": "var(--ink)", "size": 90, "strokeWidth": 2},
        "encoding": {"x": x, "y": y},
    }
    return {"width": WIDTH, "height": HEIGHT, "layer": [line, ring]}


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Spec:
    """A confusion matrix: a row a label, a column a predicted label; darker is a larger share of the row.

    Args:
        labels: Of rows and columns, at most 25.
        counts: Texts `[label, predicted]`.
    """
    names = _distinct(labels)
    values: list[Spec] = [
        {
            "row": names[i],
            "column": names[j],
            "texts": n,
            "share": n / total if (total := sum(row)) else 0.0,
            "right": i == j,
        }
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
    ]
    size = max(CELL, min(52, 210 // max(1, len(labels))))
    axis: Spec = {"title": None, "domain": False, "ticks": False, "labelColor": "var(--ink)"}
    axis["labelLimit"] = 150 if len(names) > SMALL else 110
    angle = {"labelAngle": -50, "labelAlign": "left", "orient": "top"}
    x = {"field": "column", "type": "nominal", "sort": names, "axis": {**axis, **angle}}
    y = {"field": "row", "type": "nominal", "sort": names, "axis": axis}
    colour = {
        "condition": {"test": "datum.right", "value": "var(--accent)"},
        "value": "var(--c2)",
    }
    opacity = {
        "field": "share",
        "type": "quantitative",
        "scale": {"type": "sqrt", "domain": [0, 1], "range": [0.02, 0.55]},
        "legend": None,
    }
    cells = {"mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 1}}
    number = {"type": "text", "fontSize": 11 if max((v["texts"] for v in values), default=0) < 1000 else 9}
    return {
        "padding": 20,  # the font of a page may be wider than the one that is measured
        "width": {"step": size},
        "height": {"step": size},
        "data": {"values": values},
        "encoding": {"x": x, "y": y},
        "layer": [
            {**cells, "encoding": {"fill": colour, "fillOpacity": opacity}},
            {
                "mark": number,
                "transform": [{"filter": "datum.texts > 0"}],
                "encoding": {"text": {"field": "texts", "type": "quantitative"}},
            },
        ],
    }


def _distinct(labels: Sequence[str]) -> list[str]:
    """The labels in one line each, numbered where they are then equal."""
    names: list[str] = []
    for label in labels:
        name = one_line(label)
        names.append(f"{name} ({len(names) + 1})" if name in names else name)
    return names
