import numpy as np
import pytest

from distill.compare import measure


class Clock:
    """Stands for time.perf_counter: a batch of `size` texts takes `seconds(size)`."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.calls, self.seconds = 0.0, [], seconds
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def classify(self, texts, size):
        self.calls.append((len(texts), size))
        for first in range(0, len(texts), size):
            self.now += self.seconds(len(texts[first : first + size]))


def test_throughput_doubles_the_batch_until_nothing_is_gained(monkeypatch):
    # a call costs a fixed part and one for each text; from 32 texts on, memory makes each text dearer
    clock = Clock(monkeypatch, lambda size: 0.01 + size * (0.001 if size <= 32 else 0.002))
    found = measure.best_throughput(clock.classify, ["text"] * 4096)
    assert found["batch_size"] == 32
    assert found["throughput"] == pytest.approx(32 / 0.042, rel=0.02)
    assert {size for _, size in clock.calls} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_throughput_stops_where_memory_runs_out(monkeypatch):
    clock = Clock(monkeypatch, lambda size: 1.0)

    def classify(texts, size):
        if size > 16:
            raise MemoryError
        clock.classify(texts, size)

    assert measure.best_throughput(classify, ["text"] * 1000)["batch_size"] == 16


def test_throughput_of_few_texts_and_of_one(monkeypatch):
    clock = Clock(monkeypatch, lambda size: 0.1)
    assert measure.best_throughput(clock.classify, ["text"] * 5)["batch_size"] == 4
    assert measure.best_throughput(clock.classify, ["text"]) == {
        "throughput": pytest.approx(10),
        "batch_size": 1,
    }


def test_a_slow_classifier_is_timed_on_few_texts(monkeypatch):
    clock = Clock(monkeypatch, lambda size: 0.5 * size)
    measure.best_throughput(clock.classify, ["text"] * 2000)
    assert max(count for count, size in clock.calls if size == 2) <= 8
    assert clock.now < 300


def test_latency_is_of_single_texts(monkeypatch):
    turns = iter(np.tile([0.001] * 99 + [0.1], 3))
    clock = Clock(monkeypatch, lambda size: next(turns))
    found = measure.latency(clock.classify, ["a", "b", "c"])
    assert set(clock.calls) == {(1, 1)}
    assert found["p50"] == pytest.approx(1.0)
    assert found["p99"] > 1.0
    slow = Clock(monkeypatch, lambda size: 2.0)
    measure.latency(slow.classify, ["a"])
    assert len(slow.calls) == measure.MIN_ROUNDS + 1
