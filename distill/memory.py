"""The memory that this process has used, and what is available."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The peak resident memory of this process so far, 0 where the platform does not report it."""
    try:
        # on Linux, getrusage also counts what the parent held when it started this process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory(root: Path = Path("/")) -> int | None:
    """The available bytes, at most the limit of the control group; None where they are not known.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        [available] = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2, or 1
        try:
            available = min(available, int((root / "sys/fs/cgroup" / limit).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # there is none, or "max"
            continue
    return available
