# SPDX-License-Identifier: Apache-2.0
"""Signals wait for the step, once."""

import signal
import threading

import pytest

from jaxneuro.activations.interrupts import Held


def test_nothing_is_held_before_hold():
    with pytest.raises(KeyboardInterrupt), Held():
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_acts_at_once():
    with Held() as signals:
        signals.hold()
        signal.raise_signal(signal.SIGINT)
        assert signals.caught == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.caught = None  # or it would be raised a third time


def test_an_error_in_the_block_goes_first():
    before = signal.getsignal(signal.SIGTERM)

    def failing():
        with Held() as signals:
            signals.hold()
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        failing()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_own_handler_sees_it_afterwards():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Held() as signals:
            signals.hold()
            signal.raise_signal(signal.SIGTERM)
            assert not seen
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_hold_nothing():
    failures = []

    def work():
        try:
            with Held() as signals:
                signals.hold()
        except Exception as e:
            failures.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
