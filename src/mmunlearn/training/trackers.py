"""Trackers (TensorBoard, wandb, trackio, MLflow, …) as sinks for the training record, through Accelerate's classes for them.

The numbers in `metrics.jsonl` are the record; a tracker gets the same ones, flattened, once they are written there.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from omegaconf import OmegaConf

from mmunlearn.errors import ConfigError, RunError, did_you_mean
from mmunlearn.run import Run, explain_disk_errors
from mmunlearn.training.loop import Training

PROJECT = "mmunlearn"
"""What trackers that sort runs into projects call ours."""


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that every tracker exists and is installed.

    Args:
        names: `trainer.args.report_to`; those of Accelerate, or registered with its `register_tracker_class`.

    Raises:
        ConfigError: with a line for each that cannot be used.
    """
    problems = []
    optional, installed = set(map(str, LoggerType)), set(map(str, get_available_trackers()))
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            hint = "Leave the list empty: []." if name == "none" else did_you_mean(name, LOGGER_TYPE_TO_CLASS)
            problems.append(f"trainer.args.report_to: there is no tracker {name!r}. {hint}")
        elif name in optional - installed:
            problems.append(f"trainer.args.report_to: {name} is not installed; pip install {name}, or leave it out.")
    problems += [f"trainer.args.report_to: {name} is named twice." for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise ConfigError("\n".join(problems))


class Trackers:
    """Those that a run reports to; without any, nothing happens."""

    def __init__(self) -> None:
        """Open none yet."""
        self._opened: list[Any] = []

    def start(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        """Open trackers and tell them the settings.

        Args:
            names: see `check_trackers`.
            folder: where those that write files put them.
            settings: of the run; sections may be nested.

        Raises:
            RunError: one does not start (no login, no network); names it.
        """
        for name in names:
            with explain_disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with _blamed(name, "did not start", "Mend that, or leave it out of trainer.args.report_to."):
                tracker = _create(name, folder)
                tracker.start()
                self._opened.append(tracker)
                tracker.store_init_configuration({key: _storable(value) for key, value in flat(settings).items()})

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Hand on the numbers of one step.

        Args:
            step: optimizer steps done; a resumed run goes on counting where it stopped.
            record: the line of `metrics.jsonl`.

        Raises:
            RunError: a tracker fails; names it.
        """
        numbers = {key: value for key, value in flat(record).items() if isinstance(value, int | float) and key != "step"}
        for tracker in self._opened:
            remedy = (
                "metrics.jsonl has every number. Go on without it: run.resume=true, and leave it out of trainer.args.report_to."
            )
            with _blamed(tracker.name, f"failed in step {step}", remedy):
                tracker.log(numbers, step=step)

    def finish(self) -> None:
        """Close them; one that fails in this must not cost a trained model, so there is only a warning.

        Accelerate's own `end_training` also disconnects the ranks, which still have to save.
        """
        while self._opened:
            tracker = self._opened.pop()
            try:
                with _blamed(
                    tracker.name, "could not be closed", "The last numbers may be missing there; metrics.jsonl has all."
                ):
                    tracker.finish()
            except RunError as error:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)


@contextmanager
def tracking(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> Iterator[Trackers]:
    """Trackers that are open inside the `with` block and closed behind it, however it ends.

    Args:
        names: see `check_trackers`; on all ranks but the first, none.
        folder: where those that write files put them.
        settings: of the run; sections may be nested.
    """
    trackers = Trackers()
    try:
        trackers.start(names, folder, settings)
        yield trackers
    finally:
        trackers.finish()


def tracked_run(run: Run, training: Training, *, first_step: int = 0) -> int:
    """Train, with the trackers open that `trainer.args.report_to` names.

    Args:
        run: its recorded configuration is what the trackers are told, where there is one.
        training: what to run; only the first rank reports.
        first_step: see `Training.run`.

    Returns:
        The number of steps done.

    Raises:
        RunError: a tracker does not start or fails in a step.
    """
    args = training.plan.args
    names = args.report_to if training.accelerator.is_main_process else []
    settings: Any = {"method": type(training.method).__name__, "seed": training.plan.seed, "args": asdict(args)}
    if run.config.is_file():
        settings = OmegaConf.to_container(OmegaConf.load(run.config))
    with tracking(names, run.trackers, settings) as sink:
        return replace(training, log=replace(training.log, sink=sink)).run(first_step=first_step)


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level: `{"terms": {"forget": {"raw": 1}}}` becomes `{"terms/forget/raw": 1}`."""
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def _create(name: str, folder: Path) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        return kind(PROJECT, str(folder))
    return kind(PROJECT, dir=str(folder)) if name == "wandb" else kind(PROJECT)


def _storable(value: Any) -> bool | int | float | str:
    """All that every tracker takes as a setting; some refuse None and lists."""
    return value if isinstance(value, bool | int | float) else str(value)


@contextmanager
def _blamed(name: str, what: str, remedy: str) -> Iterator[None]:
    """Name the tracker; anything at all may come out of one."""
    try:
        yield
    except Exception as error:
        raise RunError(f"Tracker {name} {what} ({type(error).__name__}: {error}). {remedy}") from error
