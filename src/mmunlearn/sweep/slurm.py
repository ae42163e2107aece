"""What Slurm itself says of a user's jobs.

`squeue` is asked, not `sacct`: that one needs an accounting database, which many clusters lack, and without it a job that was
cancelled would be waited for without end. A job carries its folder and its settings in its name, so that a sweep that was
killed, and is repeated, finds what it had put into the queue, even if it died before it could note the number.
"""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mmunlearn.errors import RunError
from mmunlearn.run import fingerprint
from mmunlearn.sweep.jobs import Job

EVERY = 5.0
"""Seconds between two questions to Slurm, each about all jobs at once."""
LOST = frozenset({"CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "DEADLINE", "REVOKED"})
"""States in which Slurm has ended a job that can go on from its checkpoint."""
DESTROYED = frozenset({"OUT_OF_MEMORY", "BOOT_FAIL"})
"""States in which a job could leave no result; one that is there is of an attempt before."""
OVER = LOST | DESTROYED | {"COMPLETED", "FAILED"}
"""All states in which a job does not run and never will."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A line of Slurm's list."""

    number: str
    state: str
    name: str


def squeue() -> list[Listed] | None:
    """This user's jobs, also those that have ended in the last minutes; None if Slurm does not answer."""
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all", "--format=%i|%T|%j"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    lines = [line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    return [Listed(number=number.strip(), state=state, name=name.strip()) for number, state, name in lines]


@dataclass
class Queue:
    """Slurm's list, asked for now and then."""

    ask: Callable[[], list[Listed] | None] = squeue
    every: float = EVERY
    listed: dict[str, Listed] = field(default_factory=dict)
    """By number, as of the last answer."""
    answered: float = float("-inf")
    """When that answer was asked for."""
    _asked: float = float("-inf")

    def refresh(self) -> bool:
        """Ask; whether there was an answer."""
        self._asked = time.monotonic()
        found = self.ask()
        if found is not None:
            self.listed, self.answered = {entry.number: entry for entry in found}, self._asked
        return found is not None

    def is_over(self, number: str, since: float) -> bool:
        """Whether an answer younger than `since` says that a job has ended, or does not know it any more."""
        if time.monotonic() - self._asked >= self.every:
            self.refresh()
        return self.answered >= since and (number not in self.listed or self.listed[number].state in OVER)

    def state(self, number: str) -> str:
        """As it was last told."""
        return self.listed[number].state if number in self.listed else "unknown"


@dataclass(frozen=True)
class Earlier:
    """What this user had in the queue before a sweep began."""

    jobs: tuple[Listed, ...]

    @classmethod
    def of(cls, queue: Queue) -> "Earlier":
        """Look.

        Raises:
            RunError: Slurm does not answer.
        """
        if not queue.refresh():
            raise RunError("squeue does not answer, so nobody knows which jobs are in Slurm's queue. Try again when it does.")
        return cls(tuple(entry for entry in queue.listed.values() if entry.state not in OVER))

    def number(self, job: Job) -> str | None:
        """Of the job in the queue that is for the same folder and has the same settings.

        Raises:
            RunError: there is one with other settings.
        """
        folder, settings = _marks(job)
        for entry in self.jobs:
            parts = entry.name.rsplit(".", 2)
            if len(parts) == 3 and parts[1] == folder:
                if parts[2] != settings:
                    raise RunError(
                        f"{job.folder}: job {entry.number} in Slurm's queue is for this folder, with other settings. Wait for "
                        f"its end, end it with `scancel {entry.number}`, or choose another run.dir."
                    )
                return entry.number
        return None


def name_of(job: Job, sweep: str) -> str:
    """What a job is called in the queue: the sweep, then marks of its folder and its settings."""
    return ".".join((sweep, *_marks(job)))


def _marks(job: Job) -> tuple[str, str]:
    elsewhere = ("run.dir", "run.resume")  # the first is the folder, however it was typed
    settings = sorted(word for word in job.overrides if word.lstrip("+~").split("=")[0] not in elsewhere)
    return fingerprint(str(job.folder.resolve())), fingerprint(settings)
