"""The batcher with the real classifier: which texts share a call, which requests fail or are rejected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.runtime.classifier import Classifier
from export.serving.batcher import (
    MAX_PADDED_CHARACTERS,
    Batcher,
    ClassifierError,
    InvalidTextError,
    QueueFullError,
)


class Gate:
    """A classifier that records its calls and waits in each call until the gate is open."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.open, self.entered = classifier, Event(), Event()
        self.calls: list[list[str]] = []
        self.groups: list[str | None] = []

    def __call__(self, texts, group):
        self.calls.append(list(texts))
        self.groups.append(group)
        self.entered.set()
        self.open.wait(60)
        return list(np.hstack([*self.classifier.logits(texts).values()]))


@pytest.fixture
def gate(classifier):
    return Gate(classifier)


@pytest.fixture(scope="session")
def right(classifier) -> Callable[..., bool]:
    """Whether rows are the logits of these texts, up to the last digits."""

    def compare(rows, *texts: str) -> bool:
        alone = [np.hstack([*classifier.logits(text).values()])[0] for text in texts]
        return len(rows) == len(alone) and all(map(lambda *pair: np.allclose(*pair, atol=1e-5), rows, alone))

    return compare


def run(gate, use: Callable[[Batcher], Awaitable[None]], **options) -> list[int]:
    """The batch sizes of a batcher that is passed to `use` and then closed."""
    sizes: list[int] = []

    async def main() -> None:
        arguments = {"max_batch": 64, "max_wait": 0.0, "queue_size": 1000, **options}
        batcher = Batcher(gate, on_batch=lambda size, seconds: sizes.append(size), **arguments)
        await use(batcher)
        gate.open.set()
        await batcher.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    return sizes


async def first(batcher, gate):
    """A request that the classifier has already taken."""
    task = asyncio.create_task(batcher.submit(["first"]))
    await asyncio.to_thread(gate.entered.wait, 60)
    return task


def test_requests_that_arrive_during_a_call_share_the_next_call(gate, right):
    texts = ["where is my parcel", "cancel", "thanks"]

    async def use(batcher):
        tasks = [await first(batcher, gate)]
        tasks += [asyncio.create_task(batcher.submit([text, "now"])) for text in texts]
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(*tasks)
        assert all(right(rows, text, "now") for rows, text in zip(results[1:], texts, strict=True))

    assert run(gate, use) == [1, 6]
    assert gate.calls[1] == ["where is my parcel", "now", "cancel", "now", "thanks", "now"]


def test_an_invalid_text_fails_only_its_own_request(gate, right):
    async def use(batcher):
        tasks = [await first(batcher, gate)]
        tasks += [asyncio.create_task(batcher.submit([text])) for text in ("where", "half \ud800", "thanks")]
        await asyncio.sleep(0)
        gate.open.set()
        _, before, invalid, after = await asyncio.gather(*tasks, return_exceptions=True)
        assert right(before, "where") and right(after, "thanks")
        assert isinstance(invalid, InvalidTextError) and "surrogate" in str(invalid)

    run(gate, use)


def test_a_bug_in_the_classifier_fails_the_batch_and_nothing_else(gate, monkeypatch):
    async def use(batcher):
        gate.open.set()
        with monkeypatch.context() as patch:
            patch.setattr(gate, "classifier", None)
            requests = (batcher.submit(["where"]) for _ in range(3))
            for error in await asyncio.gather(*requests, return_exceptions=True):
                assert isinstance(error, ClassifierError) and isinstance(error.__cause__, AttributeError)
        assert len(await batcher.submit(["where"])) == 1

    run(gate, use)


def test_a_call_has_at_most_max_batch_texts(gate):
    async def use(batcher):
        gate.open.set()
        assert len(await batcher.submit(["where"] * 10)) == 10

    assert run(gate, use, max_batch=4) == [4, 4, 2]


