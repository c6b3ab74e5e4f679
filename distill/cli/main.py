"""The commands. Each imports what it needs when it runs, so `--help` is instant and needs nothing.

People read stderr; the last line of stdout is one JSON document. Exit 0: done; 1: a gate refused;
2: bad recipe, data or usage, told in one line.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from distill.cli.bundle import UsageError, add_bundle_commands, predict

# The extra that brings a package; every other one comes with `train`.
EXTRAS = {
    **dict.fromkeys(("onnx", "optimum"), "onnx"),
    **dict.fromkeys(("uvicorn", "uvloop", "httptools", "orjson", "prometheus_client"), "serve"),
    "onnxruntime_extensions": "text-in-graph",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options, rest = _parser().parse_known_args(argv)
    parser = vars(options).pop("parser")
    if options.command is predict and rest[:1] == ["--"]:
        options.text += rest[1:]
    elif options.command is predict and not any(word.startswith("-") for word in rest):
        options.text += rest  # argparse leaves texts behind an option over
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command: Callable[[argparse.Namespace], Any] = options.command
    try:
        result = command(options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package, "train")
        _complain(f"{package} is not installed (pip install 'tinyheads[{extra}]')")
        return 2
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _complain("stopped (the same command goes on from the last checkpoint)")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _complain(f"{error.filename or 'disk'}: is full (free space and run again; nothing is lost)")
        elif "No space left on device" in str(error):  # as safetensors and pyarrow say it
            _complain(f"disk is full: {error} (free space and run again; nothing is lost)")
        elif code := getattr(error, "exit_code", None):  # as every error of ours that a user can act on has
            _complain(str(error))
            return int(code)
        elif isinstance(error, OSError) and error.strerror:
            _complain(f"{error.filename or 'file'}: {error.strerror} (check the path and its permissions)")
        else:
            raise
        return 2
    if result is not None:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    return 0


def _init(options: argparse.Namespace) -> dict[str, Any]:
    from distill.data.propose import propose

    target = Path(options.out)
    if target.exists() and not options.force:
        raise UsageError(f"{target}: exists (give --force to overwrite it, or another --out)")
    if not target.resolve().parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent} (make it first)")
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
        figures = prepare(recipe, folder, Path(scratch) / "data_report.json")
    return {"recipe": recipe.name, "digest": recipe.digest(), **figures}


def _run(options: argparse.Namespace) -> dict[str, Any] | None:
    from distill.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    if options.allow:  # beside those that the recipe allows
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


def _complain(message: str) -> None:
    for line in message.splitlines():
        print(f"distill: {line}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """One that tells what is wrong in one line, with the nearest word it knows."""

    def error(self, message: str) -> NoReturn:
        problem = message.partition(" (choose from")[0]
        known: list[str] = []
        for action in self._actions:
            known += [*action.option_strings, *map(str, action.choices or ())]
        wrong = [word.strip("'") for word in problem.split() if "-" in word or "'" in word]
        near = [found for word in wrong if word.rstrip(":") not in known
                for found in get_close_matches(word, known, 1)]  # fmt: skip
        hint = f"did you mean {near[0]}? " if near else ""
        _complain(f"{problem} ({hint}see {self.prog} --help)")
        raise SystemExit(2)


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"tinyheads {version('tinyheads')}")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="distill", description="Distil labelled text into a tiny ONNX classifier of many heads."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], Any], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command, parser=sub)
        return sub

    init = add("init", _init, "propose a recipe from a data file")
    init.add_argument("data", help="csv, tsv, jsonl, parquet, or a folder")
    init.add_argument("--out", default="recipe.yaml", help="recipe to write (recipe.yaml)")
    init.add_argument("--teacher", help="encoder: a hub id, a folder, or package:NAME")
    init.add_argument("--force", action="store_true", help="overwrite an existing recipe")

    for name, command, about in (
        ("check", _check, "check a recipe and its data without training"),
        ("pretrain", _pretrain, "teach a general start for students on plain text"),
        ("run", _run, "run a recipe: data in, bundle out"),
    ):
        sub = add(name, command, about)
        sub.add_argument("recipe", help="a YAML file")
        sub.add_argument("--data-root", metavar="DIR", help="folder that data paths are relative to")
        sub.add_argument("--set", action="append", default=[], metavar="K=V", help="override a setting")
        if command is not _check:
            sub.add_argument("--out", metavar="DIR", help="folder of the run (runs/NAME; starts/NAME)")
    sub.add_argument("--from", dest="first", metavar="STAGE", help="do this stage and the rest anew")
    sub.add_argument("--to", dest="last", metavar="STAGE", help="stop after this stage")
    sub.add_argument("--allow", action="append", metavar="HEAD", help="ship int8 though it fails a gate")

    report = add("report", _report, "write report.json and report.html of a run anew")
    report.add_argument("run", help="folder of a run")

    add_bundle_commands(add)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
