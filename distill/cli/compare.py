"""The commands that train many times on one recipe: compare, sweep."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from distill.cli.arguments import add_recipe
from distill.cli.bundle import Add, UsageError
from distill.cli.terminal import Result


def compare(options: argparse.Namespace) -> Result:
    """Train and measure candidates on the data of a recipe."""
    from distill.compare.candidates import DEFAULT, parse
    from distill.recipe.load import load_recipe

    for name in ("seeds", "jobs", "budget_ms", "budget_mb"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')}: must be > 0, got {value:g}")
    candidates = parse(options.candidates or DEFAULT)
    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    from distill.compare.compare import Comparison, compare
    from distill.compare.table import table_text

    out = Path(options.out or f"comparisons/{recipe.name}")
    comparison = Comparison(
        recipe,
        out.resolve(),
        candidates,
        seeds=range(recipe.seed, recipe.seed + options.seeds),
        jobs=options.jobs,
        budget_ms=options.budget_ms,
        budget_mb=options.budget_mb,
    )
    table = compare(comparison)
    if all(row["failed"] for row in table["rows"]):
        raise UsageError(f"{out}: every candidate failed: {table['rows'][0]['failed']}")
    return Result(f"{table_text(table)}\n\n{out / 'index.html'}", table)


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
    about = "train and measure candidates for the student in one table"
    sub = add("compare", compare, about, "recipe.yaml --candidates minilm-l6,distilled:tiny,tfidf")
    add_recipe(sub)
    sub.add_argument("--out", metavar="DIR", help="folder of the comparison (comparisons/NAME)")
    names = "names, hub ids, folders or package:NAME, separated by commas; distilled:NAME distils (14)"
    sub.add_argument("--candidates", type=lambda given: given.split(","), metavar="NAME,NAME", help=names)
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings of each candidate (1)")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="candidates to train at once (1)")
    about = "mark candidates whose median latency is at most this"
    sub.add_argument("--budget-ms", type=float, metavar="MS", help=about)
    about = "mark candidates whose served model file is at most this"
    sub.add_argument("--budget-mb", type=float, metavar="MB", help=about)

    example = "recipe.yaml --grid distillation.temperature=1,2,4 --seeds 2"
    parser = add("sweep", sweep, "compare settings of a recipe on validation", example)
    add_recipe(parser)
    about = "values of a setting, in YAML; give it once for each key"
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2", help=about)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of the student (1)")
    about = "settings to run, which optuna chooses (the whole grid)"
    parser.add_argument("--trials", type=int, metavar="N", help=about)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="settings to run at a time (1)")
    parser.add_argument("--out", metavar="DIR", help="folder of the sweep (sweeps/NAME)")
