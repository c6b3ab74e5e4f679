"""Options of `distill serve`, their defaults and their valid ranges; why a server cannot start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

try:
    VERSION = version("tinyheads")
except PackageNotFoundError:  # a source checkout that is not installed
    VERSION = "unknown"


class ServingError(Exception):
    """The server cannot start.

    Attributes:
        exit_code: exit status of the command line.
    """

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class Settings:
    """Options of a server.

    Attributes:
        bundles: bundle folders. Each is served under the name in its manifest.
        host: address to bind.
        port: port to bind. 0 picks a free port.
        variant: `int8` or `fp32`. None uses the default variant of each bundle.
        threads: batches computed in parallel within one call of a classifier.
        max_batch: maximum number of texts in one call of a classifier.
        max_wait_ms: milliseconds an idle classifier waits for a batch to fill.
        queue: maximum number of queued texts per bundle. Further requests get status 503.
        timeout_s: seconds from the start of a request to its response.
        max_body: maximum size of a request body in bytes.
        max_text: maximum length of a text in characters.
        max_connections: maximum number of open connections. Further ones get status 503.
        allowed_hosts: values of the `Host` header that are allowed, without the port. `*.example.com` allows
            every subdomain. Empty allows any.
        drain_s: seconds a stopping server keeps responding to new requests, with status 503.
        watch_s: seconds between checks for changed bundles. 0 disables the checks.
        log_texts: whether the log contains the texts of each request.

    Raises:
        ServingError: a value is out of range.
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
    max_connections: int = 1_024
    allowed_hosts: tuple[str, ...] = ()
    drain_s: float = 1.0
    watch_s: float = 1.0
    log_texts: bool = False

    def __post_init__(self) -> None:
        _check_range("bundles", len(self.bundles), 1, None)
        _check_range("port", self.port, 0, 65_535)
        for name in ("threads", "max_batch", "queue", "max_body", "max_text", "max_connections"):
            _check_range(name, getattr(self, name), 1, None)
        for name in ("max_wait_ms", "drain_s", "watch_s"):
            _check_range(name, getattr(self, name), 0, 3_600_000)
        for host in self.allowed_hosts:
            if not re.fullmatch(r"(\*\.)?[\w.-]+|\[[\da-fA-F:.]+\]", host):
                problem = "must be host names without scheme and port, such as localhost or *.example.com"
                raise ServingError(f"--allowed-hosts: {problem}, got {host!r}")
        if not 0 < self.timeout_s <= 3_600:
            raise ServingError(f"--timeout-s: must be above 0 and at most 3600, got {self.timeout_s}")


def _check_range(name: str, value: float, low: int, high: int | None) -> None:
    if not (value >= low and (high is None or value <= high)):
        bounds = f">= {low}" if high is None else f"from {low} to {high}"
        raise ServingError(f"--{name.replace('_', '-')}: must be {bounds}, got {value}")
