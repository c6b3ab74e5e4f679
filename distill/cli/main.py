"""The command `distill`. Every subcommand imports what it needs when it runs, so `--help` is fast.

Messages go to stderr, the result to stdout: text, or one JSON document with `--json`. The exit code is 0 on
success, 1 if a gate fails, 2 for an invalid recipe, data or arguments, 70 for an error in the program itself,
and 130 if the user interrupts.
"""

from __future__ import annotations

import argparse
import json
import logging
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from distill.cli.arguments import add_recipe
from distill.cli.ask import add_ask_command
from distill.cli.bundle import Command, UsageError, add_bundle_commands, predict
from distill.cli.compare import add_compare_commands
from distill.cli.heads import add_head_commands
from distill.cli.push import add_push_command
from distill.cli.terminal import Result, flush, logging_to_stderr, prepare_streams, print_error, print_result

# the extras with packages that `train` does not install
EXTRAS = {
    **dict.fromkeys(("uvicorn", "uvloop", "httptools", "orjson", "prometheus_client"), "serve"),
    **dict.fromkeys(("starlette", "anyio"), "serve"),
    "openpyxl": "excel",
    "optuna": "sweep",
    "vl_convert": "charts",  # `evaluate --report` needs no more
}
LOG = logging.getLogger("tinyheads")
INTERNAL = 70  # EX_SOFTWARE of sysexits.h
OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory", "std::bad_alloc")
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
    prepare_streams()
    try:
        with logging_to_stderr(options.verbose - options.quiet):
            result = command(options)
        if result is not None:
            print_result(result, as_json=options.json)
        flush()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        print_error(f"{package} is not installed (pip install 'tinyheads[{EXTRAS.get(package, 'train')}]')")
        return 2
    except KeyboardInterrupt as error:
        print_error(str(error) or "interrupted")
        return int(getattr(error, "exit_code", 130))
    except Exception as error:
        problem, code = _explain(error)
        print_error(problem)
        if code == INTERNAL and options.verbose:
            traceback.print_exception(error)
        return code
    return 0


def _explain(error: Exception) -> tuple[str, int]:
    """The message of an error, and the exit code."""
    code = getattr(error, "exit_code", None)
    if "No space left on device" in str(error) and code is None:  # also of safetensors and pyarrow
        return f"the disk is full: {error} (free space, then run the same command to continue)", 2
    first = str(error).partition("\n")[0][:200]
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
        todo = "free memory or set a smaller batch_size, then run the same command to continue"
        return f"out of memory: {first or 'the system has no more'} ({todo})", 2
    if code is None and isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror} (check the path and its permissions)", 2
    if code is None:
        return f"internal error: {type(error).__name__}: {first} (-v shows where; please report it)", INTERNAL
    return str(error), int(code)


def _init(options: argparse.Namespace) -> Result:
    target, source = Path(options.out), Path(options.data)
    if options.out == "-":
        raise UsageError("--out: - is no file (leave --out out; the recipe is also printed)")
    if target.exists() and not options.force:
        raise UsageError(f"{target}: already exists (use --force to overwrite it, or another --out)")
    if not target.resolve().parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent} (create it)")
    if source.exists() and not source.is_file() and not source.is_dir():
        raise UsageError(f"{source}: is not a regular file, expected a file or a folder (write it to a file)")
    from distill.data.propose import propose

    text = propose(source, root=target.resolve().parent, teacher=options.teacher)
    target.write_text(text, encoding="utf-8")
    LOG.info(f"{target}: written (read it, then: distill check {target})")
    return Result(text.rstrip(), {"recipe": str(target)})


def _check(options: argparse.Namespace) -> Result:
    from distill.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    from distill.plan import plan, table

    result = plan(recipe, measure=options.measure)
    next_step = f"{options.recipe}: valid (next: distill run {options.recipe})"
    return Result(f"{table(result)}\n\n{next_step}", result)


