"""One evaluation from its configuration: `predict` runs the model, `score` turns answers into numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mmunlearn.benchmarks.base import Asking, Benchmark, Task
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import Choice, Goal, Protocol, Role, Shots
from mmunlearn.errors import RunError
from mmunlearn.evaluation.requests import check_choice, chosen_tasks
from mmunlearn.evaluation.score import score
from mmunlearn.run import Run, environment, explain_disk_errors, write_json, write_text

console = Console(stderr=True)


def prepare_folder(run: Run, config: DictConfig, fingerprint: str) -> None:
    """Make an evaluation's folder ready. Going on with stopped predictions is the rule.

    Raises:
        RunError: the folder holds a training run or answers of another model, or overwriting would delete other things.
    """
    if run.metrics.is_file() or run.model.exists():
        raise RunError(f"{run.root} holds a training run. Set run.dir to a folder of its own for the evaluation.")
    if config.run.overwrite:
        run.clear()
    elif run.model_card.is_file() and json.loads(run.model_card.read_text())["fingerprint"] != fingerprint:
        raise RunError(
            f"{run.root} holds the evaluation of another model. Choose another run.dir, or set run.overwrite=true to delete it."
        )
    with explain_disk_errors(run.root):
        for earlier in (run.done, run.results):  # numbers of other answers must not outlive them
            earlier.unlink(missing_ok=True)
    write_text(run.config, OmegaConf.to_yaml(config))
    write_json(run.environment, environment())


def tasks_of(config: DictConfig, benchmark: Benchmark) -> Sequence[Task]:
    """The tasks that a configuration asks for.

    Raises:
        ConfigError: the benchmark cannot be asked so, or the rules do not know the choice score.
    """
    check_choice(asking_of(config), Choice(config.evaluation.choice or Choice.letter))
    return chosen_tasks(benchmark, tuple(config.evaluation.splits), config.evaluation.limit, asking_of(config))


def asking_of(config: DictConfig) -> Asking:
    """By whose rules the questions are asked; configurations recorded before there was a choice have none."""
    asked = config.evaluation
    return Asking(protocol=Protocol(asked.protocol), shots=Shots(asked.get("shots", Shots.zero_shot)))


def model_card(config: DictConfig, card: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """Which model was asked and what it was to forget, as results name it."""
    role = config.run.role or card.get("role")
    if role is None:
        role = Role.base
        console.print("The model says nothing about its role: results call it `base`; run.role=vanilla|gold|… changes that.")
    return {
        "fingerprint": fingerprint,
        "role": str(role),
        "method": card.get("method") or ("none" if role == Role.base else "unknown"),
        "seed": card.get("seed", 0),
        "label": config.run.label or card.get("label", ""),
        "goal": str(config.run.goal or card.get("goal") or Goal.erase),
    }


def score_run(config: DictConfig) -> dict[str, Any]:
    """Score the predictions in `run.dir` and print the main numbers.

    Args:
        config: the configuration that the predictions were made under.
    """
    run = Run(Path(config.run.dir))
    benchmark = open_benchmark(config.data)
    results = score(
        run,
        benchmark,
        tasks_of(config, benchmark),
        asking=asking_of(config),
        choice=Choice(config.evaluation.choice or Choice.letter),
    )
    run.finish()
    console.print(results_table(results))
    console.print(f"Written to {run.results}")
    return results


def score_again(config: DictConfig) -> dict[str, Any]:
    """Score stored predictions under the settings recorded beside them; `evaluation.choice` may be another one.

    Raises:
        RunError: `run.dir` holds no evaluation.
    """
    run = Run(Path(config.run.dir))
    recorded = OmegaConf.load(run.config) if run.config.is_file() else None
    if not isinstance(recorded, DictConfig) or "evaluation" not in recorded or not run.model_card.is_file():
        raise RunError(f"{run.root} holds no predictions to be scored. Make them with `mmunlearn predict` and this run.dir.")
    recorded.run.dir = config.run.dir
    recorded.evaluation.choice = config.evaluation.choice or recorded.evaluation.choice
    return score_run(recorded)


def results_table(results: dict[str, Any]) -> Table:
    """The first metric of every task, with interval and counts."""
    model = results["model"]
    table = Table(title=f"{model['role']} ({model['method']}, {model['fingerprint'][:8]})", title_justify="left")
    for column in ("task", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "95 % interval", "questions", "unscored"):
        table.add_column(column, justify="right")
    for task, metrics in results["tasks"].items():
        name, found = next(iter(metrics.items()))
        interval = "–" if found["low"] is None else f"{found['low']:.3f} – {found['high']:.3f}"
        value = "–" if found["value"] is None else f"{found['value']:.3f}"
        table.add_row(task, name, value, interval, str(found["count"]), str(found["unscored"]))
    return table
