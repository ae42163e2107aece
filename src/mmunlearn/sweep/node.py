"""What a node of a cluster does for a job of a sweep."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mmunlearn.sweep.runners import opened

Begun = Callable[["subprocess.Popen[bytes]"], None]


def run_command(command: Callable[[], Sequence[str]], log: str) -> int:
    """Run a command, write all that it says into a file, and tell its exit code.

    Args:
        command: asked for only now: a job that Slurm has put back into the queue goes on from its checkpoint.
        log: a file.
    """
    with opened(Path(log)) as file, _time_limit_noted() as begun:
        process = subprocess.Popen(list(command()), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            begun(process)
            return process.wait()
        finally:
            if process.poll() is None:  # interrupted: nobody else would end it
                process.terminate()
                process.wait()


@contextmanager
def _time_limit_noted() -> Iterator[Begun]:
    """Turn the signal by which submitit has Slurm announce a time limit into SIGTERM, at which a command saves its state.

    Slurm sends its signals to every process of a job. The announcement would end the command at once, so that one is begun
    while it is ignored. The first signal of either kind is passed on as SIGTERM, in case it reached this process alone; the
    command takes two within seconds for one. A later one is not, since it would end the command before it has saved.
    """
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    if threading.current_thread() is not threading.main_thread() or number == signal.SIGTERM:
        yield lambda process: None
        return
    told: list[int] = []
    running: list[subprocess.Popen[bytes]] = []
    terminated = signal.getsignal(signal.SIGTERM)

    def receive(received: int, frame: FrameType | None) -> None:
        if not told:
            for process in running:
                process.terminate()
        told.append(received)
        if received == signal.SIGTERM and callable(terminated):
            terminated(received, frame)  # whoever waits for this process wants to know too

    def begun(process: "subprocess.Popen[bytes]") -> None:
        running.append(process)
        if told:
            process.terminate()
        signal.signal(number, receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # one that came meanwhile is delivered now

    signal.signal(signal.SIGTERM, receive)
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield begun
    finally:
        signal.signal(signal.SIGTERM, terminated)
        signal.signal(number, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
