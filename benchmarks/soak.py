"""A server under twice the load it sustains, while its bundle is replaced and the server is restarted.

    python benchmarks/soak.py BUNDLE TEXTS.csv --minutes 10

First 64 connections send requests as fast as they get responses. Their rate is the sustained load. Then twice
that rate is sent, without waiting for responses. Every 20 seconds the bundle is damaged, each time in another
way, and 10 seconds later it is replaced by a good one. At the end the server is restarted with SIGTERM, still
under load. The benchmark prints the memory of the server after each replacement, and at the end the number of
requests by outcome: the status; `down`, no server was listening; `unsent`, all connections were in use;
`lost`, sent without getting a response. It exits with 1 unless every response was 200 or 503, no request was
lost, every damaged bundle was refused and every good one served, the memory of the last third of the time is
at most a tenth above that of the second third, and the server exited with 0 each time.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import shutil
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import median
from subprocess import DEVNULL
from time import monotonic
from typing import cast

from serving_http import free_port
from uvloop import new_event_loop

from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import MANIFEST, TOKENIZER, Manifest

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

    def close(self) -> None:
        """Close the idle connections."""
        for link in self._idle:
            link.transport.close()

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


def damages(manifest: Manifest, contents: dict[str, bytes]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Ways to damage a bundle: a description, and the files to write into the folder. None deletes a file."""
    for name, data in contents.items():
        half = len(data) // 2
        if name != MANIFEST:  # a folder without manifest is a bundle that is being replaced
            yield f"{name} is deleted", {name: None}
        yield f"{name} is empty", {name: b""}
        yield f"{name} is cut in half", {name: data[:half]}
        if name != MANIFEST:
            yield f"a bit of {name} differs", {name: data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]}
    for name in (manifest.variants[manifest.default_variant], TOKENIZER):
        cut = contents[name][: len(contents[name]) // 2]
        yield f"{name} is cut in half and the manifest says so", rewritten(manifest, {**contents, name: cut})
    yield "it has another name", rewritten(replace(manifest, name="other"), contents)


def rewritten(manifest: Manifest, contents: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a bundle whose manifest matches them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, files = Path(scratch, "bundle"), {name: contents[name] for name in manifest.files}
        write_bundle(folder, manifest, dict(files))
        return {**files, MANIFEST: (folder / MANIFEST).read_bytes()}


def damage(folder: Path, files: dict[str, bytes | None]) -> None:
    """Write and delete files of a bundle."""
    for name, data in files.items():
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)


def replace_bundle(folder: Path, manifest: Manifest, contents: dict[str, bytes], note: str) -> str:
    """Write the good bundle with a new digest; return its version."""
    shutil.rmtree(folder)
    manifest = replace(manifest, details={**manifest.details, "note": note})
    files = {name: contents[name] for name in manifest.files}
    return write_bundle(folder, manifest, dict(files)).to_json()["digest"][:12]  # type: ignore[no-any-return]


def get(port: int, path: str) -> str:
    """The body of a response; empty if there is none."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
        body: str = response.read().decode()
        return body
    return ""


async def until(reached: Callable[[], bool], seconds: float) -> bool:
    """Whether something is reached within this time."""
    end = monotonic() + seconds
    while not await asyncio.to_thread(reached):
        if monotonic() > end:
            return False
        await asyncio.sleep(0.1)
    return True


def refusals(port: int) -> float:
    """Number of bundles that were refused."""
    lines = (line for line in get(port, "/metrics").splitlines() if 'outcome="refused"} ' in line)
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def megabytes(server: Server) -> int:
    """Resident memory of the server."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


async def soak(options: argparse.Namespace, bundle: Path, texts: list[str]) -> bool:
    """Run the benchmark. True if it passed."""
    port, manifest = free_port(), read_bundle(bundle)
    contents = {name: (bundle / name).read_bytes() for name in (*manifest.files, MANIFEST)}
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
        calm.close()  # or they count towards the server's limit
    print(
        f"sustains {sustained:.0f} requests/s; sending {2 * sustained:.0f} requests/s for {seconds:.0f} s",
        flush=True,
    )
    load = Load(port, texts, options.connections)
    started, statuses, failures, memory = monotonic(), [], [], []
    sending = asyncio.create_task(load.run(2 * sustained, seconds))
    path = f"/v2/models/{manifest.name}"
    ways = cycle(damages(manifest, contents))
    for turn in range(max(1, int(seconds / options.swap_s) - 1)):
        way, files = next(ways)
        await asyncio.sleep(max(0.0, started + turn * options.swap_s - monotonic()))
        before = await asyncio.to_thread(refusals, port)
        await asyncio.to_thread(damage, bundle, files)
        if not await until(lambda before=before: refusals(port) > before, 0.45 * options.swap_s):
            failures.append(f"not refused: {way}")
        await asyncio.sleep(max(0.0, started + (turn + 0.5) * options.swap_s - monotonic()))
        version = await asyncio.to_thread(replace_bundle, bundle, manifest, contents, f"turn {turn}")
        if not await until(lambda new=version: new in get(port, path), 0.45 * options.swap_s):
            failures.append(f"not served: the good bundle after: {way}")
        memory.append(megabytes(server))
        print(f"{monotonic() - started:6.0f} s {memory[-1]:5d} MB {dict(load.counts)} {way}", flush=True)
    server.terminate()
    statuses.append(await server.wait())
    server = await start(bundle, port, options.serve.split())
    await sending
    while load.in_flight():
        await asyncio.sleep(0.05)
    server.terminate()
    statuses.append(await server.wait())
    third = -(-len(memory) // 3)
    before, after = median(memory[-2 * third : -third] or memory), median(memory[-third:])
    if after > 1.1 * before:
        failures.append(f"the memory grew from {before} to {after} MB")
    print(f"exit statuses {statuses}; {len(memory)} bad and good bundles; {dict(load.counts)}; {failures}")
    return not (load.counts.keys() - {"200", "503", "down", "unsent"} or failures) and statuses == [0, 0]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path, help="CSV")
    parser.add_argument("--column", default="text")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--load", type=float, help="sustained requests per second; measured by default")
    parser.add_argument("--measure", type=float, default=10, help="seconds to measure the sustained load")
    parser.add_argument("--swap-s", type=float, default=20, help="seconds between damaged bundles")
    parser.add_argument("--connections", type=int, default=1000)
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
