"""Arguments that several commands have."""

from __future__ import annotations

import argparse


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add a recipe, where its data is, and settings that differ from it."""
    parser.add_argument("recipe", help="a YAML file")
    parser.add_argument("--data-root", metavar="DIR", help="folder of relative data paths (the recipe's)")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add settings that differ from the recipe."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
