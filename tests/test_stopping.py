"""A signal sets a flag and does nothing else, until the block ends."""

import os
import signal
import threading

import pytest

from sorl_fast.errors import Stopped
from sorl_fast.stopping import stop_flag

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers():
    """Handlers of somebody's own, which must be back after each test."""
    mine = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in mine.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_a_signal_sets_the_flag(number):
    with stop_flag("all is saved") as flag:
        assert not flag
        flag.check()
        os.kill(os.getpid(), number)
        assert flag
        assert flag.signal == number.name
        with pytest.raises(Stopped, match="all is saved"):
            flag.check()


def test_the_first_signal_is_the_one_named_and_a_second_changes_nothing():
    with stop_flag() as flag:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert flag.signal == "SIGTERM"


@pytest.mark.parametrize("first", SIGNALS, ids=lambda n: n.name)
def test_a_second_ctrl_c_may_interrupt(first):
    with pytest.raises(KeyboardInterrupt), stop_flag(second_interrupts=True) as flag:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.signal == first.name
        os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_leaves_signals_alone():
    found = []

    def work():
        with stop_flag() as flag:
            found.append((bool(flag), [signal.getsignal(number) for number in SIGNALS]))

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
