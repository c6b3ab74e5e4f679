import signal

import pytest

from distill.training.interrupts import deferred_signals


def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_signals(active=True) as received:
        assert not received()
        signal.raise_signal(signal.SIGINT)
        assert received() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals(active=True) as received:
            signal.raise_signal(signal.SIGINT)
            assert not received()
    finally:
        signal.signal(signal.SIGINT, usual)
