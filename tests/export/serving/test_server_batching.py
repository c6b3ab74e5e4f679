"""The batcher around the real classifier: who shares a call, who fails, who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.runtime.classifier import Classifier
from export.serving.batcher import PADDED, BadText, Batcher, QueueFull
from export.serving.predict_api import Plain


class Gate:
    """A classifier that notes its calls, and waits in each until the gate is open."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.open, self.entered = classifier, Event(), Event()
        self.calls: list[list[str]] = []

    def logits(self, texts, *, batch_size):
        self.calls.append(list(texts))
        self.entered.set()
        self.open.wait(60)
        return self.classifier.logits(texts, batch_size=batch_size)


@pytest.fixture
def gate(classifier):
    return Gate(classifier)


@pytest.fixture
def form(classifier):
    return Plain(classifier.manifest.heads, None, False)


def run(gate, ask: Callable[[Batcher], Awaitable[None]], **options) -> list[int]:
    """The sizes of the calls of a batcher that `ask` was given and that was then closed."""
    sizes: list[int] = []

    async def main() -> None:
        set_to = {"max_batch": 64, "max_wait": 0.0, "limit": 1000, **options}
        batcher = Batcher(gate, told=lambda size, seconds: sizes.append(size), **set_to)
        await ask(batcher)
        gate.open.set()
        await batcher.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    return sizes


async def first(batcher, gate, form):
    """A request that the classifier has already taken."""
    task = asyncio.create_task(batcher.ask(["first"], form))
    await asyncio.to_thread(gate.entered.wait, 60)
    return task


def test_requests_that_came_meanwhile_share_one_call_each_by_its_options(gate, form, classifier, closely):
    heads = {head.name: head for head in classifier.manifest.heads}
    forms = {"where is my parcel": Plain([heads["flags"]], 1, False), "cancel": form}
    forms["thanks"] = Plain([heads["intent"], heads["flags"]], None, True)

    async def ask(batcher):
        tasks = [await first(batcher, gate, form)]
        tasks += [asyncio.create_task(batcher.ask([text, "now"], one)) for text, one in forms.items()]
        await asyncio.sleep(0)
        gate.open.set()
        found = await asyncio.gather(*tasks)
        assert closely(found[1], classifier(["where is my parcel", "now"], heads=["flags"], top_k=1))
        assert closely(found[2], classifier(["cancel", "now"]))
        assert closely(found[3], classifier(["thanks", "now"], scores=True))

    assert run(gate, ask) == [1, 6]
    assert gate.calls[1] == ["where is my parcel", "now", "cancel", "now", "thanks", "now"]


def test_a_bad_text_fails_its_own_request_alone(gate, form, classifier, closely):
    async def ask(batcher):
        tasks = [await first(batcher, gate, form)]
        texts = ["where", "half \ud800", "thanks"]
        tasks += [asyncio.create_task(batcher.ask([text], form)) for text in texts]
        await asyncio.sleep(0)
        gate.open.set()
        _, before, bad, after = await asyncio.gather(*tasks, return_exceptions=True)
        assert closely([before, after], [[classifier("where")], [classifier("thanks")]])
        assert isinstance(bad, BadText) and "surrogate" in str(bad)

    run(gate, ask)


@pytest.mark.parametrize("culprit", ["classifier", "form"])
def test_a_fault_of_our_own_is_no_fault_of_a_text_and_ends_nothing_else(gate, form, culprit, monkeypatch):
    async def ask(batcher):
        gate.open.set()
        with monkeypatch.context() as patch:
            name = (gate, "classifier") if culprit == "classifier" else (form, "answer")
            patch.setattr(*name, None)
            for found in await asyncio.gather(
                *(batcher.ask(["where"], form) for _ in range(3)), return_exceptions=True
            ):
                assert isinstance(found, (AttributeError, TypeError))
        assert len(await batcher.ask(["where"], form)) == 1

    run(gate, ask)


def test_a_call_takes_no_more_texts_than_it_may(gate, form):
    async def ask(batcher):
        gate.open.set()
        assert len(await batcher.ask(["where"] * 10, form)) == 10

    assert run(gate, ask, max_batch=4) == [4, 4, 2]


def test_a_long_text_shares_its_call_with_few(gate, form):
    async def ask(batcher):
        gate.open.set()
        await batcher.ask([*["now"] * 20, "x" * (PADDED // 4), *["now"] * 20, "x" * 2 * PADDED, "now"], form)

    assert run(gate, ask) == [20, 4, 17, 1, 1]


def test_a_full_queue_refuses_a_request_whole_and_takes_the_next_that_fits(gate, form):
    async def ask(batcher):
        held = await first(batcher, gate, form)
        waiting = asyncio.create_task(batcher.ask(["where", "is"], form))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await batcher.ask(["now", "now"], form)
        assert batcher.depth == 2
        last = asyncio.create_task(batcher.ask(["thanks"], form))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(held, waiting, last)

    assert run(gate, ask, limit=3) == [1, 3]


def test_who_has_gone_is_not_computed(gate, form):
    async def ask(batcher):
        await first(batcher, gate, form)
        gone = asyncio.create_task(batcher.ask(["gone"], form))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        gate.open.set()
        await batcher.ask(["now"], form)

    run(gate, ask)
    assert gate.calls == [["first"], ["now"]]


def test_an_idle_classifier_waits_for_a_full_batch(gate, form):
    async def ask(batcher):
        gate.open.set()
        await asyncio.gather(*(batcher.ask([text], form) for text in ("where", "is", "my")))

    assert run(gate, ask, max_batch=3, max_wait=3600) == [3]


def test_closing_answers_what_waits(gate, form):
    tasks = []

    async def ask(batcher):
        tasks.append(await first(batcher, gate, form))
        tasks.append(asyncio.create_task(batcher.ask(["where", "now"], form)))
        await asyncio.sleep(0)

    run(gate, ask, max_wait=3600, max_batch=1)
    assert [len(task.result()) for task in tasks] == [1, 2]


def test_no_texts_need_no_call(gate, form):
    async def ask(batcher):
        assert await batcher.ask([], form) == []

    assert run(gate, ask) == []


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_however_texts_are_parted_each_has_the_answer_that_it_has_alone(classifier, texts, closely, data):
    parts = data.draw(st.lists(st.lists(st.sampled_from(texts), max_size=9), max_size=9))
    options = [data.draw(st.tuples(st.none() | st.integers(1, 4), st.booleans())) for _ in parts]
    gate = Gate(classifier)
    gate.open.set()

    async def ask(batcher):
        forms = [Plain(classifier.manifest.heads, *each) for each in options]
        found = await asyncio.gather(*map(batcher.ask, parts, forms))
        for part, (top_k, scores), answers in zip(parts, options, found, strict=True):
            assert closely(answers, [classifier(text, top_k=top_k, scores=scores) for text in part])

    assert sum(run(gate, ask, max_batch=data.draw(st.integers(1, 20)))) == sum(map(len, parts))


def test_logits_of_a_batch_are_those_of_the_text_alone(classifier, texts):
    # what the comparisons above rest on: fp32, so the texts beside one move the last digits alone
    together = classifier.logits(texts, batch_size=16)
    alone = [classifier.logits(text) for text in texts]
    for head, rows in together.items():
        np.testing.assert_allclose(rows, np.concatenate([one[head] for one in alone]), atol=1e-5)
