"""Soft labels in files, as a recipe names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.data.labels import InvalidCell, joined_text, label_key
from distill.data.sources import DataError, Source, listed, open_source
from distill.heads import Head
from distill.recipe.near import near
from distill.recipe.schema import Recipe
from teachers.imported import ImportedHead, ImportedTeacher

ENDINGS = (".jsonl", ".json", ".parquet")


def imported(recipe: Recipe, heads: Sequence[Head]) -> ImportedTeacher | None:
    """The teacher of `teacher.soft_labels`, None without any.

    Raises:
        DataError: A file cannot be read, or has no column of a head.
        ImportedError: A cell is no soft label.
    """
    if (settings := recipe.teacher.soft_labels) is None:
        return None
    described = [ImportedHead(head.name, head.labels, head.kind == "single_label") for head in heads]
    rows = (row for file in settings.files for row in _rows(recipe, file, heads))
    return ImportedTeacher(settings.name, rows, described, settings.values, label_key)


def _rows(recipe: Recipe, file: str, heads: Sequence[Head]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The place, the text and the cells by head of each row of a file."""
    if not file.lower().endswith(ENDINGS):
        raise DataError(f"{file}: is no file of soft labels, expected .jsonl or .parquet (convert it)")
    source = open_source(file, Path(recipe.data.root), encoding=recipe.data.encoding)
    columns = ("text",) if source.has("text") else recipe.data.text_columns
    names = [head.name for head in heads if head.name in source.columns]
    if not names:
        raise DataError(f"{file}: no column is a head{_near(source, heads)}, {listed(source.columns)}")
    for row in source.rows([*columns, *names]):
        place, cells = f"{row.file}:{row.place}", row.cells[len(columns) :]
        try:
            text = joined_text(row.cells[: len(columns)])
        except InvalidCell as error:
            raise DataError(f"{place}: {error.kind}, expected a text (correct it)") from None
        yield place, text, dict(zip(names, cells, strict=True))


def _near(source: Source, heads: Sequence[Head]) -> str:
    hints = (near(head.name, source.columns) for head in heads)
    return next((hint for hint in hints if hint), "")
