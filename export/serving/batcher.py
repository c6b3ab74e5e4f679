"""Texts of many requests in one call: a bounded queue, and a thread that takes from it.

While a classifier computes, texts gather; when it is done it takes those that wait, first come first
served, so a batch grows with the load and a lone text waits for nobody. A batch is bounded in texts
and in texts times the characters of the longest, so that a long one does not hold many short ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Thread
from time import monotonic, perf_counter
from typing import Any, Protocol

from export.runtime.probabilities import Floats

PADDED = 16_384  # characters: 64 texts of 256, or one that is longer
_RUN = 16  # of a batch, sorted by length, computed at once: fewer pad less, more cost less a text


class Computes(Protocol):
    """What is asked of a classifier here."""

    def logits(self, texts: Sequence[str], *, batch_size: int) -> Mapping[str, Floats]:
        """The logits of each head, [texts, labels]. Raises: ValueError, which text is wrong."""


class Form(Protocol):
    """How a request wants its answers. Texts of one form, the same object, are answered together."""

    def answer(self, logits: Mapping[str, Floats]) -> list[Any]:
        """An answer to each row of the logits."""


class QueueFull(Exception):
    """More texts wait than may."""


class BadText(Exception):
    """A text that the classifier refuses, in its words."""


class Ticket:
    """One request: its texts, and a future that all their answers or the first error resolve."""

    __slots__ = ("arrived", "form", "found", "future", "missing", "texts")

    def __init__(self, texts: Sequence[str], form: Form, future: asyncio.Future[list[Any]]) -> None:
        self.texts, self.form, self.future, self.arrived = texts, form, future, monotonic()
        self.found: list[Any] = [None] * len(texts)
        self.missing = len(texts)

    def put(self, position: int, answer: Any) -> None:
        """The answer to one text, or the exception that it raised."""
        if self.future.done():  # cancelled, or another text of it failed
            return
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
            return
        self.found[position] = answer
        self.missing -= 1
        if not self.missing:
            self.future.set_result(self.found)


Item = tuple[Ticket, int]


class Batcher:
    """One classifier, its queue, and the thread in which it computes. Asked in one event loop.

    Args:
        classifier: what computes the logits, in a thread of its own.
        max_batch: texts a call at most.
        max_wait: seconds that an idle classifier waits for a batch to fill.
        limit: texts that may wait.
        told: called in the event loop after each call, with its number of texts and its seconds.
    """

    def __init__(
        self,
        classifier: Computes,
        *,
        max_batch: int,
        max_wait: float,
        limit: int,
        told: Callable[[int, float], None],
    ) -> None:
        self._classifier, self._told = classifier, told
        self._max_batch, self._max_wait, self._limit = min(max_batch, limit), max_wait, limit
        self._waiting: deque[Item] = deque()
        self._changed = Condition()  # guards what waits, and whether more may come
        self._hurried = self._closing = False
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        Thread(target=self._work, name="classifier", daemon=True).start()

    @property
    def depth(self) -> int:
        """How many texts wait."""
        return len(self._waiting)

    async def ask(self, texts: Sequence[str], form: Form) -> list[Any]:
        """The answers to the texts of one request, in order. Cancelled, what of it waits is passed over.

        Raises:
            QueueFull: no room for them all; none is queued.
            BadText: a text that the classifier refuses.
        """
        if not texts:
            return []
        ticket = Ticket(texts, form, self._loop.create_future())
        with self._changed:
            if len(self._waiting) + len(texts) > self._limit:
                raise QueueFull
            self._waiting.extend((ticket, position) for position in range(len(texts)))
            self._changed.notify()
        return await ticket.future

    def hurry(self) -> None:
        """From now on no batch waits to fill: those who could fill it are refused."""
        with self._changed:
            self._hurried = True
            self._changed.notify()

    async def close(self) -> None:
        """Returns when all that was asked is answered; nothing may be asked after it was called."""
        with self._changed:
            self._closing = self._hurried = True
            self._changed.notify()
        await self._closed

    def _work(self) -> None:
        """Takes batches until closed; in the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    break
                left = self._waiting[0][0].arrived + self._max_wait - monotonic()
                if left > 0 and not self._hurried:
                    self._changed.wait_for(self._is_full, left)
                batch = self._take()
            start = perf_counter()
            answers = self._compute(batch) if batch else []
            self._loop.call_soon_threadsafe(self._deliver, batch, answers, perf_counter() - start)
        self._loop.call_soon_threadsafe(self._closed.set_result, None)

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._max_batch or self._hurried

    def _take(self) -> list[Item]:
        """The next batch, off the queue; without those whose requests have ended."""
        batch: list[Item] = []
        longest = 0
        while self._waiting and len(batch) < self._max_batch:
            ticket, position = self._waiting[0]
            if not ticket.future.done():
                longest = max(longest, len(ticket.texts[position]))
                if batch and (len(batch) + 1) * longest > PADDED:
                    break
                batch.append((ticket, position))
            self._waiting.popleft()
        return batch

    def _compute(self, batch: list[Item]) -> list[Any]:
        """An answer or an exception to each. Where a call fails, each text is asked by itself."""
        try:
            texts = [ticket.texts[position] for ticket, position in batch]
            logits = self._classifier.logits(texts, batch_size=_RUN)
        except Exception as error:
            if len(batch) > 1:
                return [self._compute([item])[0] for item in batch]
            return [BadText(str(error)) if isinstance(error, ValueError) else error]
        try:
            return _answers([ticket.form for ticket, _ in batch], logits)
        except Exception as error:  # no text's fault
            return [error] * len(batch)

    def _deliver(self, batch: list[Item], answers: list[Any], seconds: float) -> None:
        for (ticket, position), answer in zip(batch, answers, strict=True):
            ticket.put(position, answer)
        if batch:
            self._told(len(batch), seconds)


def _answers(forms: list[Form], logits: Mapping[str, Floats]) -> list[Any]:
    """The answer to each row of the logits, in the form of its request."""
    first = forms[0]
    if all(form is first for form in forms):
        return first.answer(logits)
    answers: list[Any] = [None] * len(forms)
    for form in {id(form): form for form in forms}.values():
        rows = [row for row, other in enumerate(forms) if other is form]
        found = form.answer({head: part[rows] for head, part in logits.items()})
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
    return answers
