"""What `distill serve` may be told, its defaults, and what of it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("tinyheads")
except PackageNotFoundError:  # run from its source, not installed
    VERSION = "unknown"


class ServingError(Exception):
    """Why the server cannot start: where, what is wrong, what to do."""


@dataclass(frozen=True)
class Settings:
    """The options of a server; seconds, bytes and characters as the names say.

    Attributes:
        bundles: the folders to serve, each under its manifest's name.
        threads: batches of one call that are computed at once.
        max_batch: texts that one call of a classifier may take.
        max_wait_ms: how long an idle classifier waits for more texts than it has.
        queue: texts that may wait before each classifier; more are refused.
        timeout_s: how long a request may take, reading its body included.
        max_text: characters of one text.
        drain_s: how long a stopping server still answers new requests, with 503.
        watch_s: how often the folders are looked at for a new bundle; 0 is never.

    Raises:
        ServingError: a setting out of its range.
    """

    bundles: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    variant: str | None = None
    threads: int = 1
    max_batch: int = 64
    max_wait_ms: float = 0.0
    queue: int = 512
    timeout_s: float = 10.0
    max_body: int = 1_048_576
    max_text: int = 20_000
    drain_s: float = 1.0
    watch_s: float = 1.0
    log_texts: bool = False

    def __post_init__(self) -> None:
        _within("bundles", len(self.bundles), 1, None)
        _within("port", self.port, 0, 65_535)
        for name in ("threads", "max_batch", "queue", "max_body", "max_text"):
            _within(name, getattr(self, name), 1, None)
        for name in ("max_wait_ms", "drain_s", "watch_s"):
            _within(name, getattr(self, name), 0, 3_600_000)
        if not 0 < self.timeout_s <= 3_600:
            raise ServingError(f"--timeout-s: must be above 0 and at most 3600, got {self.timeout_s}")


def _within(name: str, value: float, low: int, high: int | None) -> None:
    if not (value >= low and (high is None or value <= high)):
        bounds = f">= {low}" if high is None else f"from {low} to {high}"
        raise ServingError(f"--{name.replace('_', '-')}: must be {bounds}, got {value}")
