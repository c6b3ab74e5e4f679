"""The report of a run, report.json and report.html, from the records of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.recipe.load import load_yaml
from distill.reports.about_run import DAMAGED, about_run, kept_lines
from distill.reports.model_card import format_metric, labelled_texts
from distill.reports.run_page import SPLITS, run_page, source_rows
from distill.reports.text import abstention, one_line
from distill.run import StageRecord, is_current, read_record
from distill.storage import write_json, written_whole


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
        current = {name: stage for name, stage in stages.items() if is_current(stage, stages)}
        # in their order, also in a copy of the folder whose times are others
        stages = dict(sorted(current.items(), key=lambda pair: len(pair[1]["inputs"]["after"])))
        if not {"prepare", "fit_student", "export", "check"} <= stages.keys():
            raise ReportError(f"{folder}: holds no finished run (distill run RECIPE --out {folder})")
        recipe = load_yaml((folder / "recipe.yaml").read_text("utf-8", "replace"), "recipe.yaml")
        report = _report(recipe, stages) | about_run(folder, recipe, stages)
        try:
            page = run_page(report)
        except DAMAGED:  # an analysis of another version says less than its figures are worth
            report["analysis"] = None
            page = run_page(report)
    except DAMAGED as error:
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
        "kept": metrics["check"].get("kept", {}),
        "allowed": metrics["check"]["allowed"],
        "noise": metrics["check"]["noise"],
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
    if sources := metrics["prepare"].get("sources"):
        report["sources"] = sources
    if published := metrics.get("bundle"):
        report |= {"latency_ms": published["latency_ms"], "throughput": published["throughput"]}
        report["throughput_threads"] = published["threads"]
    return report


def summary(report: Mapping[str, Any]) -> str:
    """A table of the first metric of each head, for a terminal, with the texts that it stands on.

    Another one has the texts of each source, where the recipe lists several.
    """
    forms = ("teacher", "student", "fp32", "int8")
    rows: list[tuple[str, ...]] = [("head", "metric", "texts", *forms)]
    for name, head in report["heads"].items():
        metric, texts = next(iter(head["test"]["student"])), labelled_texts(head)
        values = [head["test"].get(form, {}).get(metric) for form in forms]
        if not head["labelled"] and head["agreement"] is not None:
            metric, texts, values = "agreement", f"{head['texts']:,}", [None, head["agreement"], None, None]
        rows.append((one_line(name), one_line(metric), texts, *map(format_metric, values)))
    tables = [rows]
    if sources := report.get("sources"):
        tables.append([("source", "head", *SPLITS)])
        for name, head, counts in source_rows(sources):
            tables[-1].append((one_line(name), one_line(head), *(f"{counts[split]:,}" for split in SPLITS)))
    heads = ((report.get("analysis") or {}).get("heads") or {}).items()
    abstaining = [
        f"{one_line(name)}: {line}" for name, head in heads for line in abstention(head.get("abstention"))
    ]
    return "\n".join(["\n\n".join(map(_aligned, tables)), *kept_lines(report), *abstaining])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
