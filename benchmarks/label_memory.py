"""Peak memory of the stage label for two sizes of the transfer set, each in its own process.

    python benchmarks/label_memory.py FOLDER

Uses the demo data, a teacher of one layer trained for one epoch, and 3 or 60 augmented texts per training
text. Prints one line of JSON per size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TEACHER = ["--set", "teacher.layers=1", "--set", "teacher.epochs=1"]
AUGMENTED = (3, 60)  # augmented texts per training text


def main(folder: Path) -> None:
    """Train the teacher once, then label with each number of augmented texts."""
    _distill(folder, "--to", "fit_teacher")
    for count in AUGMENTED:
        stage = _distill(folder, "--set", f"augment.copies={count}", "--to", "label")
        record = json.loads((folder / "stages" / "label" / "stage.json").read_text(encoding="utf-8"))
        print(
            json.dumps(
                {
                    "transfer_texts": stage["metrics"]["transfer_texts"],
                    "seconds": record["seconds"],
                    "peak_rss_mb": round(record["peak_rss_bytes"] / 1e6),
                }
            )
        )


def _distill(folder: Path, *arguments: str) -> dict[str, dict[str, int]]:
    command = [
        sys.executable,
        "-m",
        "distill.cli.main",
        "run",
        "recipes/demo.yaml",
        "--out",
        str(folder),
        "--json",
    ]
    done = subprocess.run([*command, *TEACHER, *arguments], check=True, stdout=subprocess.PIPE)
    result: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/label_memory.py FOLDER")
    main(Path(sys.argv[1]))