def _run(options: argparse.Namespace) -> Result | None:
    from distill.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=options.set)
    if options.allow:  # in addition to those that the recipe allows
        allow = f"gates.allow={json.dumps([*recipe.gates.allow, *options.allow])}"
        recipe = load_recipe(options.recipe, data_root=options.data_root, overrides=[*options.set, allow])
    from distill.pipeline import run
    from distill.reports.report import summary

    result = run(recipe, options.out, first=options.first, last=options.last)
    if not result.report:  # another process of this run has it
        return None
    if options.last:
        metrics = json.dumps(result.report["metrics"], ensure_ascii=False, indent=1)
        return Result(f"{options.last}: {metrics}", result.report)
    report = result.folder / "report.html"
    return Result(f"{summary(result.report)}\n\n{result.bundle}  {report}", result.report)


def _pretrain(options: argparse.Namespace) -> Result | None:
    from distill.recipe.load import load_pretraining

    recipe = load_pretraining(options.recipe, data_root=options.data_root, overrides=options.set)
    from distill.pipeline import run_pretraining

    result = run_pretraining(recipe, Path(options.out or f"starts/{recipe.name}"))
    if not result:  # another process of this run has it
        return None
    cosine = result["metrics"]["validation"]["mean"]
    return Result(f"{result['start']}  cosine to the teacher on held-out texts {cosine:.4f}", result)


def _report(options: argparse.Namespace) -> Result:
    from distill.reports.report import summary, write_report
    from distill.storage import locked

    folder = Path(options.run)
    with locked(folder):
        report = write_report(folder)
    return Result(f"{summary(report)}\n\n{folder / 'report.html'}", report)


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
        print_error(f"{problem} ({hint}see {self.prog} --help)")
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
        sub.set_defaults(command=command, parser=sub, json=False)
        if name not in ("predict", "serve"):  # which print JSON in any case
            sub.add_argument("--json", action="store_true", help="print the result as one JSON document")
        sub.add_argument(
            "-q", "--quiet", action="count", default=0, help="print the result, warnings and errors only"
        )
        sub.add_argument("-v", "--verbose", action="count", default=0, help="print what libraries log, too")
        return sub

    init = add("init", _init, "propose a recipe for a data file", "train.csv --out recipe.yaml")
    init.add_argument("data", help="csv, tsv, jsonl, json, xlsx or parquet file, or a folder")
    init.add_argument("--out", metavar="FILE", default="recipe.yaml", help="recipe to write (recipe.yaml)")
    init.add_argument("--teacher", metavar="ENCODER", help="hub id, folder, or package:NAME")
    init.add_argument("--force", action="store_true", help="overwrite an existing recipe")

    about = "check a recipe and its data, and plan its run: settings, steps, minutes, memory"
    check = add("check", _check, about, "recipe.yaml")
    check.add_argument(
        "--no-measure", dest="measure", action="store_false", help="estimate neither minutes nor memory"
    )
    example = "recipes/minilm-tiny.yaml --data-root texts"
    pretrain = add("pretrain", _pretrain, "pretrain a student on unlabelled text", example)
    example = "recipe.yaml --out runs/demo --set student.epochs=5"
    run = add("run", _run, "run a recipe: data in, bundle out", example)
    for sub in (check, pretrain, run):
        add_recipe(sub)
    pretrain.add_argument("--out", metavar="DIR", help="folder of the run (starts/NAME)")
    run.add_argument("--out", metavar="DIR", help="folder of the run (runs/NAME)")
    again = f"run this stage and all later ones again: {STAGES}"
    run.add_argument("--from", dest="first", metavar="STAGE", help=again)
    run.add_argument("--to", dest="last", metavar="STAGE", help=f"stop after this stage: {STAGES}")
    run.add_argument("--allow", action="append", metavar="HEAD", help="publish int8 though this head fails")

    report = add("report", _report, "write report.json and report.html of a run", "runs/demo")
    report.add_argument("run", help="folder of a run")

    add_head_commands(add)
    add_compare_commands(add)
    add_bundle_commands(add)
    add_ask_command(add)
    add_push_command(add)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
