"""How many cores this process may use, which in a container is fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """The cores of the process's affinity mask, or fewer if the quota of its control group allows fewer.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # missing on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, int(_quota(root))))


def _quota(root: Path) -> float:
    """The CPU time a second that the control groups above this process allow (cgroups, version 2 or 1)."""
    quota = float(2**31)
    groups = root / "sys/fs/cgroup"
    for entry in _words(root / "proc/self/cgroup", "\n"):
        number, controllers, path = [*entry.split(":", 2), "", ""][:3]
        version_2 = number == "0" and not controllers
        if not version_2 and "cpu" not in controllers.split(","):
            continue
        folder = groups / ("." if version_2 else controllers) / path.lstrip("/")
        # a container sees its own group as the root, whatever path the host gave it
        for group in (folder, *folder.parents, groups / "cpu"):
            if not group.is_relative_to(groups):
                continue
            limit = _words(group / "cpu.max") or [
                *_words(group / "cpu.cfs_quota_us"),
                *_words(group / "cpu.cfs_period_us"),
            ]
            if len(limit) == 2 and all(part.isdecimal() for part in limit) and int(limit[1]):
                quota = min(quota, int(limit[0]) / int(limit[1]))
    return quota


def _words(path: Path, separator: str | None = None) -> list[str]:
    """The words of a small file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").split(separator)
    except (OSError, UnicodeDecodeError):
        return []
