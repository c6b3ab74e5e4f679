"""The charts of a comparison and of a sweep, as Vega-Lite specifications.

A bubble chart's specification is `TEMPLATE` with its values in place of the strings that begin with `$`; the
script of a page fills the same template. Scales, ticks and the places of the names are computed here, so a
chart of a page and its picture for documents are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distill.compare.table import Row, Table, at, number, pareto, quality
from distill.reports.charts import Spec
from distill.reports.text import one_line

WIDE, NARROW = (920, 430), (270, 380)  # pixels of a chart without its axes; narrow for a phone
CHARACTER, LINE = 6.5, 13.0  # pixels of the names' font


@dataclass(frozen=True)
class Measure:
    """What a chart sets quality against."""

    name: str
    title: str
    axis: str
    value: Callable[[Row], Any]
    ticks: Sequence[Sequence[float]]  # finest first
    label: str = "format(datum.value, ',')"
    higher_is_better: bool = False


_DECADES = [[step * 10.0**power for power in range(-3, 7) for step in steps] for steps in ((1, 2, 5), (1,))]
_SECONDS = [
    [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400],
    [1, 10, 60, 600, 3600, 36000],
]
_DURATION = (
    "datum.value < 60 ? datum.value + ' s' : datum.value < 3600 ? datum.value / 60 + ' min'"
    " : datum.value / 3600 + ' h'"
)
MEASURES = (
    Measure(
        "latency",
        "Quality and CPU latency",
        "latency of one text on the CPU, p50, ms",
        at("latency_ms", "p50"),
        _DECADES,
    ),
    Measure(
        "throughput",
        "Quality and CPU throughput",
        "texts a second on the CPU, at the best batch size",
        at("throughput"),
        _DECADES,
        higher_is_better=True,
    ),
    Measure("training", "Quality and training time", "training time", at("fit_seconds"), _SECONDS, _DURATION),
)


def _layer(mark: Spec, data: str = "points", **encoding: Any) -> Spec:
    return {"data": {"name": data}, "mark": {"aria": False, **mark}, "encoding": encoding}


def _position(field: str, axis: str) -> Spec:
    return {"field": field, "type": "quantitative", "scale": f"${axis}scale", "axis": f"${axis}axis"}


def _pixel(field: str) -> Spec:
    return {"field": field, "type": "quantitative", "scale": None}


# what is drawn of a candidate; `row` is its place in the table, the last five are of its name
POINT = (
    "row",
    "name",
    "how",
    "x",
    "y",
    "low",
    "high",
    "least",
    "most",
    "area",
    "tx",
    "ty",
    "align",
    "lx",
    "ly",
)
_X, _Y = _position("x", "x"), _position("y", "y")
_SERIES: Spec = {"field": "how", "type": "nominal", "legend": {"title": None, "columns": 3}}
_LOOKS = {
    "fine-tuned": ("var(--c1)", "circle"),
    "distilled": ("var(--c2)", "square"),
    "floor": ("var(--c8)", "diamond"),
}
_NAME: Spec = {"type": "text", "baseline": "middle", "align": {"expr": "datum.align"}}
_NAMED: Spec = {"x": _pixel("tx"), "y": _pixel("ty"), "text": {"field": "name", "type": "nominal"}}
TEMPLATE: Spec = {
    "width": "$width",
    "height": "$height",
    "datasets": {"points": "$points", "front": "$front"},
    "layer": [
        _layer(
            {"type": "line", "interpolate": "$step", "color": "var(--muted)", "strokeDash": [5, 4]},
            "front",
            x=_X,
            y=_Y,
        ),
        _layer({"type": "rule", "strokeWidth": 1}, x=_X, y=_position("low", "y"), y2={"field": "high"},
               color="$colour"),
        _layer({"type": "rule", "strokeWidth": 4, "opacity": 0.5}, x=_X, y=_position("least", "y"),
               y2={"field": "most"}, color="$colour"),
        _layer({"type": "rule", "color": "var(--muted)", "opacity": 0.5}, x=_pixel("lx"), y=_pixel("ly"),
               x2={"field": "tx"}, y2={"field": "ty"}),
        _layer({"type": "point", "filled": True, "opacity": 0.65, "tooltip": {"content": "data"}},
               x=_X, y=_Y, color="$colour", shape="$shape", size="$size"),
        _layer({**_NAME, "stroke": "var(--paper)", "strokeWidth": 3, "strokeJoin": "round"}, **_NAMED),
        _layer(_NAME, **_NAMED),
    ],
}  # fmt: skip


def specification(chart: Mapping[str, Any]) -> Spec:
    """The Vega-Lite specification of a chart that `bubbles` made."""
    points = [dict(zip(POINT, point, strict=True)) for point in chart["points"]]
    return dict(fill(TEMPLATE, {**chart, "points": points}))


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """The template with values in place of the strings that name them."""
    if isinstance(template, str) and template[:1] == "$":
        return values[template[1:]]
    if isinstance(template, dict):
        return {key: fill(value, values) for key, value in template.items()}
    return [fill(value, values) for value in template] if isinstance(template, list) else template


def bubbles(table: Table, head: str, measure: Measure, size: tuple[int, int] = WIDE) -> Spec | None:
    """The values of `TEMPLATE`: quality of a head against a measure; area is the size of the model file.

    Returns:
        None if no candidate has both.
    """
    names = short_names([row["candidate"] for row in table["rows"]])
    points = [
        _point(index, names[index], row, head, cost)
        for index, row in enumerate(table["rows"])
        if (cost := number(measure.value(row))) is not None and cost > 0 and quality(row, head) is not None
    ]
    if not points:
        return None
    width, height = size
    x, y = _log_domain(point["x"] for point in points), _domain(points)
    points.sort(key=lambda point: -(point["area"] or 0.0))
    front = _front(points, x, measure.higher_is_better)
    largest = max((point["area"] or 0.0 for point in points), default=0.0)
    for point in [*points, *front]:
        along = math.log(point["x"] / x[0]) / math.log(x[1] / x[0])
        point["px"], point["py"] = width * along, height * (y[1] - point["y"]) / (y[1] - y[0])
    area = 1500.0 if size == WIDE else 700.0  # square pixels of the largest bubble
    reach = [math.sqrt(area * (p["area"] or 0.0) / largest / math.pi) + 2 if largest else 6.0 for p in points]
    _place_names(points, reach, front, size, y)
    metric = f"{one_line(head)}: {one_line(table['metrics'][head])}"
    levels = [[tick for tick in level if x[0] <= tick <= x[1]] for level in measure.ticks]
    ticks = next((level for level in levels if len(level) <= width / 50), levels[-1])
    shown = [how for how in _LOOKS if any(point["how"] == how for point in points)]
    plain = {"domain": False, "ticks": False}
    return {
        "width": width,
        "height": height,
        "points": [[_rounded(point[field]) for field in POINT] for point in points],
        "front": [{"x": _rounded(corner["x"]), "y": _rounded(corner["y"])} for corner in front],
        "step": "step-before" if measure.higher_is_better else "step-after",
        "xscale": {"type": "log", "domain": x, "nice": False},
        "yscale": {"domain": y, "nice": False, "zero": False},
        "xaxis": {"title": measure.axis, "values": ticks, "labelExpr": measure.label, "grid": False},
        "yaxis": {"title": metric, "tickCount": 6, **plain},
        "colour": {**_SERIES, "scale": {"domain": shown, "range": [_LOOKS[how][0] for how in shown]}},
        "shape": {**_SERIES, "scale": {"domain": shown, "range": [_LOOKS[how][1] for how in shown]}},
        "size": _size(largest, area, with_legend=size == WIDE),
    }


def heading(table: Table, head: str, measure: Measure) -> Spec:
    """The title of a chart's picture for documents."""
    machine = table["machine"]
    where = f"{one_line(machine['cpu'])}, {machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    text = {
        "text": f"{one_line(table['name'])}: {measure.title[0].lower()}{measure.title[1:]}",
        "subtitle": where,
    }
    style = {
        "anchor": "start",
        "frame": "group",
        "offset": 14,
        "color": "var(--ink)",
        "subtitleColor": "var(--muted)",
    }
    return {**text, **style, "fontSize": 15, "subtitleFontSize": 11, "subtitlePadding": 4}


