"""The command `distill`. Every subcommand imports what it needs when it runs, so `--help` is fast.

Messages go to stderr. The last line of stdout is one JSON document. The exit code is 0 on success, 1 if a
gate fails, 2 for an invalid recipe, data or arguments, and 130 if the user interrupts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from distill.cli.bundle import Command, UsageError, add_bundle_commands, predict

# the extras with packages that `train` does not install
EXTRAS = {
    **dict.fromkeys(("onnx", "optimum"), "onnx"),
    **dict.fromkeys(("uvicorn", "uvloop", "httptools", "orjson", "prometheus_client"), "serve"),
    **dict.fromkeys(("starlette", "anyio"), "serve"),
    "onnxruntime_extensions": "text-in-graph",
}
# as in distill.pipeline, whose import needs torch
STAGES = "prepare, fit_teacher, label, fit_student, calibrate, export, check, bundle"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options, rest = _parser().parse_known_args(argv)
    parser = vars(options).pop("parser")
    if options.command is predict and rest[:1] == ["--"]:
        options.text += rest[1:]
    elif options.command is predict and not any(word.startswith("-") for word in rest):
        options.text += rest  # argparse does not assign texts that follow an option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command: Command = options.command
    try:
        result = command(options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        _print_error(f"{package} is not installed (pip install 'tinyheads[{EXTRAS.get(package, 'train')}]')")
        return 2
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _print_error("interrupted (run the same command again to continue from the last checkpoint)")
        return 130
    except Exception as error:
        problem, code = str(error), getattr(error, "exit_code", None)
        if "No space left on device" in problem:  # also in exceptions of safetensors and pyarrow
            problem = f"the disk is full: {error} (free space, then run the same command to continue)"
            code = 2
        elif code is None and isinstance(error, OSError) and error.strerror:
            problem = f"{error.filename or 'file'}: {error.strerror} (check the path and its permissions)"
            code = 2
        if code is None:
            raise
        _print_error(problem)
        return int(code)
    if result is not None:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    return 0


def _init(options: argparse.Namespace) -> dict[str, Any]:
    from distill.data.propose import propose

    target = Path(options.out)
    if target.exists() and not options.force:
        raise UsageError(f"{target}: already exists (use --force to overwrite it, or another --out)")
    if not target.resolve().parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent} (create it)")
    text = propose(Path(options.data), root=target.resolve().parent, teacher=options.teacher)
    target.write_text(text, encoding="utf-8")
    print(text, file=sys.stderr, end="")
    return {"recipe": str(target)}


def _check(options: argparse.Namespace) -> dict[str, Any]:
    import tempfile

    from distill.data.prepare import prepare
    from distill.models.checkpoints import encoder_identities
    from distill.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    encoder_identities(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "prepared"
        folder.mkdir()
        counts = prepare(recipe, folder, Path(scratch) / "data_report.json")
    return {"recipe": recipe.name, "digest": recipe.digest(), **counts}


def _run(options: argparse.Namespace) -> dict[str, Any] | None:
    from distill.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    if options.allow:  # in addition to those that the recipe allows
        allow = f"gates.allow={json.dumps([*recipe.gates.allow, *options.allow])}"
        recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=[*options.set, allow])
    from distill.pipeline import run

    return run(recipe, options.out, first=options.first, last=options.last).report or None


def _pretrain(options: argparse.Namespace) -> dict[str, Any] | None:
    from distill.recipe.load import load_pretraining

    recipe = load_pretraining(options.recipe, data_root=options.data_root, overrides=options.set)
    from distill.pipeline import run_pretraining

    return run_pretraining(recipe, Path(options.out or f"starts/{recipe.name}")) or None


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from distill.reports.report import write_report

    return write_report(Path(options.run))


def _print_error(message: str) -> None:
    for line in message.splitlines():
        print(f"distill: {line}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest known option or command."""

    def error(self, message: str) -> NoReturn:
        problem = message.partition(" (choose from")[0]
        known: list[str] = []
        for action in self._actions:
            known += [*action.option_strings, *map(str, action.choices or ())]
        words = [word.strip("'") for word in problem.split() if "-" in word or "'" in word]
        unknown = [word for word in words if word.rstrip(":") not in known]
        near = [match for word in unknown for match in get_close_matches(word, known, 1)]
        hint = f"did you mean {near[0]}? " if near else ""
        _print_error(f"{problem} ({hint}see {self.prog} --help)")
        raise SystemExit(2)


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"tinyheads {version('tinyheads')}")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="distill",
        description="Distil labelled text into a tiny ONNX classifier with several heads.",
        epilog="examples:\n  distill init train.csv\n  distill run recipe.yaml\n"
        '  distill predict runs/NAME/bundle "where is my parcel?"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Command, about: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"example:\n  distill {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command, parser=sub)
        return sub

    init = add("init", _init, "propose a recipe for a data file", "train.csv --out recipe.yaml")
    init.add_argument("data", help="csv, tsv, jsonl or parquet file, or a folder")
    init.add_argument("--out", metavar="FILE", default="recipe.yaml", help="recipe to write (recipe.yaml)")
    init.add_argument("--teacher", metavar="ENCODER", help="hub id, folder, or package:NAME")
    init.add_argument("--force", action="store_true", help="overwrite an existing recipe")

    check = add("check", _check, "check a recipe and its data without training", "recipe.yaml")
    example = "recipes/minilm-tiny.yaml --data-root texts"
    pretrain = add("pretrain", _pretrain, "pretrain a student on unlabelled text", example)
    example = "recipe.yaml --out runs/demo --set student.epochs=5"
    run = add("run", _run, "run a recipe: data in, bundle out", example)
    for sub in (check, pretrain, run):
        sub.add_argument("recipe", help="a YAML file")
        sub.add_argument("--data-root", metavar="DIR", help="folder of relative data paths (the recipe's)")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    pretrain.add_argument("--out", metavar="DIR", help="folder of the run (starts/NAME)")
    run.add_argument("--out", metavar="DIR", help="folder of the run (runs/NAME)")
    again = f"run this stage and all later ones again: {STAGES}"
    run.add_argument("--from", dest="first", metavar="STAGE", help=again)
    run.add_argument("--to", dest="last", metavar="STAGE", help=f"stop after this stage: {STAGES}")
    run.add_argument("--allow", action="append", metavar="HEAD", help="publish int8 though this head fails")

    report = add("report", _report, "write report.json and report.html of a run", "runs/demo")
    report.add_argument("run", help="folder of a run")

    add_bundle_commands(add)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
