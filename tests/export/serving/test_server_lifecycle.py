"""Starting a server, replacing its bundles, stopping it, and the errors that prevent a start."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import weakref
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import pytest

from distill.cli.main import main
from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, MANIFEST
from export.runtime.classifier import Classifier
from export.serving.model_registry import ModelRegistry
from export.serving.server import Server, _bind
from export.serving.settings import ServingError, Settings
from export.serving.telemetry import Log

HOUR = 3_600_000
PATIENCE = 60
ROOT = Path(__file__).parents[3]


def test_a_stop_completes_accepted_requests_and_rejects_new_ones(serve, bundle):
    server = serve(bundle, "--max-wait-ms", HOUR, "--drain-s", 1)
    accepted = [server.predict_later(text=text) for text in ("where", "is", "my")]
    server.wait_for_queue(3)
    server.process.terminate()
    server.until(lambda: server.send("/v2/health/ready").status == 503)
    assert server.send("/v2/models/tiny/ready").status == 503
    assert server.send("/v2/health/live").status == 200
    refused = server.predict(text="new")
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert "stopping" in refused.json()["error"] and refused.headers["connection"] == "close"
    assert [one.result().status for one in accepted] == [200, 200, 200]
    assert server.process.wait(60) == 0
    summary = json.loads(server.process.stdout.read())
    assert summary["served"] == ["tiny"] and summary["requests"] >= 5
    assert server.lines[-1]["event"] == "stopped"


@pytest.fixture
def changing(serve, copied):
    """A server that checks its bundle often, and the folder of the bundle."""
    return serve(copied, "--watch-s", 0.02, "--drain-s", 0), copied


def new_bundle(folder, manifest, contents, **changes):
    """Replace the bundle in `folder`, as `distill run` does, and return its version."""
    written = write_bundle(folder, replace(manifest, **changes), contents)
    return written.to_json()["digest"][:12]


def versions(server):
    return server.send("/v2/models/tiny").json()["versions"]


def test_a_new_bundle_replaces_the_old_one_without_losing_requests(changing, manifest, contents):
    server, folder = changing
    replies: list[Future] = []
    wanted = {}
    for turn in range(3):
        heads = (replace(manifest.heads[0], labels=(f"a{turn}", "b", "c")), manifest.heads[1])
        replies += [server.predict_later(text="thanks") for _ in range(8)]  # in flight during the reload
        version = new_bundle(folder, manifest, contents, heads=heads)
        while versions(server) != [version]:
            assert server.process.poll() is None
            replies += [server.predict_later(text="thanks") for _ in range(8)]
            assert replies[-1].result().status == 200
        wanted = Classifier.load(folder)("thanks")
    assert {one.result().status for one in replies} == {200}
    assert server.predict(text="thanks").json() == wanted
    assert server.metric('tinyheads_reloads_total{model="tiny",outcome="done"}') == 3
    assert server.metric("tinyheads_bundle_info") == 1
    assert server.stop() == 0


def test_queued_requests_are_answered_by_the_old_bundle(serve, copied, manifest, contents, classifier):
    server = serve(copied, "--watch-s", 0.02, "--max-batch", 2, "--max-wait-ms", HOUR, "--drain-s", 0)
    waiting = server.predict_later(text="thanks")
    server.wait_for_queue(1)
    new_bundle(copied, manifest, contents, heads=(manifest.heads[1],))
    assert waiting.result().json() == classifier("thanks")  # a closing batcher does not wait for a full batch
    assert server.predict(texts=["a", "b"]).json()[0].keys() == {"flags"}
    assert server.predict(texts=["a", "b"], heads=["intent"]).status == 422


def test_a_replaced_bundle_is_freed(copied, manifest, contents):
    settings, log = Settings(bundles=(str(copied),), watch_s=0.01), Log(io.BytesIO())
    registry = ModelRegistry(settings, log)

    async def main():
        async with registry.lifespan(None):
            old = weakref.ref(registry.model(None))
            version = new_bundle(copied, manifest, contents, heads=(manifest.heads[1],))
            while registry.model(None).version != version or old() is not None:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_broken_bundle_is_logged_and_the_old_one_keeps_serving(changing, manifest, contents, classifier):
    server, folder = changing

    def keeps_serving(version):
        assert versions(server) == [version]
        assert server.predict(text="thanks").json() == classifier("thanks")

    (before,) = versions(server)
    (folder / FP32).write_bytes(b"no model")
    assert "changed" in server.line("reload refused")["error"]
    keeps_serving(before)
    mended = new_bundle(folder, replace(manifest, max_length=9), contents)
    server.until(lambda: versions(server) == [mended])
    new_bundle(folder, manifest, contents, name="other")
    problem = "the bundle is named 'other', expected 'tiny' (restart the server to serve it)"
    server.line("reload refused", error=f"{folder}: {problem}")
    keeps_serving(mended)
    assert server.metric('tinyheads_reloads_total{model="tiny",outcome="refused"}') >= 2
    shutil.rmtree(folder)
    keeps_serving(mended)
    back = new_bundle(folder, manifest, contents)
    server.until(lambda: versions(server) == [back])
    assert server.stop() == 0


def test_several_bundles_are_served_by_name(serve, bundle, tmp_path, manifest, contents, classifier):
    write_bundle(tmp_path / "b", replace(manifest, name="sp\u00e4te/b", heads=manifest.heads[:1]), contents)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    server = serve(bundle, tmp_path / "link", "--drain-s", 0, "--watch-s", 0.02)
    assert server.predict(text="thanks").status == 422
    assert server.predict(text="thanks", model="tiny").json() == classifier("thanks")
    alone = {"intent": classifier("thanks")["intent"]}
    assert server.predict(text="thanks", model="sp\u00e4te/b").json() == alone
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["thanks"]}]
    reply = server.send("/v2/models/sp%C3%A4te%2Fb/infer", {"inputs": inputs})
    assert reply.json()["outputs"][0]["data"] == [alone["intent"]["label"]]
    assert server.metric("tinyheads_texts_total{") == 3
    write_bundle(tmp_path / "c", replace(manifest, name="sp\u00e4te/b"), contents)
    (tmp_path / "new").symlink_to(tmp_path / "c")
    (tmp_path / "new").replace(tmp_path / "link")  # a link to another folder is a new bundle
    server.line("reloaded", model="sp\u00e4te/b")
    assert server.predict(text="thanks", model="sp\u00e4te/b").json() == classifier("thanks")
    assert server.stop() == 0


def refused(capsys, *arguments):
    assert main(["serve", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_an_error_at_the_start_is_one_line(capsys, bundle, copied, tmp_path, manifest, contents):
    assert "both bundles are named 'tiny'" in refused(capsys, bundle, copied, "--port", 0)
    assert "no such folder" in refused(capsys, tmp_path / "none", "--port", 0)
    assert "unknown variant 'int4'" in refused(capsys, bundle, "--port", 0, "--variant", "int4")
    assert "--queue: must be >= 1, got 0" in refused(capsys, bundle, "--queue", 0)
    assert "--timeout-s: must be above 0" in refused(capsys, bundle, "--timeout-s", "nan")
    assert "--port: must be from 0 to 65535" in refused(capsys, bundle, "--port", 65536)
    assert "cannot bind" in refused(capsys, bundle, "--host", "nowhere.invalid")
    for hosts in ("", "localhost:8000", "localhost,http://a.com", "*.*.com", "a b"):
        assert "--allowed-hosts: must be host names without" in refused(
            capsys, bundle, "--allowed-hosts", hosts
        )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = refused(capsys, bundle, "--port", taken.getsockname()[1])
        assert "cannot bind: Address already in use" in line
    heads = (manifest.heads[0], replace(manifest.heads[1], name="intent.score"))
    write_bundle(tmp_path / "clash", replace(manifest, heads=heads), contents)
    assert "two outputs of the same name" in refused(capsys, tmp_path / "clash", "--port", 0)
    (copied / MANIFEST).write_text("{}")
    assert MANIFEST in refused(capsys, copied, "--port", 0)


def test_a_port_that_another_process_takes_at_the_same_time(bundle):
    settings, log = Settings(bundles=(str(bundle),)), Log(io.BytesIO())
    server = Server(ModelRegistry(settings, log), settings, log)
    with _bind("127.0.0.1", 0) as mine, socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        theirs.bind(mine.getsockname())
        theirs.listen()
        with pytest.raises(ServingError, match="cannot bind: Address already in use") as caught:
            server.run(sockets=[mine])
    assert caught.value.exit_code == 2


def test_a_closed_log_does_not_stop_the_server(bundle):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "distill.cli.main", "serve", str(bundle), "--port", str(port)]
    command += ["--drain-s", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    try:
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        process.terminate()
        summary = json.loads(process.communicate(timeout=PATIENCE)[0])
    finally:
        process.kill()
    assert process.returncode == 0 and summary["served"] == ["tiny"]


STOPPED = """
import os, signal, threading, time
from distill.cli.main import main

def stop():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop, daemon=True).start()
raise SystemExit(main(["serve", BUNDLE, "--port", "0", "--drain-s", "0"]))
"""


def test_the_server_runs_where_only_its_extra_is_installed(run_blocked, bundle):
    code = f"BUNDLE = {str(bundle)!r}\n{STOPPED}"
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"served": ["tiny"], "requests": 0}
    done = run_blocked("sys.modules['uvicorn'] = None\n" + code)
    assert done.returncode == 2
    assert "uvicorn is not installed (pip install 'tinyheads[serve]')" in done.stderr


def test_the_help_of_serve_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(Settings):
        if type(field.default) in (int, float, str):
            option = field.name.replace("_", "-")
            about = re.search(rf" --{option} [A-Z_]+ (.*?) ?\(([\w.]+)\)", shown)
            assert about and type(field.default)(about[2]) == field.default, option
