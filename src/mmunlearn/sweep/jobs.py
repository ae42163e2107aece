"""The jobs of a sweep, their folders, and the index that says what became of each."""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmunlearn.config import RunConfig
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.run import Run, fingerprint, write_json

SCHEMA = 1
LONGEST_NAME = 200
"""Bytes; file systems allow 255."""
NOT_COMPARED = ("run.dir", "run.resume", "run.overwrite")
"""Settings that say where and how a job is run, not what comes out."""


class State(StrEnum):
    """What became of a job."""

    waiting = "waiting"
    running = "running"
    finished = "finished"
    failed = "failed"
    interrupted = "interrupted"
    """Told to stop, or its sweep was killed; it goes on when the sweep is repeated."""


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """Every file of a sweep beside the folders of its jobs."""

    root: Path

    @property
    def index(self) -> Path:
        """What became of each job."""
        return self.root / "sweep.json"

    @property
    def logs(self) -> Path:
        """What jobs in processes of their own said."""
        return self.root / "logs"

    def log(self, name: str) -> Path:
        """What one job said."""
        return self.logs / f"{name}.log"

    @property
    def evaluations(self) -> Path:
        """One evaluation for each model."""
        return self.root / "evaluations"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One combination of the swept settings."""

    name: str
    """What differs: its folder's name."""
    overrides: tuple[str, ...]
    """All settings that were typed, each with this job's value."""
    folder: Path

    @property
    def run(self) -> Run:
        """Where it is run."""
        return Run(self.folder)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended."""

    code: int
    """Its exit code; 0: well."""
    error: str = ""
    """What it said last if it failed."""

    @property
    def state(self) -> State:
        """130 and 143 are what a shell reports of Ctrl-C and SIGTERM."""
        return State.finished if self.code == 0 else State.interrupted if self.code in (130, 143) else State.failed


def combinations(parsed: Sequence[Override]) -> list[tuple[str, ...]]:
    """Every combination of the values in `key=a,b`, as overrides of one value each, the last key changing fastest.

    Raises:
        ConfigError: an interval or a glob, which are no lists of values.
    """
    choices = []
    for override in parsed:
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            raise ConfigError(f"{override.input_line}: presets are not looked for. List those to be tried: key=a,b.")
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line}: an interval has no end of values. List those to be tried: key=1,2,3.")
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    return list(itertools.product(*choices))


def planned(parsed: Sequence[Override], folder: Path) -> list[Job]:
    """The jobs of a sweep, each with a folder of its own that is named by what differs.

    Raises:
        ConfigError: the sweep's folder itself is swept, or two jobs would be the same.
    """
    swept = [str(override.key_or_group) for override in parsed if override.is_sweep_override()]
    if "run.dir" in swept:
        raise ConfigError("run.dir: a sweep has one folder, in which each job gets its own. Name one.")
    jobs = []
    for overrides in combinations(parsed):
        name = _name([setting for setting in overrides if _key(setting) in swept])
        jobs.append(Job(name=name, overrides=overrides, folder=folder / name))
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    if twice:
        raise ConfigError(f"The sweep has the job {twice[0]} more than once. Give each value once.")
    return jobs


def _key(setting: str) -> str:
    return setting.lstrip("+~").split("=")[0]


def _name(settings: Sequence[str]) -> str:
    """A folder's name from settings: no slashes, quotes or blanks, and not too long."""
    name = re.sub(r"""['"\\]""", "", re.sub(r"[/\s]+", "_", ",".join(setting.lstrip("+") for setting in settings)))
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name.encode()[: LONGEST_NAME - 17].decode(errors='ignore')}-{fingerprint(list(settings))}"
    return name or "0"


