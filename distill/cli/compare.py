"""The commands that run a recipe many times: sweep."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from distill.cli.bundle import Add, UsageError
from distill.cli.terminal import Result


def sweep(options: argparse.Namespace) -> Result:
    """Compare settings of a recipe on validation."""
    from distill.compare.grid import argument, parse_grid, settings
    from distill.recipe.load import load_recipe

    for name, number in (("--trials", options.trials), ("--jobs", options.jobs)):
        if number is not None and number < 1:
            raise UsageError(f"{name}: {number} is too small, expected at least 1")
    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    grid = parse_grid(options.grid)
    if both := grid.keys() & {word.partition("=")[0] for word in options.set}:
        raise UsageError(f"{min(both)}: is in --grid and in --set (leave one of them out)")
    every = settings(recipe, grid, options.seeds)
    from distill.compare.sweep import Sweep, best_folder
    from distill.compare.sweep import sweep as run_sweep
    from distill.compare.sweep_page import sweep_text, write_sweep_page

    about = Sweep(
        recipe,
        every,
        Path(options.out or f"sweeps/{recipe.name}"),
        options.trials or len(every),
        options.jobs,
    )
    result = run_sweep(about)
    page = write_sweep_page(result, about.folder)
    best = result["rows"][result["best"]]
    words = [argument(key, value) for key, value in best["settings"].items()]
    command = ["distill", "run", options.recipe]
    command += ["--data-root", options.data_root] if options.data_root else []
    command += [word for setting in (*options.set, *words) for word in ("--set", setting)]
    command += ["--out", str(best_folder(about, result))]
    lines = [
        sweep_text(result),
        "",
        *_remarks(result),
        str(page),
        f"the best setting, to its bundle: {shlex.join(command)}",
    ]
    return Result("\n".join(lines), {**result, "command": command})


def _remarks(result: dict) -> list[str]:
    from distill.compare.grid import argument

    if len(result["seeds"]) == 1:
        return ["One seed: a small difference may be chance (--seeds 3 measures the spread)."]
    best = result["rows"][result["best"]]
    tied = [row for row in result["rows"] if row["tied"] and row is not best]
    names = [" ".join(argument(*item) for item in row["settings"].items()) for row in tied]
    return [f"Within the spread of the best: {name}" for name in names] or [
        "The best setting is better than every other by more than the spread over the seeds."
    ]


def add_compare_commands(add: Add) -> None:
    """Add the commands of this module with `add(name, command, about, arguments of the example)`."""
    example = "recipe.yaml --grid distillation.temperature=1,2,4 --seeds 2"
    parser = add("sweep", sweep, "compare settings of a recipe on validation", example)
    parser.add_argument("recipe", help="a YAML file")
    about = "values of a setting, in YAML; give it once for each key"
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2", help=about)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of the student (1)")
    about = "settings to run, which optuna chooses (the whole grid)"
    parser.add_argument("--trials", type=int, metavar="N", help=about)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="settings to run at a time (1)")
    parser.add_argument("--out", metavar="DIR", help="folder of the sweep (sweeps/NAME)")
    parser.add_argument("--data-root", metavar="DIR", help="folder of relative data paths (the recipe's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
