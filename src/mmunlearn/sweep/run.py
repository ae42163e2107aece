"""Runs a sweep: what is finished is skipped, what was interrupted goes on, what fails does not stop the others."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from rich.console import Console
from rich.markup import escape

from mmunlearn.config import SweepConfig
from mmunlearn.config_enums import Launcher
from mmunlearn.errors import ConfigError, StoppedError
from mmunlearn.locks import locked
from mmunlearn.run import Run
from mmunlearn.sweep.cluster import cluster_start
from mmunlearn.sweep.jobs import Ended, Index, Job, State, SweepFolder
from mmunlearn.sweep.runners import Start, command_of, in_turn, last_words, local_start, side_by_side

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run."""

    verb: str
    """As it is typed."""
    sections: tuple[str, ...]
    """Those that the verb uses."""
    flags: tuple[str, ...]
    """Hydra's, for every job."""
    folder: Path
    jobs: tuple[Job, ...]
    settings: SweepConfig
    overwrite: bool = False
    """`run.overwrite` of the composed configuration; a job whose own settings name it is judged by those."""

    def words(self, job: Job) -> list[str]:
        """What is typed to run one job alone; an interrupted one goes on."""
        own = list(job.overrides)
        given = {setting.lstrip("+").split("=")[0] for setting in own}
        if job.run.config.is_file() and not job.run.is_done and not given & {"run.resume", "run.overwrite"}:
            own += ["run.resume=true"] if "trainer" in self.sections else []
            own += ["run.overwrite=true"] if "saliency" in self.sections else []
        return [*own, f"run.dir={QuotedString(str(job.folder), Quote.single).with_quotes()}"]


def run_sweep(sweep: Sweep, here: Callable[[Sequence[str]], Ended]) -> int:
    """Run every job that is not finished yet.

    Args:
        sweep: the jobs.
        here: runs one job in this process, from its words.

    Returns:
        The exit code: 0 if every job is finished, else the largest of those that failed.

    Raises:
        ConfigError: the settings of the sweep do not go together.
        RunError: another command is using the sweep's folder.
    """
    _check(sweep.settings)
    with locked(Run(sweep.folder), main=int(os.environ.get("RANK", "0")) == 0):
        return _run(sweep, here)


def _run(sweep: Sweep, here: Callable[[Sequence[str]], Ended]) -> int:
    """The jobs, in a folder that is this process's own."""
    settings, folder = sweep.settings, SweepFolder(root=sweep.folder)
    alone = settings.launcher is Launcher.local and settings.parallel == 1
    start = None if alone else _start(sweep, folder)
    index = Index(folder)
    todo = index.plan(sweep.jobs, " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), overwrite=sweep.overwrite)
    skipped = len(sweep.jobs) - len(todo)
    console.print(
        f"Sweep: {len(sweep.jobs)} jobs in {folder.root}" + (f", {skipped} of them finished" if skipped else ""), soft_wrap=True
    )
    watcher = _Watcher(index, folder, logged=not alone)
    if start is None:
        in_turn(todo, lambda job: here(sweep.words(job)), watcher)
    else:
        side_by_side(todo, start, watcher, parallel=settings.parallel, said=lambda job: last_words(folder.log(job.name)))
    return _summary(index, sweep.jobs, watcher.codes)


def _check(settings: SweepConfig) -> None:
    if settings.parallel < 1:
        raise ConfigError(f"sweep.parallel: {settings.parallel} is too small; the least is 1.")
    if settings.slurm and settings.launcher is not Launcher.slurm:
        raise ConfigError("sweep.slurm: these parameters are for sweep.launcher=slurm; this sweep would ignore them.")
    if settings.devices and (settings.launcher is not Launcher.local or settings.parallel == 1):
        raise ConfigError("sweep.devices: only jobs side by side on this machine share devices out; set sweep.parallel.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (settings.parallel > 1 or settings.launcher is not Launcher.local):
        raise ConfigError("sweep.parallel, sweep.launcher: under torchrun the jobs of a sweep run one after the other.")


def _start(sweep: Sweep, folder: SweepFolder) -> Start:
    def command(job: Job) -> list[str]:
        return command_of(sweep.verb, [*sweep.flags, *sweep.words(job)])

    settings = sweep.settings
    if settings.launcher is Launcher.slurm:
        return cluster_start(folder, command, settings.slurm or {})
    return local_start(folder, command, [str(device) for device in settings.devices], settings.parallel)


@dataclass
class _Watcher:
    """Keeps the index and says what happens."""

    index: Index
    folder: SweepFolder
    logged: bool
    """Whether the jobs write into files of their own."""
    codes: list[int] = field(default_factory=list)
    begun: dict[str, float] = field(default_factory=dict)

    def started(self, job: Job) -> None:
        """See `runners.Watcher`."""
        self.begun[job.name] = time.monotonic()
        self.index.started(job)
        told = f" (see {self.folder.log(job.name)})" if self.logged else ""
        console.print(f"[bold]{escape(job.name)}[/bold]: begins{escape(told)}", highlight=False, soft_wrap=True)

    def ended(self, job: Job, how: Ended) -> None:
        """See `runners.Watcher`."""
        seconds = time.monotonic() - self.begun[job.name]
        self.index.ended(job, how, seconds)
        self.codes.append(how.code)
        reason = f": {how.error}" if how.error and self.logged else ""
        console.print(
            f"[bold]{escape(job.name)}[/bold]: {how.state} after {seconds:.0f} s{escape(reason)}",
            highlight=False,
            soft_wrap=True,
        )


def _summary(index: Index, jobs: Sequence[Job], codes: Sequence[int]) -> int:
    states = Counter(State(index.entries[job.name]["state"]) for job in jobs)
    listed = ", ".join(f"{count} {state}" for state, count in states.items())
    left = len(jobs) - states[State.finished]
    advice = " The same command goes on with what is left." if left else ""
    console.print(f"Sweep: {listed}. Index: {index.folder.index}.{advice}", highlight=False, soft_wrap=True)
    worst = max(codes, default=0)
    return worst or (StoppedError.exit_code if left else 0)