class Index:
    """`sweep.json`, written anew at every change; a file of an earlier sweep in the same folder is taken up."""

    def __init__(self, folder: SweepFolder) -> None:
        """Read what is there.

        Raises:
            RunError: the file is not an index.
        """
        self.folder = folder
        self.command = ""
        self.entries: dict[str, dict[str, Any]] = {}
        self._writes = int(os.environ.get("RANK", "0")) == 0
        if folder.index.is_file():
            self.entries = {entry["name"]: entry for entry in read_index(folder)["jobs"]}

    def plan(self, jobs: Sequence[Job], command: str, *, overwrite: bool = False) -> list[Job]:
        """Enter the jobs and write the index; jobs of earlier sweeps in this folder stay in it.

        Args:
            jobs: all of them.
            command: as it was typed.
            overwrite: whether jobs whose own settings do not say it are made anew although they are finished.

        Returns:
            Those that are not finished with the same settings.
        """
        self.command = command
        todo = []
        for job in jobs:
            earlier = self.entries.get(job.name)
            made_with = _made_with(earlier, job.run)
            seconds = earlier["seconds"] if earlier else 0.0
            same = made_with is not None and same_settings(made_with, job.overrides)
            if same and not overwrites(job.overrides, otherwise=overwrite):
                self._enter(job, State.finished, seconds=seconds)
                continue
            self._enter(job, State.waiting, seconds=seconds)
            todo.append(job)
        self._write()
        return todo

    def started(self, job: Job) -> None:
        """Enter that a job has begun."""
        self._enter(job, State.running, seconds=self.entries[job.name]["seconds"])
        self.entries[job.name]["replaces"] = _done_at(job.run)
        self._write()

    def ended(self, job: Job, how: Ended, seconds: float) -> None:
        """Enter how a job ended; `seconds` are added to those of earlier attempts."""
        total = round(self.entries[job.name]["seconds"] + seconds, 1)
        self._enter(job, how.state, seconds=total, error=how.error)
        self._write()

    def _enter(self, job: Job, state: State, *, seconds: float, error: str = "") -> None:
        # What the folder holds may come from other settings than those of the attempt that is entered, which then fails.
        made_with = list(job.overrides) if state is State.finished else _made_with(self.entries.get(job.name), job.run)
        self.entries[job.name] = {
            "name": job.name,
            "overrides": list(job.overrides),
            "made_with": made_with,
            "folder": str(job.folder),
            "state": str(state),
            "seconds": seconds,
            "error": error,
        }

    def _write(self) -> None:
        if self._writes:  # of several ranks, one
            write_json(self.folder.index, {"schema": SCHEMA, "command": self.command, "jobs": list(self.entries.values())})


def overwrites(settings: Sequence[str], *, otherwise: bool) -> bool:
    """Whether a job is to be made anew: the value of `run.overwrite`, however it is written (true, True, 1, yes, on).

    Args:
        settings: as they were typed; the last one counts.
        otherwise: what holds where none of them names it.
    """
    own = [setting for setting in settings if _key(setting) == "run.overwrite"]
    if not own:
        return otherwise
    try:
        override = OverridesParser.create().parse_override(own[-1])
        if override.is_delete():
            return False
        value = override.value()
        return bool(OmegaConf.merge(OmegaConf.structured(RunConfig), {"overwrite": value}).overwrite)
    except OmegaConfBaseException:  # neither yes nor no, as the job itself says
        return True


def _done_at(run: Run) -> int | None:
    """When the run in a folder was finished, in nanoseconds; None if it is not."""
    return run.done.stat().st_mtime_ns if run.is_done else None


def _settled(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry as it would be, had the sweep not been killed between the end of a job and that of its entry.

    A job that the index has as running is finished if its folder has a mark of the end that was not there when it began.
    """
    done = _done_at(Run(Path(entry["folder"])))
    if entry["state"] != State.running or "replaces" not in entry or done in (None, entry["replaces"]):
        return entry
    kept = {key: value for key, value in entry.items() if key != "replaces"}
    return {**kept, "state": str(State.finished), "made_with": entry["overrides"], "error": ""}


def _made_with(entry: Mapping[str, Any] | None, run: Run) -> list[str] | None:
    """The settings that the finished run in a job's folder was made with; None if there is none, or nobody knows."""
    done = _done_at(run)
    if entry is None or done is None:
        return None
    if "replaces" in entry and entry["replaces"] != done:  # made by the attempt that the entry is about
        return list(entry["overrides"])
    whole = entry["overrides"] if entry["state"] == State.finished else None
    found: list[str] | None = entry.get("made_with", whole)
    return found


def same_settings(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists of overrides make the same run, whatever their order."""

    def compared(settings: Sequence[str]) -> list[str]:
        return sorted(setting for setting in settings if _key(setting) not in NOT_COMPARED)

    return compared(one) == compared(other)


def read_index(folder: SweepFolder) -> dict[str, Any]:
    """The content of `sweep.json`; a job whose end a killed sweep had no time to enter is finished.

    Raises:
        RunError: there is none, or it is not one.
    """
    if not folder.index.is_file():
        raise RunError(f"{folder.index}: not there, so {folder.root} holds no sweep. Make one with `mmunlearn unlearn -m …`.")
    try:
        found = json.loads(folder.index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{folder.index}: not JSON ({error}). Delete it; finished jobs are then not skipped.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise RunError(f"{folder.index}: not the index of a sweep of this version (schema {SCHEMA}).")
    return {**found, "jobs": [_settled(entry) for entry in found["jobs"]]}
