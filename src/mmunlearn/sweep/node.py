"""What a node of a cluster does for a job of a sweep."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
        begun(process)
        return process.wait()


@contextmanager
def _time_limit_noted() -> Iterator[Begun]:
    """Turn the signal by which submitit has Slurm announce a time limit into SIGTERM, at which a command saves its state.

    Slurm sends its signals to every process of a job. The announcement would end the command at once, so that one is begun
    while it is ignored. SIGTERM reaches the command by itself; it is not passed on, since one that came
    later would end the command before it has saved.
    """
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    if threading.current_thread() is not threading.main_thread() or number == signal.SIGTERM:
        yield lambda process: None
        return
    told: list[int] = []

    def announced(process: "subprocess.Popen[bytes]", received: int, frame: FrameType | None) -> None:
        if not told:
            process.terminate()
        told.append(received)

    def begun(process: "subprocess.Popen[bytes]") -> None:
        signal.signal(number, partial(announced, process))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # one that came meanwhile is delivered now

    terminated = signal.signal(signal.SIGTERM, lambda received, frame: told.append(received))
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield begun
    finally:
        signal.signal(signal.SIGTERM, terminated)
        signal.signal(number, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
