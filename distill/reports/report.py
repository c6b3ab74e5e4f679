"""The report of a run, report.json and report.html, from the records of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.recipe.load import load_yaml
from distill.reports.model_card import format_metric, labelled_texts
from distill.reports.text import html, one_line
from distill.run import StageRecord, read_record
from distill.storage import write_json, written_whole

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24;
 max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0; color: #57606a }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 }
.tile { border: 1px solid #d0d7de; border-radius: 8px; padding: .7rem 1rem; min-width: 8rem }
.tile b { display: block; font-size: 1.35rem } .tile span { color: #57606a; font-size: .85rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #e6e9ec }
th { font-weight: 600; color: #57606a } th:first-child, td:first-child { text-align: left }
.bar { background: #eaeef2; border-radius: 3px; height: 9px; min-width: 6rem }
.bar i { display: block; height: 9px; border-radius: 3px; background: #2f6fdb }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 }
 p, th, .tile span { color: #9198a1 } .tile, th, td { border-color: #30363d } .bar { background: #21262d } }
"""


class ReportError(Exception):
    """A folder holds no finished run."""

    exit_code = 2


def write_report(folder: Path) -> dict[str, Any]:
    """Write report.json and report.html of a run; returns the content of report.json.

    A run whose bundle was refused has a report without latency and throughput.

    Raises:
        ReportError: The folder holds no finished run, or its records are damaged.
    """
    paths = sorted((folder / "stages").glob("*/stage.json"), key=lambda path: path.stat().st_mtime)
    stages: dict[str, StageRecord] = {}
    for path in paths:
        if (record := read_record(path)) is None:
            raise ReportError(f"{path}: is damaged (distill run RECIPE --out {folder})")
        stages[path.parent.name] = record
    try:
        # without those that were made from earlier results of others
        stages = {name: stage for name, stage in stages.items() if _is_current(stage, stages)}
        if not {"prepare", "fit_student", "export", "check"} <= stages.keys():
            raise ReportError(f"{folder}: holds no finished run (distill run RECIPE --out {folder})")
        recipe = load_yaml((folder / "recipe.yaml").read_text("utf-8", "replace"), "recipe.yaml")
        report = _report(recipe, stages)
        page = _page(html(report))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        problem = f"its records are damaged: {type(error).__name__} {one_line(error)}"
        raise ReportError(
            f"{folder}: {problem} (distill run RECIPE --out {folder} --from prepare)"
        ) from error
    write_json(folder / "report.json", report)
    with written_whole(folder / "report.html") as file:
        file.write_text(page, encoding="utf-8")
    return report


def _report(recipe: Mapping[str, Any], stages: Mapping[str, StageRecord]) -> dict[str, Any]:
    metrics = {name: stage["metrics"] for name, stage in stages.items()}
    report = {
        "name": recipe["name"],
        "seed": recipe["seed"],
        "rows": metrics["prepare"]["rows"],
        "labelled": metrics["prepare"]["labelled"],
        "refused": metrics["check"]["refused"],
        "heads": metrics["check"]["quality"],
        "parity": metrics["check"]["parity"],
        "artefact": {**metrics["export"], "parameters": metrics["fit_student"]["parameters"]},
        "stages": {
            name: {
                "seconds": stage["seconds"],
                "peak_rss_bytes": stage["peak_rss_bytes"],
                "device": stage["device"],
            }
            for name, stage in stages.items()
        },
    }
    if published := metrics.get("bundle"):
        report |= {"latency_ms": published["latency_ms"], "throughput": published["throughput"]}
        report["throughput_threads"] = published["threads"]
    return report


def _is_current(stage: StageRecord, stages: Mapping[str, StageRecord]) -> bool:
    after: dict[str, str] = stage["inputs"]["after"]
    return all(name in stages and stages[name]["results"] == results for name, results in after.items())