def short_names(names: Sequence[str], separator: str = "/") -> list[str]:
    """The names as a chart shows them: the last part of a path, hub id or key, if no other ends alike."""
    last = [one_line(name).rstrip(separator).rsplit(separator, 1)[-1] for name in names]
    return [
        _cut(end if len({n for n, e in zip(names, last, strict=True) if e == end}) == 1 else one_line(name))
        for name, end in zip(names, last, strict=True)
    ]


def _cut(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _point(index: int, name: str, row: Row, head: str, x: float) -> dict[str, Any]:
    found = row["quality"][head]
    value = found["value"]
    seeds = [seed for seed in map(number, found.get("seeds") or ()) if seed is not None] or [value]
    low, high = number(found.get("low")), number(found.get("high"))
    area = number(at("bytes", "int8")(row)) or number(at("bytes", "fp32")(row))
    return {
        "row": index,
        "name": name,
        "how": row["how"],
        "x": x,
        "y": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
        "least": min(seeds),
        "most": max(seeds),
        "area": None if area is None else area / 1e6,
    }


def _front(points: Sequence[Spec], domain: Sequence[float], higher: bool) -> list[Spec]:
    """The corners of the Pareto front, drawn on to the edge of the chart."""
    chosen = pareto((-point["x"] if higher else point["x"], point["y"]) for point in points)
    corners = [{"x": points[index]["x"], "y": points[index]["y"]} for index in chosen]
    edge = {"x": domain[0] if higher else domain[1], "y": corners[-1]["y"]}
    return [*corners, edge][:: -1 if higher else 1]


def _log_domain(values: Iterable[float]) -> list[float]:
    logs = [math.log(value) for value in values]
    pad = max(0.25, 0.07 * (max(logs) - min(logs)))
    return [math.exp(min(logs) - pad), math.exp(max(logs) + pad)]


def _domain(points: Sequence[Spec]) -> list[float]:
    low = min(min(point["low"], point["least"]) for point in points)
    high = max(max(point["high"], point["most"]) for point in points)
    pad = max(0.002, 0.06 * (high - low))
    return [low - pad, high + pad]


def _rounded(value: Any) -> Any:
    """A number with five digits, which a screen cannot tell from the whole one."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _size(largest: float, area: float, *, with_legend: bool) -> Spec:
    if not largest:
        return {"value": 60}
    values = sorted({float(f"{share * largest:.1g}") for share in (0.1, 0.5)})
    legend = {
        "title": "model file, MB",
        "values": values,
        "symbolType": "circle",
        "symbolFillColor": "var(--line)",
        "symbolStrokeColor": "var(--muted)",
        "symbolStrokeWidth": 1,
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "titleOrient": "left",
        "titlePadding": 10,
    }
    scale = {"domain": [0, largest], "range": [0, area], "zero": True}
    return {
        "field": "area",
        "type": "quantitative",
        "scale": scale,
        "legend": legend if with_legend else None,
    }


# where a name may stand: direction from its point, and the alignment of the text
_PLACES = [(1, 0, "left"), (-1, 0, "right"), (0, -1, "center"), (0, 1, "center"), (0.8, -0.8, "left"),
           (0.8, 0.8, "left"), (-0.8, -0.8, "right"), (-0.8, 0.8, "right")]  # fmt: skip

Box = tuple[float, float, float, float]


def _place_names(
    points: list[Spec], radius: list[float], front: list[Spec], size: tuple[int, int], domain: Sequence[float]
) -> None:
    """Give every point the place of its name, away from other names, points, bars and the front.

    `tx`, `ty` and `align` are of the name, `lx` and `ly` the start of the line that leads to a distant one.
    """
    width, height = size
    scale = height / (domain[1] - domain[0])
    bodies: list[Box] = []
    for point, r in zip(points, radius, strict=True):
        bodies.append((point["px"] - r, point["py"] - r, point["px"] + r, point["py"] + r))
        low, high = (scale * (domain[1] - point[key]) for key in ("low", "high"))
        bodies.append((point["px"] - 2, high, point["px"] + 2, low))
    for one, two in pairwise(front):
        upright, level = (two["px"], one["py"]) if one["y"] < two["y"] else (one["px"], two["py"])
        top, bottom = sorted([one["py"], two["py"]])
        bodies += [
            (upright - 1.5, top, upright + 1.5, bottom),
            (one["px"], level - 1.5, two["px"], level + 1.5),
        ]
    boxes: list[Box | None] = [None] * len(points)

    def cost(box: Box, own: int, far: float) -> float:
        outside = max(0.0, -box[0]) + max(0.0, box[2] - width) + max(0.0, -box[1]) + max(0.0, box[3] - height)
        names = sum(_overlap(box, b) for i, b in enumerate(boxes) if b is not None and i != own)
        return 40 * outside + 6 * names + 2 * sum(_overlap(box, body) for body in bodies) + far

    for _ in range(3):
        for own, point in enumerate(points):
            best = math.inf
            length, px, py = CHARACTER * len(point["name"]), point["px"], point["py"]
            others = bodies[: 2 * own] + bodies[2 * own + 2 :]
            for gap in (4, 14, 28, 44, 64):
                for right, down, align in _PLACES:
                    x, y = (
                        point["px"] + right * (radius[own] + gap),
                        point["py"] + down * (radius[own] + gap + 5),
                    )
                    left = x - length * {"left": 0, "center": 0.5, "right": 1}[align]
                    box = (left, y - LINE / 2, left + length, y + LINE / 2)
                    through = sum(
                        body[0] < px + (x - px) * step < body[2] and body[1] < py + (y - py) * step < body[3]
                        for step in (0.25, 0.5, 0.75, 1)
                        for body in others
                    )
                    far = 1.5 * gap + 4 * abs(down) + (60 * through if gap > 4 else 0)
                    if (found := cost(box, own, far)) < best:
                        best, boxes[own] = found, box
                        point |= {"tx": x, "ty": y, "align": align}
    for point, r in zip(points, radius, strict=True):
        x, y = point.pop("px"), point.pop("py")
        far = math.hypot(point["tx"] - x, point["ty"] - y)
        start = r / far if far > r + 13 else 1.0
        point["lx"], point["ly"] = x + start * (point["tx"] - x), y + start * (point["ty"] - y)


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0
