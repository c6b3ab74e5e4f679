"""A server under twice the load that it holds, with swaps of its bundle and a stop in the middle.

    python benchmarks/soak.py BUNDLE TEXTS.csv --minutes 10

First 64 connections ask as fast as they are answered: that is the load it holds. Then twice as many
requests a second are sent, whether earlier ones are answered or not. At a quarter of the time the bundle is
swapped, at half of it the server gets SIGTERM and is started anew when it has ended, at three quarters a
broken bundle is laid in its folder and then a good one. Prints the server's memory twenty times and at the
end what became of every request: by status; `down`, nobody listened; `unsent`, all connections were busy;
`lost`, sent and not answered. Exits 1 unless all answers are 200 or 503, none is lost, and the server ended
with 0 each time.
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
    """A connection with at most one request on its way."""

    def __init__(self, load: Load) -> None:
        self._load, self._got = load, b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the way to write."""
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> None:
        """Sends a request."""
        self.busy, self._got = True, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Counts an answer that is whole."""
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]):
            self.busy = False
            self._load.answered(self, head[9:12].decode(), b"connection: close" in head.lower())

    def connection_lost(self, error: Exception | None) -> None:
        """Counts what was asked and will not be answered."""
        self._load.gone(self)


class Load:
    """Requests sent at a rate, and what became of them."""

    def __init__(self, port: int, texts: list[str], most: int) -> None:
        bodies = [json.dumps({"text": text}).encode() for text in texts]
        head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s"
        self._requests: Iterator[bytes] = cycle([head % (len(body), body) for body in bodies])
        self._port, self._most = port, most
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._opening = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.again = False
        self.counts: Counter[str] = Counter()

    def send(self) -> None:
        """One request, on an idle connection or a new one; `unsent` where there are too many."""
        while self._idle:
            link = self._idle.pop()
            if not link.transport.is_closing():
                link.ask(next(self._requests))
                return
        if len(self._links) + self._opening >= self._most:
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
            link.ask(next(self._requests))
        finally:
            self._opening -= 1

    def answered(self, link: Link, status: str, last: bool) -> None:
        """Frees the connection, or closes it where that was its last answer."""
        self.counts[status] += 1
        if last:
            link.transport.close()
        elif self.again:
            link.ask(next(self._requests))
        else:
            self._idle.append(link)

    def gone(self, link: Link) -> None:
        """Forgets the connection."""
        self._links.discard(link)
        if link.busy:
            self.counts["lost"] += 1

    def waiting(self) -> int:
        """Requests on their way."""
        return self._opening + sum(link.busy for link in self._links)

    async def at(self, rate: float, seconds: float) -> None:
        """Sends `rate` requests a second, whatever becomes of them."""
        start, sent = monotonic(), 0
        while (now := monotonic() - start) < seconds:
            while sent < rate * now:
                self.send()
                sent += 1
            await asyncio.sleep(0.005)


async def start(bundle: Path, port: int, options: list[str]) -> Server:
    """A server, as soon as it listens."""
    command = [sys.executable, "-m", "distill.cli.main", "serve", str(bundle), "--port", str(port), *options]
    server = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if server.returncode is not None:
                sys.exit(f"the server ended with {server.returncode}")
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return server


def swap(folder: Path, manifest: Manifest, note: str) -> None:
    """The same bundle under a new digest."""
    contents: dict[str, Path | bytes] = {name: (folder / name).read_bytes() for name in manifest.files}
    write_bundle(folder, replace(manifest, details={**manifest.details, "note": note}), contents)


def megabytes(server: Server) -> int:
    """What the server holds in memory."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


async def soak(options: argparse.Namespace, bundle: Path, texts: list[str]) -> bool:
    """Whether all went as it must."""
    port, manifest = free_port(), read_bundle(bundle)
    good = (bundle / FP32).read_bytes()
    server = await start(bundle, port, options.serve.split())
    seconds = 60 * options.minutes
    held = options.load
    if not held:
        calm = Load(port, texts, 64)
        calm.again = True
        for _ in range(64):
            calm.send()
        await asyncio.sleep(options.measure)
        held = calm.counts["200"] / options.measure
        calm.again = False
        while calm.waiting():
            await asyncio.sleep(0.01)
    print(f"it holds {held:.0f} requests a second; {2 * held:.0f} are sent for {seconds:.0f} s", flush=True)
    load = Load(port, texts, options.connections)
    started, statuses = monotonic(), []
    sending = asyncio.create_task(load.at(2 * held, seconds))
    for step in range(1, 21):
        await asyncio.sleep(max(0.0, started + step * seconds / 20 - monotonic()))
        print(f"{monotonic() - started:6.0f} s {megabytes(server):5d} MB {dict(load.counts)}", flush=True)
        if step in (5, 17):
            await asyncio.to_thread(swap, bundle, manifest, f"step {step}")
            print("         swapped", flush=True)
        elif step == 10:
            server.terminate()
            statuses.append(await server.wait())
            print(f"{monotonic() - started:6.0f} s stopped with {statuses[-1]}", flush=True)
            server = await start(bundle, port, options.serve.split())
            print(f"{monotonic() - started:6.0f} s started", flush=True)
        elif step == 15:
            (bundle / FP32).write_bytes(b"broken")
            print("         broken", flush=True)
        elif step == 16:
            (bundle / FP32).write_bytes(good)
    await sending
    while load.waiting():
        await asyncio.sleep(0.05)
    server.terminate()
    statuses.append(await server.wait())
    print(f"ended with {statuses}; {dict(load.counts)}")
    return not (load.counts.keys() - {"200", "503", "down", "unsent"}) and statuses == [0, 0]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path, help="CSV")
    parser.add_argument("--column", default="text")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--load", type=float, help="requests a second that it holds; measured by default")
    parser.add_argument("--measure", type=float, default=10, help="seconds of measuring that")
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--serve", default="", help="more options of `distill serve`, in one word")
    options = parser.parse_args()
    with options.texts.open(encoding="utf-8", newline="") as file:
        texts = [row[options.column] for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(shutil.copytree(options.bundle, Path(scratch, "bundle")))
        loop = new_event_loop()
        sys.exit(0 if loop.run_until_complete(soak(options, bundle, texts)) else 1)


if __name__ == "__main__":
    main()