def summary(report: Mapping[str, Any]) -> str:
    """A table of the first metric of each head, for a terminal, with the texts that it stands on."""
    forms = ("teacher", "student", "fp32", "int8")
    rows: list[tuple[str, ...]] = [("head", "metric", "texts", *forms)]
    for name, head in report["heads"].items():
        metric, texts = next(iter(head["test"]["student"])), labelled_texts(head)
        values = [head["test"].get(form, {}).get(metric) for form in forms]
        if not head["labelled"] and head["agreement"] is not None:
            metric, texts, values = "agreement", f"{head['texts']:,}", [None, head["agreement"], None, None]
        rows.append((one_line(name), one_line(metric), texts, *map(format_metric, values)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _page(report: Mapping[str, Any]) -> str:
    """The page of a report whose text is escaped."""
    artefact, rows = report["artefact"], report["rows"]
    size = artefact.get("int8_bytes", artefact["fp32_bytes"])
    seconds = sum(stage["seconds"] for stage in report["stages"].values())
    tiles = [
        (f"{size / 1e6:.2f} MB", "model file"),
        (f"{artefact['parameters'] / 1e6:.2f} M", "parameters"),
        *_speed(report),
        (f"{seconds / 60:.1f} min", "duration of the run"),
    ]
    parity = [
        (name, _exponent(head["max_difference"]), str(head["other_labels"]))
        for name, head in report["parity"]["heads"].items()
    ]
    splits = ("train", "validation", "test")
    labelled = [
        (name, *(f"{counts[split]:,} of {rows[split]:,}" for split in splits))
        for name, counts in report["labelled"].items()
    ]
    stages = [
        (
            name,
            f"{stage['seconds']:.1f}",
            f'<div class="bar"><i style="width:{100 * stage["seconds"] / seconds:.1f}%"></i></div>',
            f"{stage['peak_rss_bytes'] / 1e9:.2f} GB",
            stage["device"],
        )
        for name, stage in report["stages"].items()
    ]
    parts = [
        f"<h1>{report['name']}</h1>",
        f"<p>{rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test and "
        f"{rows['unlabeled']:,} unlabelled texts; seed {report['seed']}. Metrics are on the labelled test "
        "texts.</p>",
        *(f"<p><b>Refused:</b> {line}</p>" for line in report["refused"]),
        '<div class="tiles">',
        *(f'<div class="tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles),
        "</div>",
        *(part for name, head in report["heads"].items() for part in _head(name, head)),
        "<h2>Parity of torch and ONNX fp32</h2>",
        _table(("head", "largest difference of a logit", "texts with another label"), parity),
        f"<p>On {report['parity']['texts']:,} test texts.</p>",
        "<h2>Labelled texts</h2>",
        _table(("head", *splits), labelled),
        "<h2>Stages</h2>",
        _table(("stage", "seconds", "share", "peak memory so far", "device"), stages),
    ]
    title = f"<title>{report['name']}</title><style>{STYLE}</style>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _speed(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The tiles of a published bundle's speed."""
    if latency := report.get("latency_ms"):
        yield f"{latency['p50']:.2f} ms", f"median latency of a text of {latency['tokens']} tokens"
        yield f"{report['throughput']:,.0f}", f"texts per second, threads: {report['throughput_threads']}"


def _exponent(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _head(name: str, head: Mapping[str, Any]) -> Iterable[str]:
    metrics = list(head["test"]["student"])
    yield f"<h2>{name}</h2><p>{head['kind']}, {head['labels']} labels, "
    yield f"{labelled_texts(head)} test texts are labelled. "
    if head["agreement"] is None:
        yield "The teacher does not know this head.</p>"
    else:
        yield f"The student agrees with the teacher on {head['agreement']:.1%} of all "
        yield f"{head['texts']:,} test texts"
        yield "" if head["retention"] is None else f"; retention {format_metric(head['retention'])}"
        yield ".</p>"
    values = ((form, *(format_metric(row[m]) for m in metrics)) for form, row in head["test"].items())
    if head["labelled"]:
        yield _table(("", *metrics), values)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
