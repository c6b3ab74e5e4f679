"""Requests per second and latency over loopback, measured with wrk (Debian package wrk).

    python benchmarks/serving_http.py BUNDLE TEXTS.csv --student RUN/stages/fit_student

Compares `distill serve` with itself at --max-batch 1 and, given a student, with FastAPI around the same
batcher and around the transformers pipeline (benchmarks/serving_peer.py, which requires fastapi). Every
request has one text, in the order of the file. All servers run during the whole benchmark, and the rounds are
interleaved. The output is a markdown table of medians over the rounds. The CPU time per request of a server
is the column that depends least on what else the machine runs. Any response other than 200 ends the
benchmark.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SCRIPT = """
local requests, turn = {}, 0
for line in io.lines("%s") do
  requests[#requests + 1] = wrk.format("POST", "/predict", {["Content-Type"] = "application/json"}, line)
end
request = function()
  turn = turn %% #requests + 1
  return requests[turn]
end
done = function(summary, latency)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\nJSON {"requests": %%d, "us": %%d, "p50": %%d, "p99": %%d, "lost": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), lost))
end
"""


def free_port() -> int:
    """A port that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """Start a server and wait until it responds."""
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    body = json.dumps({"text": "ready?"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"}
    )
    for _ in range(1200):
        if process.poll() is not None:
            sys.exit(
                f"{shlex.join(command)}: ended with {process.returncode} (run it alone to see its output)"
            )
        try:
            urllib.request.urlopen(request, timeout=30).close()
            return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    sys.exit(f"{shlex.join(command)}: does not respond")


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU time of all threads of a process so far (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drive(port: int, script: Path, seconds: int, connections: int) -> dict[str, float]:
    """Run one round of wrk: requests per second, and p50 and p99 of the latency in milliseconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "30", "-s", str(script)]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.rpartition("JSON ")[2])
    if result["lost"]:
        sys.exit(f"{result['lost']} of {result['requests']} requests did not get status 200")
    rate = 1e6 * result["requests"] / result["us"]
    return {**result, "rate": rate, "p50": result["p50"] / 1000, "p99": result["p99"] / 1000}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path, help="CSV")
    parser.add_argument("--column", default="text")
    parser.add_argument("--student", type=Path, help="RUN/stages/fit_student, to compare with FastAPI")
    parser.add_argument("--peer-python", default=sys.executable, help="Python with fastapi and torch")
    parser.add_argument("--serve", default="", help="options for `distill serve`, as one argument")
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another server that takes --port",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="seconds per round")
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    serve = [
        sys.executable,
        "-m",
        "distill.cli.main",
        "serve",
        str(options.bundle),
        *shlex.split(options.serve),
    ]
    servers = {"distill serve": serve, "distill serve --max-batch 1": [*serve, "--max-batch", "1"]}
    if options.student:
        peer = [options.peer_python, str(Path(__file__).with_name("serving_peer.py"))]
        pipeline = [*peer, "--student", str(options.student)]
        servers["FastAPI, same batcher"] = [*peer, "--bundle", str(options.bundle)]
        servers["FastAPI, transformers pipeline"] = pipeline
        servers["FastAPI, transformers pipeline, in threads"] = [*pipeline, "--threaded"]
    for name, _, command in (other.partition("=") for other in options.other):
        servers[name] = shlex.split(command)
    running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    with tempfile.TemporaryDirectory() as scratch, options.texts.open(encoding="utf-8", newline="") as file:
        bodies, script = Path(scratch, "bodies"), Path(scratch, "requests.lua")
        lines = [json.dumps({"text": row[options.column]}) for row in csv.DictReader(file)]
        bodies.write_text("\n".join(lines) + "\n")
        script.write_text(SCRIPT % bodies)
        try:
            for name, command in servers.items():
                port = free_port()
                running[name] = start(command, port), port
                drive(port, script, 1, options.connections)
            for turn in range(options.rounds):
                for name, (process, port) in running.items():
                    before = cpu_seconds(process)
                    result = drive(port, script, options.seconds, options.connections)
                    result["cpu"] = 1000 * (cpu_seconds(process) - before) / result["requests"]
                    rounds[name].append(result)
                    print(turn, name, rounds[name][-1], file=sys.stderr)
        finally:
            for process, _ in running.values():
                process.terminate()
                process.wait()
    print(f"| {options.connections} connections | requests per second | p50 | p99 | CPU per request |")
    print("|---|---|---|---|---|")
    for name, results in rounds.items():
        rate, p50, p99, cpu = (
            statistics.median(result[key] for result in results) for key in ("rate", "p50", "p99", "cpu")
        )
        print(f"| {name} | {rate:.0f} | {p50:.2f} ms | {p99:.2f} ms | {cpu:.3f} ms |")


if __name__ == "__main__":
    main()
