"""One evaluation from its configuration: `predict` runs the model, `score` turns answers into numbers."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config_enums import Choice, Goal, Protocol, Role
from mmunlearn.errors import RunError
from mmunlearn.evaluation.score import score
from mmunlearn.evaluation.ways import Way, asks_in_several_ways, evaluations_in, open_ways
from mmunlearn.locks import locked
from mmunlearn.run import Run, environment, explain_disk_errors, write_json, write_text

console = Console(stderr=True)
SHOWN_FLAWS = 3
"""So many kinds of flaws of the files are printed."""


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


def model_card(config: DictConfig, card: dict[str, Any], fingerprint: str, quantised: str = "") -> dict[str, Any]:
    """Which model was asked and what it was to forget, as results name it.

    Args:
        config: complete.
        card: what the model's folder says.
        fingerprint: of the weights.
        quantised: what they are rounded to; part of the label, so that a report has a row for it.
    """
    role = config.run.role or card.get("role")
    if role is None:
        role = Role.base
        console.print("The model says nothing about its role: results call it `base`; run.role=vanilla|gold|… changes that.")
    method = card.get("method") or ("none" if role == Role.base else "unknown")
    label = config.run.label or card.get("label", "")
    if quantised and not config.run.label:
        label = f"{label or (method if role == Role.unlearned else role)}, {quantised}"
    return {
        "fingerprint": fingerprint,
        "role": str(role),
        "method": method,
        "seed": card.get("seed", 0),
        "label": label,
        **({"quantised": quantised} if quantised else {}),
        "goal": str(config.run.goal or card.get("goal") or Goal.erase),
    }


def score_run(config: DictConfig) -> list[dict[str, Any]]:
    """Score the predictions in `run.dir` and print the main numbers.

    Args:
        config: the configuration that the predictions were made under.

    Returns:
        The results, one for each way of asking.

    Raises:
        RunError: there are no predictions, or some are missing.
    """
    benchmark, run = open_benchmark(config.data), Run(Path(config.run.dir))
    ways = open_ways(config, benchmark, lambda line: None)  # `predict` has named what is left out
    if asks_in_several_ways(config):
        asked = [way for way in ways if _was_asked(way)] or ways[:1]
        with locked(run):
            # Each opens the benchmark for itself, so that it counts the flaws of the files that it needs.
            found = [results for way in asked for results in score_run(way.config)]
            run.finish()
        return found
    with locked(run):
        found = [_score_way(benchmark, way) for way in ways]
    if line := problems_line(benchmark):
        console.print(line, highlight=False)
    return found


def _was_asked(way: Way) -> bool:
    """Whether the folder's answers are to this configuration; those of a way that the model cannot be asked in may be old."""
    run = way.run
    return run.model_card.is_file() and run.config.is_file() and run.config.read_text() == OmegaConf.to_yaml(way.config)


def _score_way(benchmark: Benchmark, way: Way) -> dict[str, Any]:
    choice = Choice(way.config.evaluation.choice or Choice.letter)
    results = score(way.run, benchmark, way.tasks, asking=way.asking, choice=choice)
    way.run.finish()
    console.print(results_table(results))
    if ties := near_ties_line(results):
        console.print(ties)
    console.print(f"Written to {way.run.results}")
    return results


def score_again(config: DictConfig) -> list[dict[str, Any]]:
    """Score stored predictions under the settings recorded beside them; `evaluation.choice` may be another one.

    A folder that holds several evaluations, one for each way of asking, has all of them scored.

    Raises:
        RunError: `run.dir` holds no evaluation.
    """
    root = Run(Path(config.run.dir))
    runs = evaluations_in(root)
    recorded = [_recorded(run, config) for run in runs]
    if not recorded:
        raise RunError(f"{root.root} holds no predictions to be scored. Make them with `mmunlearn predict` and this run.dir.")
    with locked(root):
        found = [results for each in recorded for results in score_run(each)]
        if root not in runs:
            root.finish()
    return found


def _recorded(run: Run, config: DictConfig) -> DictConfig:
    """The configuration of an evaluation, which may have been moved since."""
    recorded = OmegaConf.load(run.config)
    if not isinstance(recorded, DictConfig) or "evaluation" not in recorded:
        raise RunError(f"{run.config}: not the configuration of an evaluation. Restore the file, or predict again.")
    recorded.run.dir = str(run.root)
    alone = str(run.root) == str(config.run.dir)
    if alone or recorded.evaluation.protocol != Protocol.official:  # of several, the official ones have a score of their own
        recorded.evaluation.choice = config.evaluation.choice or recorded.evaluation.choice
    return recorded


def results_table(results: dict[str, Any]) -> Table:
    """The first metric of every task, with interval and counts."""
    model = results["model"]
    asked = results["benchmark"]
    way = f"{asked['protocol']}, {asked['shots']}"
    table = Table(title=f"{model['role']} ({model['method']}, {model['fingerprint'][:8]}), {way}", title_justify="left")
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


def problems_line(benchmark: Benchmark) -> str:
    """What was tolerated in the files, the most frequent first; empty if nothing was."""
    found = sorted(benchmark.problems().items(), key=lambda flaw: -flaw[1])
    if not found:
        return ""
    shown = "; ".join(f"{flaw}: {count:,}" for flaw, count in found[:SHOWN_FLAWS])
    left = len(found) - SHOWN_FLAWS
    more = f"; and {left} more kind{'s' if left > 1 else ''}" if left > 0 else ""
    return f"{benchmark.name}, tolerated and counted: {shown}{more}. All are in results.json."


def near_ties_line(results: dict[str, Any]) -> str:
    """How many replies of each task hang by a hair; empty if none does."""
    counts = {task: len(ids) for task, ids in results["near_ties"].items() if ids}
    if not counts:
        return ""
    listed = ", ".join(f"{task} {count}" for task, count in counts.items())
    return (
        f"Near-ties: {listed}. At some token of these replies the two best logits, or the two best options of a choice, are so "
        "close that rounding, and so another batch size or device, may choose the other one; their ids are in results.json."
    )
