"""Two ways to run the jobs of a sweep: in this process, or each somewhere else, such as in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from mmunlearn.errors import ConfigError, UserError
from mmunlearn.sweep.jobs import Ended, Job, SweepFolder
from mmunlearn.training.stopping import StopRequest, listening

PAUSE = 0.1
"""Seconds between two looks at the jobs."""
STARTER = "import sys; sys.argv[0] = 'mmunlearn'; from mmunlearn.cli import main; main()"
STOPPED, INTERRUPTED = 143, 130
AGAIN = "--- tried again ---"


class Watcher(Protocol):
    """Who is told of each job."""

    def started(self, job: Job) -> None:
        """It has begun."""

    def ended(self, job: Job, how: Ended) -> None:
        """It is over."""


class Handle(Protocol):
    """A job that runs somewhere."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def stop(self) -> None:
        """Tell it to save its state and end."""


Start = Callable[[Job, int], Handle]
"""Starts a job at a place: a number from 0 to how many run at a time."""


def in_turn(jobs: Sequence[Job], here: Callable[[Job], Ended], watcher: Watcher) -> None:
    """One after the other in this process; if it is told to stop, those that are left are not begun."""
    for job in jobs:
        watcher.started(job)
        try:
            how = here(job)
        except KeyboardInterrupt:
            watcher.ended(job, Ended(code=INTERRUPTED, error="stopped by Ctrl-C"))
            raise
        watcher.ended(job, how)
        if how.code == STOPPED:
            return


@dataclass
class _Running:
    """What runs now, by place."""

    jobs: dict[int, tuple[Job, Handle]] = field(default_factory=dict)
    told: bool = False

    def stop(self) -> None:
        """Tell every job once."""
        if not self.told:
            for _, handle in self.jobs.values():
                handle.stop()
        self.told = True


def side_by_side(
    jobs: Sequence[Job], start: Start, watcher: Watcher, *, parallel: int, said: Callable[[Job], str], pause: float = PAUSE
) -> None:
    """So many at a time, each somewhere else; a job that fails, or is killed, does not touch the others.

    If this process is told to stop, it tells the jobs, waits until they have saved their state, and begins no more. If one
    cannot even be begun for want of a right setting, no more are begun either.

    Args:
        jobs: in the order in which they are begun.
        start: begins one.
        watcher: is told.
        parallel: so many at a time.
        said: what a job wrote last.
        pause: seconds between two looks.
    """
    waiting, running = list(jobs), _Running()
    with listening() as request:
        try:
            _loop(waiting, running, request, start, watcher, parallel, said, pause)
        except KeyboardInterrupt:
            running.stop()
            for job, handle in running.jobs.values():
                while handle.poll() is None:
                    time.sleep(pause)
                watcher.ended(job, Ended(code=INTERRUPTED, error="stopped by Ctrl-C"))
            raise


def _loop(
    waiting: list[Job],
    running: _Running,
    request: StopRequest,
    start: Start,
    watcher: Watcher,
    parallel: int,
    said: Callable[[Job], str],
    pause: float,
) -> None:
    while running.jobs or (waiting and not request()):
        if request():
            running.stop()
        for place in range(parallel):
            if waiting and place not in running.jobs and not request():
                job = waiting.pop(0)
                watcher.started(job)
                try:
                    running.jobs[place] = job, start(job, place)
                except UserError as error:
                    watcher.ended(job, Ended(code=error.exit_code, error=str(error)))
                    if isinstance(error, ConfigError):  # it would be the same with all others
                        waiting.clear()
        time.sleep(pause)
        for place, (job, handle) in list(running.jobs.items()):
            code = handle.poll()
            if code is not None:
                del running.jobs[place]
                code = 128 - code if code < 0 else code  # as a shell counts signals
                watcher.ended(job, Ended(code=code, error=said(job) if code else ""))


def opened(log: Path) -> BinaryIO:
    """A job's log, to be written on; a line divides what earlier attempts said."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("ab")
    if file.tell():
        file.write(f"\n{AGAIN}\n".encode())
        file.flush()
    return file


def last_words(log: Path, code_hint: str = "") -> str:
    """What a job's last attempt said: the message that explains its failure, else the last line of the log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.rpartition(f"\n{AGAIN}\n")[2].splitlines()]
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("mmunlearn: "):
            return "\n".join(lines[number:]).removeprefix("mmunlearn: ").strip()
    return next((line for line in reversed(lines) if line), code_hint or "it said nothing; was it killed?")


def command_of(verb: str, words: Sequence[str]) -> list[str]:
    """What runs one job in a process of its own."""
    return [sys.executable, "-c", STARTER, verb, *words]


def local_start(folder: SweepFolder, command: Callable[[Job], list[str]], devices: Sequence[str], parallel: int) -> Start:
    """Start jobs as processes of this machine.

    Args:
        folder: of the sweep, for the logs.
        command: of a job.
        devices: GPUs, which the places share out; none: every job sees all.
        parallel: how many run at a time; without OMP_NUM_THREADS they share the cores evenly.
    """

    def start(job: Job, place: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
        with opened(folder.log(job.name)) as file:
            return subprocess.Popen(
                command(job), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )

    def handle(job: Job, place: int) -> Handle:
        return _Process(start(job, place))

    return handle


@dataclass(frozen=True)
class _Process:
    """A job of this machine."""

    process: "subprocess.Popen[bytes]"

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()
