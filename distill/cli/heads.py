"""The commands `add-head` and `retrain`."""

from __future__ import annotations

import argparse

from distill.cli.arguments import add_settings
from distill.cli.bundle import Add
from distill.cli.terminal import Result


def add_head(options: argparse.Namespace) -> Result | None:
    """Train a new head of a finished run."""
    return _train(options, new=True)


def retrain(options: argparse.Namespace) -> Result | None:
    """Train a head of a finished run again."""
    return _train(options, new=False)


def _train(options: argparse.Namespace, *, new: bool) -> Result | None:
    from distill import add_head as heads
    from distill.reports.report import summary

    train = heads.add_head if new else heads.retrain_head
    names = ("column", "kind", "text", "validation", "test")
    result = train(
        options.run,
        options.head,
        options.data,
        mode=options.mode,
        out=options.out,
        overrides=options.set,
        columns=options.columns and options.columns.split(","),
        **{name: getattr(options, name) for name in names},
    )
    if not result.report:  # another process of this run has it
        return None
    report = result.folder / "report.html"
    return Result(f"{summary(result.report)}\n\n{result.bundle}  {report}", result.report)


def add_head_commands(add: Add) -> None:
    """Add the commands to the parser; `add` is that of `main`."""
    for name, command, about in (
        ("add-head", add_head, "train a new head on the teacher and the student of a finished run"),
        ("retrain", retrain, "train a head of a finished run again, on other texts or labels"),
    ):
        sub = add(name, command, about, "runs/demo --head urgency --data urgency.csv")
        sub.add_argument("run", metavar="RUN", help="folder of a finished run, which is not changed")
        sub.add_argument("--head", required=True, metavar="NAME", help="name of the head")
        sub.add_argument("--data", required=True, metavar="FILE", help="labelled texts of the head")
        column = "column of the labels (the head's name, or as in the run)"
        sub.add_argument("--column", metavar="COLUMN", help=column)
        sub.add_argument("--columns", metavar="A,B", help="0/1 columns, one a label, of a multi_label head")
        kinds = ("single_label", "multi_label")
        sub.add_argument("--kind", choices=kinds, help="one label a text (the default), or any number")
        sub.add_argument("--text", metavar="COLUMN", help="column of the text (as in the run)")
        for split in ("validation", "test"):
            sub.add_argument(f"--{split}", metavar="FILE", help=f"texts of {split} (a tenth of the data)")
        mode = "frozen: train this head alone (the default); replay: the encoder and all heads"
        sub.add_argument("--mode", choices=("frozen", "replay"), default="frozen", help=mode)
        sub.add_argument("--out", metavar="DIR", help="folder of the new run (RUN-NAME)")
        add_settings(sub)
