"""What a process does that is told to stop, once, twice at the same moment, and once more later."""

import os
import signal

import pytest

from mmunlearn.training import stopping


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, to be set."""
    seconds = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: seconds[0])
    return seconds


def test_signals_at_the_same_moment_are_one_request(clock):
    before = signal.getsignal(signal.SIGTERM)
    with stopping.listening() as request:
        assert not request()
        for later in (0.0, 0.03, 4.0):
            clock[0] = 100.0 + later
            os.kill(os.getpid(), signal.SIGTERM)
            assert request()
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_insists_ends_the_process_at_once(clock):
    child = os.fork()
    if not child:
        with stopping.listening():
            for later in (0.0, 4.0, 6.0):
                clock[0] = 100.0 + later
                os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
