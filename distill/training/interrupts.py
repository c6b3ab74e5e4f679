"""Ctrl-C and SIGTERM during a training: the step ends, and a checkpoint is saved before the process does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A training stopped after it saved a checkpoint; the message says where it continues.

    Attributes:
        exit_code: Of the process: 128 and the number of the signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def deferred_signals(*, active: bool) -> Iterator[Callable[[], int]]:
    """A function that returns the number of the signal that was received in the block, 0 if none was.

    The first SIGINT or SIGTERM is only noted; a second one has its usual effect. A signal that the process
    ignores, as one in the background of a shell does, stays ignored.

    Args:
        active: False leaves signals as they are; so does any thread but the main one.
    """
    received = [0]
    usual: dict[int, signal._HANDLER] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received[0] = number
        restore()

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    if active and threading.current_thread() is threading.main_thread():
        for asked in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(asked) == signal.SIG_IGN:
                continue
            usual[asked] = signal.signal(asked, note) or signal.SIG_DFL
    try:
        yield lambda: received[0]
    finally:
        restore()
