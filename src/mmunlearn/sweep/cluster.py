"""Jobs of a sweep on a cluster: submitit puts them into the queue, Slurm's own list says when they have left it."""

import importlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from mmunlearn.errors import ConfigError
from mmunlearn.sweep.jobs import Job, SweepFolder
from mmunlearn.sweep.node import run_command
from mmunlearn.sweep.runners import STOPPED, Handle, Start
from mmunlearn.sweep.slurm import DESTROYED, LOST, Earlier, Queue, name_of

console = Console(stderr=True)

LATENCY = 10.0
"""Seconds that a job's result may take through a shared file system, once the job has left the queue."""


@dataclass
class Waiting:
    """A job in Slurm's queue, or on a node."""

    job: Any
    """As submitit keeps it."""
    log: Path
    queue: Queue
    since: float
    """When it was in the queue for certain."""
    latency: float = LATENCY
    _left: float | None = None
    """When it was first seen to have left the queue."""

    def poll(self) -> int | None:
        """See `runners.Handle`."""
        # The result alone does not count: a job that Slurm has put back into the queue has left one too.
        if not self.queue.is_over(self.job.job_id, self.since):
            self._left = None
            return None
        if self.job.paths.result_pickle.exists() and self.queue.state(self.job.job_id) not in DESTROYED:
            return _code(self.job, self.log)
        if self._left is None:
            self._left = time.monotonic()
        if time.monotonic() - self._left < self.latency:
            return None
        state = self.queue.state(self.job.job_id)
        see = f" See {self.job.paths.stderr}." if self.job.paths.stderr.exists() else ""
        _note(self.log, f"Slurm ended job {self.job.job_id} (state: {state}).{see}")
        return STOPPED if state in LOST else 1

    def stop(self) -> None:
        """See `runners.Handle`."""
        self.job.cancel(check=False)


@dataclass(frozen=True)
class _Tried:
    """A job of submitit's executors for trials, which know by themselves when it has ended."""

    job: Any
    log: Path

    def poll(self) -> int | None:
        return _code(self.job, self.log) if self.job.done() else None

    def stop(self) -> None:
        self.job.cancel(check=False)


def _code(job: Any, log: Path) -> int:
    """The exit code of a job that has ended; if there is none, its log says why."""
    problem = job.exception()
    if problem is None:
        return int(job.result())
    # submitit puts what went wrong between two ruled lines, and its own words around them.
    parts = [part.strip() for part in re.split(r"\n-{5,}\n", f"{problem}\n")]
    reason = (parts[1] if len(parts) > 1 and parts[1] else parts[0]).splitlines()[-1]
    _note(log, f"The node could not run the job ({reason}). See {job.paths.stderr}.")
    return 1


def _note(log: Path, message: str) -> None:
    """Write into a job's log why it ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\nmmunlearn: {message}\n")


def cluster_start(folder: SweepFolder, command: Callable[[Job], list[str]], parameters: Mapping[str, Any]) -> Start:
    """Start jobs through submitit, by default on Slurm; one that an earlier sweep has left in its queue is waited for instead.

    Args:
        folder: of the sweep; every node must see it under the same path.
        command: of a job; asked for on the node when the job begins there.
        parameters: submitit's (slurm_partition, gpus_per_node, timeout_min, …), and `cluster`: slurm, local or debug.

    Raises:
        ConfigError: submitit is not installed, there is no such cluster, or it does not know a parameter.
        RunError: Slurm does not answer.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise ConfigError("sweep.launcher=slurm needs submitit: pip install 'mmunlearn[slurm]'.") from error
    own = dict(parameters)
    cluster, place = str(own.pop("cluster", "slurm")), folder.logs / "submitit"
    name = str(own.pop("slurm_job_name", own.pop("name", folder.root.resolve().name)))
    try:
        executor = submitit.AutoExecutor(folder=place, cluster=cluster)
        executor.update_parameters(**{"name": name, **own})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"sweep.slurm: submitit does not take this ({error}).") from error

    def submitted(job: Job) -> Any:
        try:
            with redirect_stderr(StringIO()):  # submitit prints what it raises
                return executor.submit(run_command, partial(command, job), str(folder.log(job.name)))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            said = "; ".join(line.split("error: ")[-1] for line in str(error).splitlines() if line.strip())
            raise ConfigError(f"sweep.slurm: Slurm does not take the job: {said}.") from error

    if cluster != "slurm":
        return lambda job, _: _Tried(submitted(job), folder.log(job.name))
    queue = Queue()
    earlier = Earlier.of(queue)

    def start(job: Job, _: int) -> Handle:
        number = earlier.number(job)
        if number is not None:
            console.print(f"{escape(job.name)}: is in the queue already, as job {number}", highlight=False, soft_wrap=True)
            return Waiting(submitit.SlurmJob(place, number), folder.log(job.name), queue, time.monotonic())
        executor.update_parameters(name=name_of(job, name))
        handle = submitted(job)
        return Waiting(handle, folder.log(job.name), queue, time.monotonic())

    return start
