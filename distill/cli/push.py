"""The command `push`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from distill.cli.bundle import Add, UsageError
from distill.cli.terminal import Result


def push(options: argparse.Namespace) -> Result:
    """Push a bundle, or what a run made, to the hub."""
    from export.runtime.hub import bundle_files, upload

    if options.quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the hub's client is imported
    folder = Path(options.folder)
    about = {"private": options.private, "revision": options.revision, "message": options.message}
    if (folder / "stages").is_dir():
        from distill.push import push_run

        url = push_run(folder, options.name, teacher=options.teacher, report=options.report, **about)
    elif options.teacher or options.report:
        option = "--teacher" if options.teacher else "--report"
        raise UsageError(f"{option}: {folder} is no run (give the folder of a run, or leave {option} out)")
    else:
        url = upload(bundle_files(folder), options.name, **about)
    return Result(url, {"url": url})


def add_push_command(add: Add) -> None:
    """Add the command with `add(name, command, about, arguments of the example)`."""
    about = "push a bundle or a run to the Hugging Face hub"
    parser = add("push", push, about, "runs/demo ORG/NAME --private")
    parser.add_argument("folder", help="folder of a bundle or of a run")
    parser.add_argument("name", metavar="ORG/NAME", help="repository, made if there is none")
    about = "refuse a public repository; a new one is private"
    parser.add_argument("--private", action="store_true", default=None, help=about)
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if there is none (main)")
    parser.add_argument("--message", metavar="TEXT", help="title of the commit (Push NAME)")
    parser.add_argument("--teacher", action="store_true", help="with a run: push the teacher's networks too")
    about = "with a run: push report.html too, which quotes texts of the data"
    parser.add_argument("--report", action="store_true", help=about)
