"""Draw the chart of benchmarks/quality.py: quality against size and against texts per second.

    python benchmarks/quality_chart.py FOLDER

Reads FOLDER/chart.json and writes FOLDER/chart.svg and chart.png. Needs matplotlib.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullFormatter

PEER, FAMILY, OURS = "#7a7f87", "#4c8fd6", "#c8321f"
PANELS = (("megabytes", "MB to ship (less is better)"), ("rate", "texts per second (more is better)"))
# positions of a name beside its point: offset to the right and up in points, and alignment
PLACES = [(8, 0, "left", "center"), (-8, 0, "right", "center"), (0, 8, "center", "bottom")]
PLACES += [(0, -8, "center", "top"), (7, 7, "left", "bottom"), (7, -7, "left", "top")]
PLACES += [(-7, 7, "right", "bottom"), (-7, -7, "right", "top"), (12, 16, "left", "bottom")]
PLACES += [(12, -16, "left", "top"), (-12, 16, "right", "bottom"), (-12, -16, "right", "top")]
PLACES += [(14, 28, "left", "bottom"), (14, -28, "left", "top"), (-14, -28, "right", "top")]


def main(folder: Path) -> None:
    """Draw the chart that chart.json describes."""
    content = json.loads((folder / "chart.json").read_text(encoding="utf-8"))
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5.2), sharey=True, layout="constrained")
    for panel, (key, label) in zip(panels, PANELS, strict=True):
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(color="#e4e6e9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.margins(x=0.22, y=0.12)
        for point in content["points"]:
            mark = "*" if point["name"] == "ours" else "o"
            panel.scatter(
                point[key], point["quality"], marker=mark, s=230 if mark == "*" else 55, color=_colour(point)
            )
    panels[0].set_ylabel(f"{content['metric']} on test")
    figure.suptitle(content["title"], x=0.01, ha="left", fontsize=11)
    figure.canvas.draw()
    for panel, (key, _) in zip(panels, PANELS, strict=True):
        _name(figure, panel, key, content["points"])
    for kind in ("svg", "png"):
        figure.savefig(folder / f"chart.{kind}", dpi=160)


def _colour(point: dict[str, Any]) -> str:
    if point["name"] == "ours":
        return OURS
    return FAMILY if point["own"] else PEER


def _name(figure: Any, panel: Any, key: str, points: list[dict[str, Any]]) -> None:
    """Write each name where it covers neither a point nor another name, if such a position exists."""
    renderer, inside = figure.canvas.get_renderer(), panel.get_window_extent()
    spots = [panel.transData.transform((point[key], point["quality"])) for point in points]
    taken: list[Any] = []
    for point in sorted(points, key=lambda point: point["name"] != "ours"):
        tried: list[tuple[int, int, Any, Any]] = []
        far = 1.5 if point["name"] == "ours" else 1  # its marker is larger
        for across, up, side, level in PLACES:
            text = panel.annotate(
                point["name"],
                (point[key], point["quality"]),
                (far * across, far * up),
                textcoords="offset points",
                ha=side,
                va=level,
                fontsize=9,
                color=_colour(point),
                fontweight="bold" if point["name"] == "ours" else "normal",
                arrowprops={"arrowstyle": "-", "color": "#c3c7cc"} if abs(up) > 10 else None,
            )
            box = text.get_window_extent(renderer).expanded(1.02, 1.1)
            hidden = sum(box.contains(*spot) for spot in spots) + sum(box.overlaps(other) for other in taken)
            outside = not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))
            astray = min(_gap(box, spot) for spot in spots) < _gap(box, spots[points.index(point)])
            tried.append((2 * hidden + 4 * outside + astray, len(tried), text, box))
            if not tried[-1][0]:
                break
        best = min(tried, key=lambda one: one[:2])
        for _, _, text, _ in tried:
            if text is not best[2]:
                text.remove()
        taken.append(best[3])


def _gap(box: Any, spot: Any) -> float:
    """The distance of a point from a box, 0 inside it."""
    across = max(box.x0 - spot[0], 0, spot[0] - box.x1)
    return float(math.hypot(across, max(box.y0 - spot[1], 0, spot[1] - box.y1)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/quality_chart.py FOLDER")
    main(Path(sys.argv[1]))
