"""Native code that panics or hangs, bundles that break their loader, a log that nobody reads, and signals."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace

import pytest

from export.bundle.files import write_bundle
from export.bundle.manifest import FP32, MANIFEST, TOKENIZER

# the text of a request names what the classifier does with it; a panic of Rust derives from BaseException
FAULTY = """
import ctypes, sys
from pathlib import Path
from export.runtime.classifier import Classifier
from export.serving import model_registry

class PanicException(BaseException): pass

logits, load = Classifier.logits, Classifier.load.__func__
sleep = ctypes.CDLL(None).sleep

def fail(name):
    if name.startswith("hang"):
        print('{"event": "hanging"}', file=sys.stderr, flush=True)
        left = int(name[4:])
        while left:  # a signal interrupts it
            left = sleep(left)
    elif name.startswith("raise "):
        raise {"PanicException": PanicException, **vars(__import__("builtins"))}[name[6:]]("secretword")

def faulty_logits(self, texts, **options):
    for text in texts:
        fail(text)
    return logits(self, texts, **options)

def faulty_load(cls, folder, **options):
    fault = Path(folder, "fault")
    if fault.exists():
        fail(fault.read_text())
    return load(cls, folder, **options)

Classifier.logits, Classifier.load = faulty_logits, classmethod(faulty_load)
model_registry._MAX_LOAD_S = 1.0
"""
RAISED = [
    "PanicException",
    "SystemExit",
    "MemoryError",
    "RecursionError",
    "KeyboardInterrupt",
    "StopIteration",
]


@pytest.mark.parametrize("raised", RAISED)
def test_whatever_a_classifier_raises_fails_only_its_request(serve, bundle, classifier, raised):
    server = serve(bundle, "--drain-s", 0, before=FAULTY)
    for _ in range(2):
        failed = server.predict_later(text=f"raise {raised}")
        assert server.predict(text="thanks").json() == classifier("thanks")
        assert failed.result().status == 500
        assert failed.result().json() == {"error": "server: internal error (see the server log)"}
    assert server.line("failure", route="/predict", error=raised)["at"]
    assert server.send("/v2/health/ready").status == 200
    assert server.stop() == 0
    assert "secretword" not in str(server.lines) and "no JSON" not in str(server.lines)


def test_a_classifier_that_hangs_makes_the_server_not_ready_until_it_returns(serve, bundle, classifier):
    server = serve(bundle, "--drain-s", 0, "--timeout-s", 0.5, before=FAULTY)
    assert server.send("/health").status == 200
    assert server.predict(text="hang3").status == 504
    server.until(lambda: server.send("/v2/health/ready").status == 503)
    assert server.send("/health").json() == {"ready": False}
    assert server.send("/v2/models/tiny/ready").status == 503
    assert server.send("/v2/health/live").status == 200
    server.until(lambda: server.send("/v2/health/ready").status == 200)
    assert server.predict(text="thanks").json() == classifier("thanks")
    assert server.stop() == 0


@pytest.mark.parametrize("fault", [*(f"raise {name}" for name in RAISED), "hang10000"])
def test_whatever_a_bundle_raises_is_logged_and_the_next_one_is_served(
    serve, copied, manifest, contents, fault
):
    server = serve(copied, "--watch-s", 0.05, "--drain-s", 0, before=FAULTY)
    (copied / "fault").write_text(fault)
    problem = server.line("reload refused")["error"]
    assert fault.removeprefix("raise ") in problem or (fault == "hang10000" and "longer than 1 s" in problem)
    assert server.predict(text="thanks").status == 200
    version = write_bundle(copied, replace(manifest, max_length=9), contents).to_json()["digest"][:12]
    server.until(lambda: server.send("/v2/models/tiny").json()["versions"] == [version])
    assert server.stop() == 0  # also while a thread hangs


def damage(folder, turn):
    """Damage a bundle in one of several ways."""
    data = (folder / FP32).read_bytes()
    [
        lambda: (folder / FP32).write_bytes(b""),
        lambda: (folder / FP32).write_bytes(data[: len(data) // 2]),
        lambda: (folder / FP32).write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:]),
        lambda: (folder / FP32).unlink(),
        lambda: (folder / TOKENIZER).write_text("[" * 100_000),
        lambda: (folder / MANIFEST).write_text('{"format": 1e999}'),
        lambda: (folder / MANIFEST).write_text("[" * 100_000),
        lambda: (folder / FP32).unlink() or (folder / FP32).mkdir(),
    ][turn]()


def test_bundles_damaged_in_every_way_are_refused_and_good_ones_taken(serve, copied, manifest, contents):
    server = serve(copied, "--watch-s", 0.02, "--drain-s", 0)
    for turn in range(8):
        refused = len([line for line in server.lines if line["event"] == "reload refused"])
        damage(copied, turn)
        server.until(
            lambda refused=refused: len([x for x in server.lines if x["event"] == "reload refused"]) > refused
        )
        assert server.predict(text="thanks").status == 200
        shutil.rmtree(copied)
        good = replace(manifest, details={"turn": turn})
        version = write_bundle(copied, good, contents).to_json()["digest"][:12]
        server.until(lambda version=version: server.send("/v2/models/tiny").json()["versions"] == [version])
    assert server.stop() == 0


def test_a_log_that_nobody_reads_does_not_stop_the_server(serve, bundle, classifier):
    server = serve(bundle, "--drain-s", 0, "--log-texts")
    server.reads_log.clear()
    texts = ["thanks " * 2_000] * 64
    for _ in range(4):  # 900 kB of log each; a pipe holds 64 kB
        assert server.predict(texts=texts).status == 200
    assert server.predict(text="thanks").json() == classifier("thanks")
    server.reads_log.set()
    assert server.line("dropped")["lines"] >= 1
    assert server.predict(text="thanks").status == 200
    server.line("request", inputs=["thanks"])
    assert server.stop() == 0


def test_the_process_ends_though_nobody_reads_its_log(serve, bundle):
    server = serve(bundle, "--drain-s", 0, "--log-texts")
    server.reads_log.clear()
    server.predict(texts=["thanks " * 2_000] * 64)
    assert server.stop() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(serve, bundle, second):
    server = serve(bundle, "--drain-s", 3_000, before=FAULTY)
    hanging = server.predict_later(text="hang10000")
    server.line("hanging")
    server.process.send_signal(signal.SIGTERM)
    server.until(lambda: server.send("/v2/health/ready").status == 503)
    server.process.send_signal(second)
    assert server.process.wait(5) == 128 + second
    assert server.line("stopped")["reason"] == "second signal"
    assert hanging.exception() is not None


def test_a_hanging_classifier_does_not_outlive_the_grace_period(serve, bundle):
    server = serve(bundle, "--drain-s", 0, "--timeout-s", 0.5, before=FAULTY)
    assert server.predict(text="hang10000").status == 504
    assert server.stop() == 1
    assert server.line("stopped")["reason"] == "not stopped after 5.5 s"
    assert "Cancelled" not in str(server.lines) and "no JSON" not in str(server.lines)


def test_a_closed_terminal_stops_the_server_gracefully(serve, bundle):
    server = serve(bundle, "--max-wait-ms", 3_600_000, "--drain-s", 0.5)
    accepted = server.predict_later(text="where")
    server.wait_for_queue(1)
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: server.send("/v2/health/ready").status == 503)
    server.process.send_signal(signal.SIGHUP)  # the shell repeats what the terminal sent
    assert accepted.result().status == 200
    assert server.process.wait(60) == 0
