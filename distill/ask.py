"""What asking a recipe's language model would take, and the asking itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.data.dataset import load_heads, load_split
from distill.data.prepare import prepare
from distill.heads import Head
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Recipe
from distill.run import progress
from distill.stages.fit_teacher import ASKED
from distill.teaching.language_model import language_model
from distill.teaching.named import with_own_labels


def ask(recipe: Recipe, *, dry_run: bool = False, dropped: bool = False) -> dict[str, Any]:
    """Ask the language model about the texts of a recipe's data; its answers are kept for runs.

    Returns a JSON object: the estimate, or what came of the asking.

    Args:
        recipe: With `teacher.llm`.
        dry_run: Estimate, and send nothing.
        dropped: Ask again what was given up earlier.

    Raises:
        RecipeError, DataError: The recipe names no language model, or its data cannot be used.
        LlmError: The server cannot be asked, or no more.
    """
    recipe = with_own_labels(recipe)
    if recipe.teacher.llm is None:
        raise RecipeError("teacher.llm: is missing, expected a language model (set base_url and model)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(recipe, folder, folder / "data_report.json")
        heads, texts = load_heads(folder), _texts(folder)
        if dry_run:
            return estimate(recipe, heads, folder)
    model = language_model(recipe, heads)
    assert model is not None
    with progress(len({*texts}), "ask", "text") as bar:
        model.counts.add(model.llm.ask(texts, bar.update, dropped=dropped))
    return {"summary": model.summary(), **model.about()}


def estimate(recipe: Recipe, heads: Sequence[Head], prepared: Path) -> dict[str, Any]:
    """What asking would take, a JSON object; empty for a recipe without a language model.

    Args:
        recipe: Of the run.
        heads: Of its data.
        prepared: The folder of the stage `prepare`.

    Raises:
        LlmError: The cache of answers cannot be opened.
    """
    model = language_model(recipe, heads)
    return asdict(model.llm.estimate(_texts(prepared))) if model else {}


def _texts(prepared: Path) -> list[str]:
    return [text for split in ASKED for text in load_split(prepared, split)["text"]]


def estimate_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """An estimate as the rows of a table: what, and how much."""
    route = found["route"] + (", assumed: the server was not asked yet" if found["assumed"] else "")
    cost = found["cost"]
    return [
        ["language model", ""],
        ["texts to ask about", f"{found['texts']:,}"],
        ["of them answered before", f"{found['cached']:,}"],
        [f"requests ({route})", f"{found['requests']:,}"],
        ["tokens read (characters / 4)", f"{found['input_tokens']:,.0f}"],
        ["tokens written", f"{found['output_tokens']:,.0f}"],
        ["cost at the recipe's prices", f"{cost:,.2f}" if cost >= 1 else f"{cost:.2g}"],
    ]
