"""One evaluation for each model of a sweep; those that are there already are kept."""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mmunlearn.config_check import checked
from mmunlearn.config_enums import Quantise
from mmunlearn.errors import ConfigError, RunError, UserError
from mmunlearn.evaluation import job as evaluation_job
from mmunlearn.evaluation.ask import run_predict
from mmunlearn.evaluation.ways import asks_in_several_ways
from mmunlearn.progress import place_bars
from mmunlearn.run import Run
from mmunlearn.sweep.jobs import State, SweepFolder, read_index
from mmunlearn.workers import end_with_parent

console = Console(stderr=True)
DECIDE = ("model", "data", "evaluation")
"""The sections that decide an evaluation."""


def evaluate_models(config: DictConfig, folder: SweepFolder) -> dict[str, Path]:
    """Ask and score every model of a sweep.

    Each is asked about the people that it was trained on, as its own configuration names them.

    Args:
        config: of the verb; its section `evaluation` says how is asked.
        folder: the sweep.

    Returns:
        The folder of the evaluation by the name of the job; jobs without a model are left out.

    Raises:
        ConfigError: several ways of asking at once.
        RunError: some evaluation failed; the others are done and stay.
    """
    if asks_in_several_ways(config):
        raise ConfigError("evaluation.protocol, evaluation.shots: settings are chosen by one way of asking, not by `both`.")
    entries = [entry for entry in read_index(folder)["jobs"] if _has_model(entry)]
    wanted = {entry["name"]: evaluation_config(config, entry["name"], Run(Path(entry["folder"])), folder) for entry in entries}
    missing = {name: own for name, own in wanted.items() if not is_there(own)}
    four_bits = sum(_was_trained_in_four_bits(Run(Path(entry["folder"]))) for entry in entries)
    if four_bits:
        console.print(
            f"Sweep: {four_bits} of the models were trained with model.quantise=nf4; they are asked as `mmunlearn evaluate` "
            "does, the adapter on its base in 4 bits.",
            highlight=False,
        )
    console.print(f"Sweep: {len(wanted)} models, {len(missing)} of them still to be evaluated", highlight=False, soft_wrap=True)
    failures = _evaluate(missing, config.sweep.parallel)
    if failures:
        listed = "\n".join(f"{name}: {error}" for name, error in failures.items())
        raise RunError(f"{len(failures)} of {len(missing)} evaluations failed; the others are kept.\n{listed}")
    return {name: Path(own.run.dir) for name, own in wanted.items()}


def _has_model(entry: Mapping[str, Any]) -> bool:
    run = Run(Path(entry["folder"]))
    return entry["state"] == State.finished and run.is_done and run.model.exists()


def _was_trained_in_four_bits(trained: Run) -> bool:
    return bool(OmegaConf.select(OmegaConf.load(trained.config), "model.quantise") == Quantise.nf4)


def evaluation_config(config: DictConfig, name: str, trained: Run, folder: SweepFolder) -> DictConfig:
    """What `mmunlearn evaluate` would be told of one model.

    Nothing is rounded: `model.quantise=nf4` is how a job was trained, and its adapter opens its base in 4 bits by itself. What
    was asked of a model that was trained anew since is to be overwritten, finished or not.
    """
    recorded = OmegaConf.load(trained.config)
    plain: Any = OmegaConf.to_container(recorded, resolve=True)
    run = Run(folder.evaluations / name)
    stale = run.model_card.is_file() and run.model_card.stat().st_mtime_ns < trained.done.stat().st_mtime_ns
    return checked(
        OmegaConf.create(
            {
                "run": {"dir": str(run.root), "device": str(config.run.device), "overwrite": stale},
                "model": {
                    **plain["model"],
                    "name": "",
                    "processor": "",
                    "path": str(trained.model),
                    "quantise": str(Quantise.none),
                },
                "data": plain["data"],
                "evaluation": OmegaConf.to_container(config.evaluation, resolve=True),
            }
        )
    )


def is_there(wanted: DictConfig) -> bool:
    """Whether an evaluation is finished that asked this model in this way."""
    run = Run(Path(wanted.run.dir))
    if not run.is_done or wanted.run.overwrite or not run.config.is_file():
        return False
    recorded = OmegaConf.load(run.config)
    return isinstance(recorded, DictConfig) and all(recorded.get(section) == wanted[section] for section in DECIDE)


def _evaluate(wanted: Mapping[str, DictConfig], parallel: int) -> dict[str, str]:
    """What went wrong, by job."""
    if parallel == 1 or len(wanted) < 2:
        outcomes: Sequence[str] = [_evaluate_one(own) for own in wanted.values()]
    else:
        plain = [OmegaConf.to_container(own) for own in wanted.values()]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(parallel, mp_context=spawn, initializer=end_with_parent) as pool:
            outcomes = list(pool.map(_evaluate_in_worker, wanted, plain))
    return {name: outcome for name, outcome in zip(wanted, outcomes, strict=True) if outcome}


def _evaluate_one(config: DictConfig) -> str:
    """Ask and score; returns the user's error with which it ended, or nothing."""
    try:
        run_predict(config)
        evaluation_job.score_run(config)
    except UserError as error:
        return str(error)
    return ""


def _evaluate_in_worker(name: str, plain: Any) -> str:
    """The same in a process of its own, which draws bars and says nothing else."""
    identity: Sequence[int] = multiprocessing.current_process()._identity
    place_bars(name, identity[0] - 1 if identity else 0)
    evaluation_job.console.quiet = True
    return _evaluate_one(OmegaConf.create(plain))
