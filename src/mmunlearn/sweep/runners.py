"""Three ways to run the jobs of a sweep: in this process, in processes side by side, or through a cluster's queue."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmunlearn.errors import ConfigError
from mmunlearn.sweep.jobs import Ended, Job, SweepFolder
from mmunlearn.training.stopping import StopRequest, listening

PAUSE = 0.1
"""Seconds between two looks at the jobs."""
STARTER = "import sys; sys.argv[0] = 'mmunlearn'; from mmunlearn.cli import main; main()"
STOPPED, INTERRUPTED = 143, 130


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

    If this process is told to stop, it tells the jobs, waits until they have saved their state, and begins no more.

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
                running.jobs[place] = job, start(job, place)
        time.sleep(pause)
        for place, (job, handle) in list(running.jobs.items()):
            code = handle.poll()
            if code is not None:
                del running.jobs[place]
                code = 128 - code if code < 0 else code  # as a shell counts signals
                watcher.ended(job, Ended(code=code, error=said(job) if code else ""))


def last_words(log: Path, code_hint: str = "") -> str:
    """What a failed job said: the message that explains it, else the last line of its log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()] if log.is_file() else []
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
        log = folder.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
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


@dataclass(frozen=True)
class _Queued:
    """A job of a cluster, as submitit keeps it."""

    job: Any
    log: Path

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        if self.job.exception() is None:
            return int(self.job.result())
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"\nThe cluster ended the job: {str(self.job.exception()).strip().splitlines()[-1]}\n")
        return 1

    def stop(self) -> None:
        self.job.cancel(check=False)


def cluster_start(folder: SweepFolder, command: Callable[[Job], list[str]], parameters: Mapping[str, Any]) -> Start:
    """Start jobs through submitit, by default on Slurm.

    Args:
        folder: of the sweep; every node must see it under the same path.
        command: of a job.
        parameters: submitit's (slurm_partition, gpus_per_node, timeout_min, …), and `cluster`: slurm, local or debug.

    Raises:
        ConfigError: submitit is not installed, there is no such cluster, or it does not know a parameter.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise ConfigError("sweep.launcher=slurm needs submitit: pip install 'mmunlearn[slurm]'.") from error
    own = dict(parameters)
    cluster = str(own.pop("cluster", "slurm"))
    try:
        executor = submitit.AutoExecutor(folder=folder.logs / "submitit", cluster=cluster)
        executor.update_parameters(**{"name": folder.root.name, **own})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"sweep.slurm: submitit does not take this ({error}).") from error

    def start(job: Job, place: int) -> Handle:
        log = folder.log(job.name)
        return _Queued(executor.submit(run_command, command(job), str(log)), log)

    return start


def run_command(command: Sequence[str], log: str) -> int:
    """What a node of a cluster does: run a command, write all that it says into a file, and tell its exit code."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("ab") as file:
        done = subprocess.run(list(command), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    return done.returncode
