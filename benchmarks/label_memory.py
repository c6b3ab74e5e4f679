"""Peak memory of labelling 20,000 and 200,000 texts, each in a process of its own.

    python benchmarks/label_memory.py FOLDER

The demo's messages, a teacher of one layer trained for one epoch, and as many augmented copies as make
the transfer set so large. Prints a line of JSON a size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TEACHER = ["--set", "teacher.layers=1", "--set", "teacher.epochs=1"]
COPIES = (3, 60)


def main(folder: Path) -> None:
    """Train the teacher once, then label with each number of copies."""
    _distill(folder, "--to", "fit_teacher")
    for copies in COPIES:
        stage = _distill(folder, "--set", f"augment.copies={copies}", "--to", "label")
        record = json.loads((folder / "stages" / "label" / "stage.json").read_text(encoding="utf-8"))
        print(
            json.dumps(
                {
                    "transfer_texts": stage["figures"]["transfer_texts"],
                    "seconds": record["seconds"],
                    "peak_rss_mb": round(record["peak_rss_bytes"] / 1e6),
                }
            )
        )


def _distill(folder: Path, *arguments: str) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "distill.cli.main", "run", "recipes/demo.yaml", "--out", str(folder)]
    done = subprocess.run([*command, *TEACHER, *arguments], check=True, stdout=subprocess.PIPE)
    found: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/label_memory.py FOLDER")
    main(Path(sys.argv[1]))
