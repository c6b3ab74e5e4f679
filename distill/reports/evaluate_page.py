"""The page of `distill evaluate`: a bundle on a labelled file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.reports import page
from distill.reports.heads import details_of_head, of_texts, quality_table, words
from distill.storage import resolve, written_whole


def write_evaluate_page(path: Path, name: str, data: str, result: Mapping[str, Any]) -> Path:
    """Write the page, complete or not at all; returns its path.

    Args:
        path: Of the page; its folder must be there.
        name: Of the bundle.
        data: Of the labelled source.
        result: As `evaluate_bundle` returns it.
    """
    content = evaluate_page(name, data, result)
    with written_whole(resolve(path)) as file:
        file.write_text(content, encoding="utf-8")
    return path


def evaluate_page(name: str, data: str, result: Mapping[str, Any]) -> str:
    """The page of a bundle's metrics on labelled texts; the arguments are those of `write_evaluate_page`."""
    form, rows = result["variant"], result["rows"]
    about = f"Variant {form}, on the {rows:,} texts of "
    intro = [page.paragraph(about, page.tag("code", page.short(data, 300)), ".", class_="lede")]
    tiles = []
    for head, metrics in result["heads"].items():
        metric = result["analysis"][head]["metric"]
        if metrics[metric] is not None:
            what = f"{page.short(head, 40)}: {words(metric)} on {of_texts(result['texts'][head], rows)} texts"
            tiles.append((f"{metrics[metric]:.4f}", what))
    intro.append(page.tiles(tiles[:6]))
    if warnings := [*_warnings(result)]:
        intro.append(page.notice("Data", warnings))
    sections = []
    for head, metrics in result["heads"].items():
        analysis, labelled = result["analysis"][head], result["texts"][head]
        parts = [page.paragraph(f"{of_texts(labelled, rows)} texts are labelled for this head.")]
        if labelled:
            where = f"the {labelled:,} labelled texts"
            parts.append(quality_table({form: metrics}, analysis["intervals"], where))
        parts.append(details_of_head(analysis, form, "texts"))
        sections.append((head, page.join(parts)))
    return page.page(name, intro, sections, kind="Evaluation")


def _warnings(result: Mapping[str, Any]) -> list[str]:
    lines = [f"Rows dropped: {count:,}, {kind}" for kind, count in result["dropped"].items()]
    for head, labels in result["unknown_labels"].items():
        shown = [f"{page.short(repr(label))} ({cells:,})" for label, cells in labels.items()]
        more = f" and {len(shown) - 8:,} more" if len(shown) > 8 else ""
        lines.append(f"Head {head!r}: labels that the bundle does not know: {', '.join(shown[:8])}{more}")
    return lines
