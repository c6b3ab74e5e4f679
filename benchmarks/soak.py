"""A server under twice the load it sustains, while its bundle is replaced and the server is restarted.

    python benchmarks/soak.py BUNDLE TEXTS.csv --minutes 10

First 64 connections send requests as fast as they get responses. Their rate is the sustained load. Then twice
that rate is sent, without waiting for responses. The bundle is replaced after a quarter of the time and the
server is restarted with SIGTERM after half of it. After three quarters the bundle is broken, restored, and
replaced. The benchmark prints the memory of the server twenty times, and at the end the number of requests by
outcome: the status; `down`, no server was listening; `unsent`, all connections were in use; `lost`, sent
without getting a response. It exits with 1 unless every response was 200 or 503, no request was lost, and
the server exited with 0 each time.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from subprocess import DEVNULL
from time import monotonic
from typing import cast

from serving_http import free_port
from uvloop import new_event_loop

from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import FP32, Manifest

Server = asyncio.subprocess.Process


class Link(asyncio.Protocol):
    """A connection with at most one request in flight."""

    def __init__(self, load: Load) -> None:
        self._load, self._got = load, b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        """Send a request."""
        self.busy, self._got = True, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Count a response when it is complete."""
        self._got += data
        head, separator, body = self._got.partition(b"\r\n\r\n")
        if separator and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]):
            self.busy = False
            self._load.on_response(self, head[9:12].decode(), b"connection: close" in head.lower())

    def connection_lost(self, error: Exception | None) -> None:
        """Count a request that will get no response."""
        self._load.on_close(self)


class Load:
    """Sends requests at a rate and counts their outcomes."""

    def __init__(self, port: int, texts: list[str], limit: int) -> None:
        bodies = [json.dumps({"text": text}).encode() for text in texts]
        head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s"
        self._requests: Iterator[bytes] = cycle([head % (len(body), body) for body in bodies])
        self._port, self._limit = port, limit
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._opening = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.repeat = False
        self.counts: Counter[str] = Counter()

    def send(self) -> None:
        """Send a request on an idle or a new connection, or count it as unsent if there are too many."""
        while self._idle:
            link = self._idle.pop()
            if not link.transport.is_closing():
                link.send(next(self._requests))
                return
        if len(self._links) + self._opening >= self._limit:
            self.counts["unsent"] += 1
            return
        self._opening += 1
        task = asyncio.ensure_future(self._open())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            _, link = await loop.create_connection(lambda: Link(self), "127.0.0.1", self._port)
        except OSError:
            self.counts["down"] += 1
        else:
            self._links.add(link)
            link.send(next(self._requests))
        finally:
            self._opening -= 1

    def on_response(self, link: Link, status: str, last: bool) -> None:
        """Count a response, and reuse or close its connection."""
        self.counts[status] += 1
        if last:
            link.transport.close()
        elif self.repeat:
            link.send(next(self._requests))
        else:
            self._idle.append(link)

    def on_close(self, link: Link) -> None:
        """Remove a closed connection."""
        self._links.discard(link)
        if link.busy:
            self.counts["lost"] += 1

    def in_flight(self) -> int:
        """Number of requests in flight."""
        return self._opening + sum(link.busy for link in self._links)

    async def run(self, rate: float, seconds: float) -> None:
        """Send `rate` requests per second without waiting for responses."""
        start, sent = monotonic(), 0
        while (now := monotonic() - start) < seconds:
            while sent < rate * now:
                self.send()
                sent += 1
            await asyncio.sleep(0.005)


async def start(bundle: Path, port: int, options: list[str]) -> Server:
    """Start a server and wait until it listens."""
    command = [sys.executable, "-m", "distill.cli.main", "serve", str(bundle), "--port", str(port), *options]
    server = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if server.returncode is not None:
                sys.exit(f"the server exited with {server.returncode}")
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return server


def replace_bundle(folder: Path, manifest: Manifest, note: str) -> None:
    """Write the same bundle with a new digest."""
    contents: dict[str, Path | bytes] = {name: (folder / name).read_bytes() for name in manifest.files}
    write_bundle(folder, replace(manifest, details={**manifest.details, "note": note}), contents)


def megabytes(server: Server) -> int:
    """Resident memory of the server."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


async def soak(options: argparse.Namespace, bundle: Path, texts: list[str]) -> bool:
    """Run the benchmark. True if it passed."""
    port, manifest = free_port(), read_bundle(bundle)
    good = (bundle / FP32).read_bytes()
    server = await start(bundle, port, options.serve.split())
    seconds = 60 * options.minutes
    sustained = options.load
    if not sustained:
        calm = Load(port, texts, 64)
        calm.repeat = True
        for _ in range(64):
            calm.send()
        await asyncio.sleep(options.measure)
        sustained = calm.counts["200"] / options.measure
        calm.repeat = False
        while calm.in_flight():
            await asyncio.sleep(0.01)
    print(
        f"sustains {sustained:.0f} requests/s; sending {2 * sustained:.0f} requests/s for {seconds:.0f} s",
        flush=True,
    )
    load = Load(port, texts, options.connections)
    started, statuses = monotonic(), []
    sending = asyncio.create_task(load.run(2 * sustained, seconds))
    for step in range(1, 21):
        await asyncio.sleep(max(0.0, started + step * seconds / 20 - monotonic()))
        print(f"{monotonic() - started:6.0f} s {megabytes(server):5d} MB {dict(load.counts)}", flush=True)
        if step in (5, 17):
            await asyncio.to_thread(replace_bundle, bundle, manifest, f"step {step}")
            print("         replaced", flush=True)
        elif step == 10:
            server.terminate()
            statuses.append(await server.wait())
            print(f"{monotonic() - started:6.0f} s exited with {statuses[-1]}", flush=True)
            server = await start(bundle, port, options.serve.split())
            print(f"{monotonic() - started:6.0f} s started", flush=True)
        elif step == 15:
            (bundle / FP32).write_bytes(b"broken")
            print("         broken", flush=True)
        elif step == 16:
            (bundle / FP32).write_bytes(good)
    await sending
    while load.in_flight():
        await asyncio.sleep(0.05)
    server.terminate()
    statuses.append(await server.wait())
    print(f"exit statuses {statuses}; {dict(load.counts)}")
    return not (load.counts.keys() - {"200", "503", "down", "unsent"}) and statuses == [0, 0]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path, help="CSV")
    parser.add_argument("--column", default="text")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--load", type=float, help="sustained requests per second; measured by default")
    parser.add_argument("--measure", type=float, default=10, help="seconds to measure the sustained load")
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--serve", default="", help="options for `distill serve`, as one argument")
    options = parser.parse_args()
    with options.texts.open(encoding="utf-8", newline="") as file:
        texts = [row[options.column] for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(shutil.copytree(options.bundle, Path(scratch, "bundle")))
        loop = new_event_loop()
        sys.exit(0 if loop.run_until_complete(soak(options, bundle, texts)) else 1)


if __name__ == "__main__":
    main()
