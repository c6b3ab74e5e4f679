"""Runs in processes of their own, so that one that crashes or runs out of memory ends alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO

from filelock import FileLock, Timeout

from distill.recipe.load import dump_yaml
from distill.recipe.schema import Recipe
from distill.run import LOG
from distill.storage import written_whole

POLL = 0.5  # seconds
REASON = 300  # characters


class Stopped(Exception):
    """A process was asked to stop, and did."""


class Processes:
    """Processes of the command `distill run`; they are stopped when the block ends."""

    def __init__(self) -> None:
        self._lock, self._stopping = Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stop()

    def run(self, recipe: Recipe, folder: Path, last: str, *, threads: int) -> str | None:
        """Run a recipe up to a stage; returns why it failed, or None.

        The recipe is written to FOLDER.yaml, the messages to FOLDER.log. Waits while another process works in
        the folder, such as one whose parent was killed.

        Args:
            recipe: What to run.
            folder: Of the run.
            last: The stage to stop after.
            threads: Of the process, unless OMP_NUM_THREADS is set.

        Raises:
            Stopped: `stop` was called.
        """
        self._wait_until(lambda: _is_free(folder), folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        file, log = (folder.with_name(f"{folder.name}.{kind}") for kind in ("yaml", "log"))
        with written_whole(file) as temporary:
            temporary.write_text(dump_yaml(recipe.model_dump(mode="json", by_alias=True)), encoding="utf-8")
        arguments = ["run", str(file), "--to", last, "--out", str(folder)]
        return self.module("distill.cli.main", arguments, log, threads=threads, folder=folder)

    def module(
        self, module: str, arguments: Sequence[str | Path], log: Path, *, threads: int, folder: Path
    ) -> str | None:
        """Run a module with its messages in a log; returns why it failed, or None.

        Args:
            module: By its full name.
            arguments: Of its command line.
            log: A file.
            threads: Of the process, unless OMP_NUM_THREADS is set.
            folder: The run that it works in.

        Raises:
            Stopped: `stop` was called.
        """
        self._wait_until(lambda: _is_free(folder), folder)
        with log.open("ab") as output:
            # the process holds the lock for as long as it lives, also without this one, as this is its stderr
            self._wait_until(lambda: _locked(output), folder)
            output.truncate(0)
            with self._lock:
                if self._stopping:
                    raise Stopped
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=output,
                    env={"OMP_NUM_THREADS": str(threads), **os.environ},
                    start_new_session=True,  # Ctrl-C is for the parent, which stops its processes once
                )
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        if self._stopping:
            raise Stopped
        return _reason(code, log) if code else None

    def stop(self) -> None:
        """Stop all processes; a training saves a checkpoint first. None starts any more."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.terminate()

    def _wait_until(self, free: Callable[[], bool], folder: Path) -> None:
        """Wait while another process works in the folder, such as one whose parent was killed."""
        if free():
            return
        LOG.info(f"{folder}: another process works in this folder; waiting until it ends")
        while not self._stopping:
            time.sleep(POLL)
            if free():
                return
        raise Stopped


def _is_free(folder: Path) -> bool:
    """Whether no process works in the folder of a run."""
    if not (folder / "stages").is_dir():
        return True
    try:
        with FileLock(folder / "stages" / ".lock").acquire(blocking=False):
            return True
    except Timeout:
        return False


def _locked(file: IO[bytes]) -> bool:
    """Lock an open file, with all processes that inherit it; False if others hold it."""
    if sys.platform == "win32":  # whose locks are not inherited
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _reason(code: int, log: Path) -> str:
    """Why a process ended: its last message, or the signal."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", probably as memory ran out" if code == -signal.SIGKILL else "")
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    messages = [line.removeprefix("distill: ") for line in lines if line.startswith("distill: ")]
    return (messages or lines or [f"exit code {code}"])[-1][:REASON]
