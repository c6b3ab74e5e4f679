"""The command `ask`."""

from __future__ import annotations

import argparse

from distill.cli.arguments import add_recipe
from distill.cli.bundle import Add
from distill.cli.terminal import Result


def ask(options: argparse.Namespace) -> Result:
    """Ask the language model of a recipe, or estimate what that takes."""
    from distill.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    from distill.ask import ask, estimate_rows
    from distill.plan import aligned

    found = ask(recipe, dry_run=options.dry_run, dropped=options.dropped)
    return Result(aligned(estimate_rows(found)) if options.dry_run else found["summary"], found)


def add_ask_command(add: Add) -> None:
    """Add the command with `add(name, command, about, arguments of the example)`."""
    about = "ask the language model of a recipe about its texts; answers are kept for runs"
    parser = add("ask", ask, about, "recipe.yaml --dry-run")
    add_recipe(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print requests, tokens and cost; send nothing"
    )
    parser.add_argument("--dropped", action="store_true", help="ask again what was given up earlier")
