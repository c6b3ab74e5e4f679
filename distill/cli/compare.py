"""The commands that run a recipe many times: sweep."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from distill.cli.bundle import Add, UsageError
from distill.cli.terminal import Result


def sweep(options: argparse.Namespace) -> Result:
    """Compare settings of a recipe on validation."""
    from distill.compare.sweep.grid import argument, parse_grid, settings
    from distill.recipe.load import load_recipe

    for name, number in (("--trials", options.trials), ("--jobs", options.jobs)):
        if number is not None and number < 1:
            raise UsageError(f"{name}: {number} is too small, expected at least 1")
    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    grid = parse_grid(options.grid)
    if both := grid.keys() & {word.partition("=")[0] for word in options.set}:
        raise UsageError(f"{min(both)}: is in --grid and in --set (leave one of them out)")
    every = settings(recipe, grid, options.seeds)
    from distill.compare.sweep.page import sweep_text, write_sweep_page
    from distill.compare.sweep.run import Sweep, best_folder, run_sweep

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
    last = f"the best setting, to its bundle: {shlex.join(command)}"
    text = f"{sweep_text(result)}\n\n{page}\n{last}"
    return Result(text, {**result, "command": command})


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
