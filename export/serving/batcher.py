"""Dynamic batching: texts of concurrent requests share one call of the classifier.

Requests put their texts into a bounded queue. A thread takes texts from it in order of arrival, as many as
are waiting when the previous call is done, so batches grow with the load and a single text does not wait.
A batch is limited in texts and in padded characters (texts times the length of the longest one), so one long
text does not delay many short ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from threading import Condition, Thread
from time import monotonic
from typing import Generic, TypeVar

MAX_PADDED_CHARACTERS = 16_384  # 64 texts of 256 characters

T = TypeVar("T")


class QueueFullError(Exception):
    """The queue has no room for the texts of a request."""


class InvalidTextError(Exception):
    """The classifier rejected a text. The message is the classifier's."""


class ClassifierError(Exception):
    """The classifier failed. The cause may be any exception, such as a panic of native code."""


@dataclass(slots=True)
class _Item(Generic[T]):
    """A queued text and the future of its result. An exception is a result too."""

    text: str
    future: asyncio.Future[T | Exception]
    arrived: float


class Batcher(Generic[T]):
    """The queue of one classifier and the thread that runs it. Create and call it in one event loop.

    Args:
        classify: returns a result for each text, or raises ValueError for an invalid text. It is called in
            the thread of the batcher.
        max_batch: maximum number of texts per call.
        max_wait: seconds an idle classifier waits for a batch to fill.
        queue_size: maximum number of queued texts.
        on_batch: called in the event loop after each call with the number of texts and the seconds it took.
    """

    def __init__(
        self,
        classify: Callable[[list[str]], Sequence[T]],
        *,
        max_batch: int,
        max_wait: float,
        queue_size: int,
        on_batch: Callable[[int, float], None],
    ) -> None:
        self._classify, self._on_batch = classify, on_batch
        self._max_batch, self._max_wait, self._queue_size = min(max_batch, queue_size), max_wait, queue_size
        self._queue: deque[_Item[T]] = deque()
        self._changed = Condition()  # guards the queue and the two flags
        self._flushing = self._closing = False
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        self._began = inf  # when the current call began
        self._thread = Thread(target=self._run, name="classifier", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Number of queued texts."""
        return len(self._queue)

    def responds(self, seconds: float) -> bool:
        """Whether the thread runs and its current call of the classifier has not taken longer than this."""
        return self._thread.is_alive() and monotonic() - self._began <= seconds

    async def submit(self, texts: Sequence[str]) -> list[T]:
        """The results of the texts, in order. Cancelling removes the texts from the queue.

        Raises:
            QueueFullError: the queue has no room for all texts. None of them is queued.
            InvalidTextError: the classifier rejected a text.
            ClassifierError: the classifier failed.
        """
        arrived = monotonic()
        items: list[_Item[T]] = [_Item(text, self._loop.create_future(), arrived) for text in texts]
        with self._changed:
            if len(self._queue) + len(items) > self._queue_size:
                raise QueueFullError
            self._queue.extend(items)
            self._changed.notify()
        results: list[T] = []
        try:
            for item in items:
                result = await item.future
                if isinstance(result, Exception):
                    raise result
                results.append(result)
        finally:
            for item in items:
                item.future.cancel()  # no effect on a finished future
        return results

    def flush(self) -> None:
        """Stop waiting for batches to fill, now and for all later batches."""
        with self._changed:
            self._flushing = True
            self._changed.notify()

    async def close(self) -> None:
        """Return when all queued texts are classified. Do not submit texts after this."""
        with self._changed:
            self._closing = self._flushing = True
            self._changed.notify()
        await self._closed

    def _run(self) -> None:
        """Classify batches until the batcher is closed. Runs in the thread, which no exception ends."""
        with suppress(RuntimeError):  # the event loop is closed
            while True:
                batch: list[_Item[T]] = []
                start = monotonic()
                try:
                    with self._changed:
                        self._changed.wait_for(lambda: self._queue or self._closing)
                        if not self._queue:
                            break
                        wait = self._queue[0].arrived + self._max_wait - monotonic()
                        if wait > 0 and not self._flushing:
                            self._changed.wait_for(self._is_full, wait)
                        self._take(batch)
                    self._began = start = monotonic()
                    results = self._compute(batch) if batch else []
                except BaseException as error:
                    results = [_failure(error)] * len(batch)
                self._began = inf
                self._loop.call_soon_threadsafe(self._deliver, batch, results, monotonic() - start)
            self._loop.call_soon_threadsafe(self._closed.set_result, None)

    def _is_full(self) -> bool:
        return len(self._queue) >= self._max_batch or self._flushing

    def _take(self, batch: list[_Item[T]]) -> None:
        """Move the next texts from the queue to the batch, without cancelled texts."""
        longest = 0
        while self._queue and len(batch) < self._max_batch:
            item = self._queue[0]
            if not item.future.done():
                longest = max(longest, len(item.text))
                if batch and (len(batch) + 1) * longest > MAX_PADDED_CHARACTERS:
                    break
                batch.append(item)
            self._queue.popleft()

    def _compute(self, batch: list[_Item[T]]) -> Sequence[T | Exception]:
        """A result or an exception for each text. If the call fails, every text is tried alone."""
        try:
            results = self._classify([item.text for item in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} texts have {len(results)} results")
            return results
        except BaseException as error:  # also a panic of native code
            if len(batch) > 1:
                return [self._compute([item])[0] for item in batch]
            return [InvalidTextError(str(error)) if isinstance(error, ValueError) else _failure(error)]

    def _deliver(self, batch: list[_Item[T]], results: Sequence[T | Exception], seconds: float) -> None:
        for item, result in zip(batch, results, strict=True):
            if not item.future.done():  # cancelled during the call
                item.future.set_result(result)
        if batch:
            self._on_batch(len(batch), seconds)


def _failure(error: BaseException) -> ClassifierError:
    failure = ClassifierError()
    failure.__cause__ = error
    return failure
