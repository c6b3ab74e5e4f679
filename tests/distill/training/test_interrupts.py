import signal
from collections.abc import Callable, Iterator

import pytest

from distill.training.interrupts import deferred_signals


@pytest.fixture
def handled() -> Iterator[Callable[[signal.Handlers | Callable[..., object]], object]]:
    """A function that sets the handler of SIGINT, which a background job ignores, for one test."""
    usual = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, usual)


def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(handled) -> None:
    handled(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), deferred_signals(active=True) as received:
        assert not received()
        signal.raise_signal(signal.SIGINT)
        assert received() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_the_process_ignores_stays_ignored(handled) -> None:
    handled(signal.SIG_IGN)
    with deferred_signals(active=True) as received:
        signal.raise_signal(signal.SIGINT)
        assert not received()
