"""Dynamic batching: texts of concurrent requests share one call of the classifier.

Requests put their texts into a bounded queue. A thread takes texts from it in order of arrival, as many as
are waiting when the previous call is done, so batches grow with the load and a single text does not wait.
The rest of a request that does not fit into a batch goes behind the other requests.
A batch is limited in texts and in padded characters (texts times the length of the longest one and of its
labels), so one long text does not delay many short ones. It ends where texts with other labels begin.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from threading import Condition, Thread
from time import monotonic
from typing import Generic, TypeVar

MAX_PADDED_CHARACTERS = 16_384  # 64 texts of 256 characters

T = TypeVar("T")
G = TypeVar("G", bound=Hashable)


class QueueFullError(Exception):
    """The queue has no room for the texts of a request."""


class InvalidTextError(Exception):
    """The classifier rejected a text or its labels. The message is the classifier's.

    Attributes:
        position: number of the text in its request.
    """

    position = 0


class ClassifierError(Exception):
    """The classifier failed. The cause may be any exception, such as a panic of native code."""


@dataclass(slots=True)
class _Item(Generic[G, T]):
    """A queued text, its group and the future of its result. An exception is a result too."""

    text: str
    group: G | None
    request: object
    future: asyncio.Future[T | Exception]
    arrived: float


class Batcher(Generic[G, T]):
    """The queue of one classifier and the thread that runs it. Create and call it in one event loop.

    Args:
        classify: returns a result for each text of a group, or raises ValueError for an invalid text or
            group. It is called in the thread of the batcher.
        max_batch: maximum number of texts per call.
        max_wait: seconds an idle classifier waits for a batch to fill.
        queue_size: maximum number of queued texts.
        on_batch: called in the event loop after each call with the number of texts and the seconds it took.
        characters: the characters that are read with each text of a group, such as those of labels.
    """

    def __init__(
        self,
        classify: Callable[[list[str], G | None], Sequence[T]],
        *,
        max_batch: int,
        max_wait: float,
        queue_size: int,
        on_batch: Callable[[int, float], None],
        characters: Callable[[G | None], int] = lambda group: 0,
    ) -> None:
        self._classify, self._on_batch, self._characters = classify, on_batch, characters
        self._max_batch, self._max_wait, self._queue_size = min(max_batch, queue_size), max_wait, queue_size
        self._queue: deque[_Item[G, T]] = deque()
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

    async def submit(self, texts: Sequence[str], groups: Sequence[G | None] | None = None) -> list[T]:
        """The results of the texts, in order. Cancelling removes the texts from the queue.

        Args:
            texts: the texts of a request.
            groups: the group of each text. Only texts of one group share a call. Default: None for all.

        Raises:
            QueueFullError: the queue has no room for all texts. None of them is queued.
            InvalidTextError: the classifier rejected a text or its group.
            ClassifierError: the classifier failed.
        """
        arrived, request = monotonic(), object()
        items: list[_Item[G, T]] = [
            _Item(text, group, request, self._loop.create_future(), arrived)
            for text, group in zip(texts, groups or [None] * len(texts), strict=True)
        ]
        with self._changed:
            if len(self._queue) + len(items) > self._queue_size:
                raise QueueFullError
            self._queue.extend(items)
            self._changed.notify()
        results: list[T] = []
        try:
            for position, item in enumerate(items):
                result = await item.future
                if isinstance(result, InvalidTextError):
                    result.position = position
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
                batch: list[_Item[G, T]] = []
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

    def _take(self, batch: list[_Item[G, T]]) -> None:
        """Move the next texts of one group from the queue to the batch, without cancelled texts."""
        longest = characters = 0
        while self._queue and len(batch) < self._max_batch:
            item = self._queue[0]
            if not item.future.done():
                if not batch:
                    characters = self._characters(item.group)
                longest = max(longest, len(item.text))
                if batch and item.group != batch[0].group:
                    break
                if batch and (len(batch) + 1) * (longest + characters) > MAX_PADDED_CHARACTERS:
                    break
                batch.append(item)
            self._queue.popleft()
        # the texts of a request are adjacent: if the last one in the queue is of another, they move behind it
        if batch and self._queue and self._queue[-1].request is not batch[-1].request:
            while self._queue[0].request is batch[-1].request:
                self._queue.rotate(-1)

    def _compute(self, batch: list[_Item[G, T]]) -> Sequence[T | Exception]:
        """A result or an exception for each text. If the call fails, every text is tried alone."""
        try:
            results = self._classify([item.text for item in batch], batch[0].group)
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} texts have {len(results)} results")
            return results
        except BaseException as error:  # also a panic of native code
            if len(batch) > 1:
                return [self._compute([item])[0] for item in batch]
            return [InvalidTextError(str(error)) if isinstance(error, ValueError) else _failure(error)]

    def _deliver(self, batch: list[_Item[G, T]], results: Sequence[T | Exception], seconds: float) -> None:
        for item, result in zip(batch, results, strict=True):
            if not item.future.done():  # cancelled during the call
                item.future.set_result(result)
        if batch:
            self._on_batch(len(batch), seconds)


def _failure(error: BaseException) -> ClassifierError:
    failure = ClassifierError()
    failure.__cause__ = error
    return failure