def test_a_long_text_shares_its_call_with_few(gate):
    quarter, double = "x" * (MAX_PADDED_CHARACTERS // 4), "x" * 2 * MAX_PADDED_CHARACTERS

    async def use(batcher):
        gate.open.set()
        await batcher.submit([*["now"] * 20, quarter, *["now"] * 20, double, "now"])

    assert run(gate, use) == [20, 4, 17, 1, 1]


def test_only_texts_of_one_group_share_a_call(gate, right):
    async def use(batcher):
        tasks = [await first(batcher, gate)]
        asked = [(["where", "is"], "a"), (["now"], "a"), (["thanks"], "b"), (["my", "order"], None)]
        tasks += [asyncio.create_task(batcher.submit(texts, [group] * len(texts))) for texts, group in asked]
        tasks.append(asyncio.create_task(batcher.submit(["please", "cancel", "the"], ["a", "b", "b"])))
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(*tasks)
        assert all(right(rows, *texts) for rows, (texts, _) in zip(results[1:], asked, strict=False))
        assert right(results[-1], "please", "cancel", "the")

    assert run(gate, use) == [1, 3, 1, 2, 1, 2]
    assert gate.groups == [None, "a", "b", None, "a", "b"]


def test_a_large_request_does_not_delay_a_small_one(gate):
    async def use(batcher):
        tasks = [await first(batcher, gate)]
        asked = (["large"] * 9, ["other"] * 5, ["small"])
        tasks += [asyncio.create_task(batcher.submit(texts)) for texts in asked]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*tasks)

    assert run(gate, use, max_batch=4) == [1, 4, 4, 4, 3]
    assert [*map("".join, gate.calls[1:])] == [
        "large" * 4,
        "other" * 4,
        "small" + "large" * 3,
        "otherlargelarge",
    ]


def test_the_labels_of_a_group_count_as_characters(gate):
    characters = {None: 0, "few": 4, "many": MAX_PADDED_CHARACTERS // 4, "most": 2 * MAX_PADDED_CHARACTERS}

    async def use(batcher):
        gate.open.set()
        for group in characters:
            await batcher.submit(["now"] * 7, [group] * 7)

    assert run(gate, use, characters=characters.__getitem__) == [7, 7, 3, 3, 1, *[1] * 7]


def test_an_error_names_the_text_of_its_request(gate):
    async def use(batcher):
        gate.open.set()
        with pytest.raises(InvalidTextError) as caught:
            await batcher.submit(["now", "half \ud800", "is"], ["a", "b", "b"])
        assert caught.value.position == 1

    run(gate, use)


def test_a_full_queue_rejects_a_whole_request_and_accepts_the_next_that_fits(gate):
    async def use(batcher):
        held = await first(batcher, gate)
        waiting = asyncio.create_task(batcher.submit(["where", "is"]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(["now", "now"])
        assert batcher.depth == 2
        last = asyncio.create_task(batcher.submit(["thanks"]))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(held, waiting, last)

    assert run(gate, use, queue_size=3) == [1, 3]


def test_a_cancelled_request_is_not_computed(gate):
    async def use(batcher):
        await first(batcher, gate)
        gone = asyncio.create_task(batcher.submit(["gone"]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        gate.open.set()
        await batcher.submit(["now"])

    run(gate, use)
    assert gate.calls == [["first"], ["now"]]


def test_an_idle_classifier_waits_for_a_full_batch(gate):
    async def use(batcher):
        gate.open.set()
        await asyncio.gather(*(batcher.submit([text]) for text in ("where", "is", "my")))

    assert run(gate, use, max_batch=3, max_wait=3600) == [3]


def test_close_classifies_the_queued_texts(gate):
    tasks = []

    async def use(batcher):
        tasks.append(await first(batcher, gate))
        tasks.append(asyncio.create_task(batcher.submit(["where", "now"])))
        await asyncio.sleep(0)

    run(gate, use, max_wait=3600, max_batch=1)
    assert [len(task.result()) for task in tasks] == [1, 2]


def test_no_texts_need_no_call(gate):
    async def use(batcher):
        assert await batcher.submit([]) == []

    assert run(gate, use) == []


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_results_do_not_depend_on_how_texts_are_split_into_requests(classifier, texts, right, data):
    parts = data.draw(st.lists(st.lists(st.sampled_from(texts), max_size=9), max_size=9))
    gate = Gate(classifier)
    gate.open.set()

    async def use(batcher):
        results = await asyncio.gather(*map(batcher.submit, parts))
        assert all(right(rows, *part) for rows, part in zip(results, parts, strict=True))

    assert sum(run(gate, use, max_batch=data.draw(st.integers(1, 20)))) == sum(map(len, parts))


def test_logits_of_a_batch_are_those_of_each_text_alone(classifier, texts):
    # the comparisons above rely on this: with fp32 the other texts of a batch change only the last digits
    together = classifier.logits(texts, batch_size=16)
    alone = [classifier.logits(text) for text in texts]
    for head, rows in together.items():
        np.testing.assert_allclose(rows, np.concatenate([one[head] for one in alone]), atol=1e-5)
