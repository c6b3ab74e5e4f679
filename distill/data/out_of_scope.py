"""Texts of no class: they tune and test when heads abstain, and no training reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distill.data.labels import InvalidCell, joined_text
from distill.data.prepare import check_invalid
from distill.data.rows import LOG, RowIssues
from distill.data.sources import DataError, fingerprint, open_source
from distill.recipe.data_section import Data
from distill.recipe.data_sources import Hub


def contents(data: Data) -> dict[str, str]:
    """Values that change with the content of `data.oos`, by split."""
    return {split: fingerprint(source, Path(data.root)) for split, source in _sources(data).items()}


def texts(data: Data, known: Iterable[str] = ()) -> dict[str, list[str]]:
    """The texts of no class of `data.oos` by split, each once.

    A text that has a class, or that is in another split of `data.oos`, is left out, and so are invalid rows.

    Args:
        data: The section of the recipe.
        known: Texts that have a class, and those of training.

    Raises:
        DataError: A source cannot be read, too many of its rows are invalid, or it has no text that is left.
    """
    found: dict[str, dict[str, None]] = {}
    for split, source in _sources(data).items():
        opened = open_source(
            source, Path(data.root), text=data.text_columns, role=split, encoding=data.encoding
        )
        kept, dropped, total = found.setdefault(split, {}), RowIssues(), 0
        for row in opened.rows(data.text_columns):
            total += 1
            try:
                kept[joined_text(row.cells)] = None
            except InvalidCell as error:
                dropped.add(error.kind, row.file, row.place, error.excerpt)
        check_invalid(f"{opened.name}: oos.{split}", dropped.counts(), total, data, source)
        dropped.log("dropped")
    taken = {text for text in known if any(text in kept for kept in found.values())}
    left: dict[str, list[str]] = {}
    for split, kept in found.items():
        left[split] = [text for text in kept if text not in taken]
        if repeated := len(kept) - len(left[split]):
            LOG.info(f"data.oos.{split}: {repeated} texts are removed, as other splits have them")
        if not left[split]:
            raise DataError(f"data.oos.{split}: has no text that no other split has, expected some")
        taken |= kept.keys()
    return left


def _sources(data: Data) -> dict[str, str | Hub]:
    """The sources of `data.oos`, first that whose texts stay if both have them."""
    sources = {split: getattr(data.oos, split, None) for split in ("test", "validation")}
    return {split: source for split, source in sources.items() if source is not None}
