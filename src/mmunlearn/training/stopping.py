"""A run that is told to stop (SIGTERM: a cluster's queue, a container, `kill`) finishes its step, saves and ends.

Told once more some seconds later, it ends as soon as Python gets to run, without saving.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO = 5.0
"""Seconds in which further signals count as the first one once more: Slurm sends two when another job takes the node."""


class StopRequest:
    """Whether the process was told to stop."""

    def __init__(self) -> None:
        """Not yet."""
        self.received = False
        self._first = float("inf")

    def __call__(self) -> bool:
        """Whether it was."""
        return self.received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._first >= ECHO:  # somebody insists
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = True
        self._first = min(self._first, now)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Take note of SIGTERM inside the `with` block instead of ending at once; outside the main thread nothing changes."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request._receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def outlive_stop_requests(worker: int) -> None:
    """For processes that load data: the main process, which is told to stop at the same time, still needs them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
