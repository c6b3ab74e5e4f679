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
from threading import Condition, Thread
from time import monotonic, perf_counter
from typing import Generic, TypeVar

MAX_PADDED_CHARACTERS = 16_384  # 64 texts of 256 characters

T = TypeVar("T")


class QueueFullError(Exception):
    """The queue has no room for the texts of a request."""


class InvalidTextError(Exception):
    """The classifier rejected a text. The message is the classifier's."""


class _Pending(Generic[T]):
    """A request in the queue. Its future resolves with the results of all texts, or with the first error."""

    def __init__(self, texts: Sequence[str], future: asyncio.Future[list[T]]) -> None:
        self.texts, self.future, self.arrived = texts, future, monotonic()
        self._results: dict[int, T] = {}

    def set_result(self, position: int, result: T | Exception) -> None:
        """Store the result of one text, or the exception it raised."""
        if self.future.done():  # cancelled, or another text failed
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
            return
        self._results[position] = result
        if len(self._results) == len(self.texts):
            self.future.set_result([self._results[position] for position in range(len(self.texts))])


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
        # a request and the position of one of its texts
        self._queue: deque[tuple[_Pending[T], int]] = deque()
        self._changed = Condition()  # guards the queue and the two flags
        self._flushing = self._closing = False
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        Thread(target=self._run, name="classifier", daemon=True).start()

    @property
    def depth(self) -> int:
        """Number of queued texts."""
        return len(self._queue)

    async def submit(self, texts: Sequence[str]) -> list[T]:
        """The results of the texts, in order. Cancelling removes the texts from the queue.

        Raises:
            QueueFullError: the queue has no room for all texts. None of them is queued.
            InvalidTextError: the classifier rejected a text.
        """
        if not texts:
            return []
        pending = _Pending(texts, self._loop.create_future())
        with self._changed:
            if len(self._queue) + len(texts) > self._queue_size:
                raise QueueFullError
            self._queue.extend((pending, position) for position in range(len(texts)))
            self._changed.notify()
        return await pending.future

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
        """Classify batches until the batcher is closed. Runs in the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    break
                wait = self._queue[0][0].arrived + self._max_wait - monotonic()
                if wait > 0 and not self._flushing:
                    self._changed.wait_for(self._is_full, wait)
                batch = self._take()
            start = perf_counter()
            results = self._compute(batch) if batch else []
            self._loop.call_soon_threadsafe(self._deliver, batch, results, perf_counter() - start)
        self._loop.call_soon_threadsafe(self._closed.set_result, None)

    def _is_full(self) -> bool:
        return len(self._queue) >= self._max_batch or self._flushing

    def _take(self) -> list[tuple[_Pending[T], int]]:
        """Remove the next batch from the queue, without texts of cancelled or failed requests."""
        batch: list[tuple[_Pending[T], int]] = []
        longest = 0
        while self._queue and len(batch) < self._max_batch:
            pending, position = self._queue[0]
            if not pending.future.done():
                longest = max(longest, len(pending.texts[position]))
                if batch and (len(batch) + 1) * longest > MAX_PADDED_CHARACTERS:
                    break
                batch.append((pending, position))
            self._queue.popleft()
        return batch

    def _compute(self, batch: list[tuple[_Pending[T], int]]) -> Sequence[T | Exception]:
        """A result or an exception for each text. If the call fails, every text is tried alone."""
        try:
            return self._classify([pending.texts[position] for pending, position in batch])
        except Exception as error:
            if len(batch) > 1:
                return [self._compute([item])[0] for item in batch]
            return [InvalidTextError(str(error)) if isinstance(error, ValueError) else error]

    def _deliver(
        self, batch: list[tuple[_Pending[T], int]], results: Sequence[T | Exception], seconds: float
    ) -> None:
        for (pending, position), result in zip(batch, results, strict=True):
            pending.set_result(position, result)
        if batch:
            self._on_batch(len(batch), seconds)
