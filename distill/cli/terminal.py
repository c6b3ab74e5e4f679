"""What a command prints: its result on stdout, messages and errors on stderr, always in UTF-8."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        text: For people.
        value: For programs, a JSON value; `--json` prints it.
    """

    text: str
    value: Any


class OutputError(Exception):
    """A result cannot be written to stdout."""

    exit_code = 2


def prepare_streams() -> None:
    """Write UTF-8 whatever the locale; what is no valid text is escaped instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def logging_to_stderr(verbosity: int) -> Iterator[None]:
    """Log to stderr in the block: only warnings below 0, messages at 0, what libraries log as well above."""
    ours, root, handler = logging.getLogger("tinyheads"), logging.getLogger(), logging.StreamHandler()
    before = ours.level, ours.propagate, root.level, logging.raiseExceptions
    logging.raiseExceptions = False  # a stderr that cannot be written stops no run
    logger = root if verbosity > 0 else ours
    logger.addHandler(handler)
    ours.setLevel(logging.WARNING if verbosity < 0 else logging.INFO)
    if verbosity > 0:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        root.setLevel(logging.DEBUG)
        for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):  # which have levels of their own
            os.environ.setdefault(name, "info")
    else:
        ours.propagate = False  # optimum gives the root logger a handler
    try:
        yield
    finally:
        logger.removeHandler(handler)
        ours.level, ours.propagate, root.level, logging.raiseExceptions = before


def print_result(result: Result, *, as_json: bool) -> None:
    """Print a result to stdout; errors as in `print_line`."""
    print_line(json.dumps(result.value, ensure_ascii=False) if as_json else result.text)


def print_line(line: str) -> None:
    """Print a line to stdout; a reader that has gone, such as `head`, ends the process in silence.

    Raises:
        OutputError: stdout cannot be written.
    """
    with _output_errors():
        print(line)


def flush() -> None:
    """Write what is still in the buffer of stdout; errors as in `print_line`."""
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Python would try to write the buffer again as it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(0) from None
        raise OutputError(
            f"stdout: cannot be written: {error.strerror} (files that the command wrote are complete)"
        ) from None


def print_error(message: str) -> None:
    """Print each line to stderr, without control characters; nothing happens if stderr cannot be written."""
    try:
        for line in message.rstrip("\n").split("\n"):
            shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
            print(f"distill: {shown}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
