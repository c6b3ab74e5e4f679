"""Runs the cases of a target in this process, and tells what is wrong with any of them."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from distill.recipe.data_section import RecipeError
from export import BundleError
from tests.fuzz.targets import Case, Target

SLICE = 60  # seconds of a worker
CPU_SECONDS = 10  # that a case may take
HANG_SECONDS = 60  # after which the worker ends
MEMORY = 4 << 30  # bytes of addresses that a worker may use beside those that it starts with
GROWTH = 500  # megabytes that a case may add to the memory
MEMORY_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # removing folders on a disk is slow
LONGEST = 5_000  # characters of a message
ROOT = str(Path(__file__).parents[2])


def load_case(folder: Path) -> Case:
    """The files of a folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def save_case(folder: Path, case: Case) -> None:
    """Write the files to a folder, which holds nothing else then."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in case.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def size(case: Case) -> int:
    """The bytes of all files."""
    return sum(map(len, case.values()))


def attempt(target: Target, case: Case, *, reraise: bool = False) -> str | None:
    """What is wrong with a case: a line, then the traceback. "refused" and None are right."""
    before, started = _megabytes(), time.process_time()
    result = None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "case")
        save_case(folder, case)
        try:
            target.use(folder)
        except target.allowed as error:
            result, text = "refused", str(error)
            own = isinstance(error, RecipeError)  # a message that repeats what the user wrote
            long = len(text) > LONGEST and not own
            if not text or long or (isinstance(error, BundleError) and len(text.splitlines()) > 1):
                result = f"message of {_place(error)}\n{len(text)} characters: {text[:300]!a}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of native code is no Exception
            if reraise:
                raise
            first = ascii(str(error))[:300]
            result = f"{_place(error)}\n{first}\n" + "".join(traceback.format_exception(error))[-6_000:]
    if (spent := time.process_time() - started) > CPU_SECONDS:
        result = f"slow\n{spent:.0f} s"
    if (grown := _megabytes() - before) > GROWTH:
        result = f"memory\n{grown} MB"
    return result


def work(target: Target, number: int, seconds: float, out: Path) -> None:
    """Try cases for a while; writes the findings, the case that runs, and the counts."""
    import export.runtime.session as session

    session.LOAD_SECONDS = 5
    session._memory = lambda: 2 << 30  # half of which a session may allocate
    tempfile.tempdir = MEMORY_DISK
    warm_up(target)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    counts = {"cases": 0, "accepted": 0}
    found: dict[str, int] = {}
    started = time.monotonic()

    def try_one(case: Case) -> None:
        if time.monotonic() > started + seconds:
            return
        save_case(out / "current", case)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        problem = attempt(target, case)
        faulthandler.cancel_dump_traceback_later()
        counts["cases"] += 1
        counts["accepted"] += problem is None
        if problem and problem != "refused":
            key = problem.partition("\n")[0]
            if key not in found or size(case) < found[key]:
                found[key] = size(case)
                place = out / f"finding-{[*found].index(key)}"
                save_case(place, case)
                place.with_suffix(".txt").write_text(problem)
        result = counts | {"seconds": time.monotonic() - started, "megabytes": _megabytes()}
        (out / "result.json").write_text(json.dumps(result))

    while time.monotonic() < started + seconds:
        run_cases(target, try_one, 200, number)
        number += 1_000_003


def run_cases(
    target: Target, function: Callable[[Case], None], count: int, number: int | None = None
) -> None:
    """Call a function with cases of a target; the same ones each time if there is no number."""
    test = given(target.cases)(function)
    if number is not None:
        test = seed(number)(test)
    settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=number is None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )(test)()


def warm_up(target: Target) -> None:
    """Import what a target needs, so that it does not count as memory of a case."""
    with suppress(Exception):
        run_cases(target, lambda case: attempt(target, case) and None, 5)


def _place(error: BaseException) -> str:
    """The class of an error and where it left the project."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(ROOT) and "/.venv/" not in f.filename]
    last = ours[-1] if ours else frames[-1]
    return f"{type(error).__name__} at {last.filename.removeprefix(ROOT + '/')}:{last.lineno} {last.name}"


def _megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
