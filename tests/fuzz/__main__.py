"""Damages files for a while, and reports what is not refused as it should be.

    python -m tests.fuzz --seconds 3600
    python -m tests.fuzz --target csv --case findings/csv-1

Cases run in worker processes, a minute each, so a crash of native code is a finding like others. Each finding
is written to a folder, with its smallest case. The exit code is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.targets import Case, targets
from tests.fuzz.worker import MEMORY_DISK, SLICE, attempt, load_case, save_case, size, work

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Damage files and use them.")
parser.add_argument("--seconds", type=float, default=60, help="of all targets together")
parser.add_argument("--target", action="append", help="name of a target (all)")
parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first worker")
parser.add_argument("--out", type=Path, default=Path("findings"), help="folder of the findings")
parser.add_argument("--case", type=Path, help="try this case alone, in this process")
parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)


def main() -> int:
    options = parser.parse_args()
    known = {target.name: target for target in targets()}
    chosen = [known[name] for name in options.target or known]
    if options.case:
        print(attempt(chosen[0], load_case(options.case), reraise=True))
        return 0
    if options.worker:
        work(chosen[0], options.seed, float(options.worker[0]), Path(options.worker[1]))
        return 0
    totals = {target.name: {"cases": 0, "accepted": 0, "megabytes": 0, "seconds": 0.0} for target in chosen}
    findings: dict[str, Path] = {}
    end, share = time.monotonic() + options.seconds, min(SLICE, options.seconds / len(chosen))
    for number, target in enumerate(itertools.cycle(chosen), options.seed):
        if (left := end - time.monotonic()) <= 0:
            break
        with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as scratch:
            counts, found = run_worker(target.name, number, min(share, left), Path(scratch))
        total = totals[target.name]
        for what, count in counts.items():
            total[what] = max(total[what], count) if what == "megabytes" else total[what] + count
        for text, case in found:
            key = f"{target.name}: {text.splitlines()[0]}"
            if key not in findings:
                print(key, flush=True)
                findings[key] = options.out / f"{target.name}-{len(findings) + 1}"
            elif size(load_case(findings[key])) <= size(case):
                continue
            save_case(findings[key], case)
            findings[key].with_suffix(".txt").write_text(text)
        print(json.dumps({target.name: total}), flush=True)
    print(json.dumps({"findings": len(findings), "targets": totals}, indent=1))
    return 1 if findings else 0


def run_worker(
    name: str, number: int, seconds: float, folder: Path
) -> tuple[dict[str, Any], list[tuple[str, Case]]]:
    """The counts and the findings of a worker process, which writes to a folder."""
    command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--seed", str(number)]
    command += ["--worker", str(seconds), str(folder)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    found = [(p.read_text(), load_case(p.with_suffix(""))) for p in folder.glob("finding-*.txt")]
    if done.returncode:
        text = f"the worker ended with {done.returncode}\n{done.stderr[-5_000:]}"
        found.append((text, load_case(folder / "current")))
    result = folder / "result.json"
    return json.loads(result.read_text()) if result.exists() else {}, found


if __name__ == "__main__":
    raise SystemExit(main())
