"""`mmunlearn sweep`: evaluate a sweep's models, choose among their settings on half of the people, report on the other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from mmunlearn.errors import ConfigError
from mmunlearn.locks import locked
from mmunlearn.report.collect import collect, read_results, redact
from mmunlearn.report.export import write_tables
from mmunlearn.report.frontier import Frontier, check_vanilla, frontier, frontier_csv, selection_record
from mmunlearn.report.frontier_plot import frontier_section
from mmunlearn.report.groups import labels_of_people
from mmunlearn.report.html import write_report
from mmunlearn.report.tables import number
from mmunlearn.run import Run, write_text
from mmunlearn.sweep.evaluations import evaluate_models
from mmunlearn.sweep.jobs import SweepFolder, read_index

console = Console(stderr=True)


def sweep_report(config: DictConfig) -> Path:
    """Evaluate what is not evaluated yet, and write report, tables, `frontier.csv` and `selection.json` into `run.dir`.

    Args:
        config: complete and checked; `sweep.folder` names the sweep, `report.evaluations` the evaluations of vanilla and gold.

    Raises:
        ConfigError: a setting does not fit.
        RunError: there is no sweep, an evaluation failed, vanilla is missing, or another command is using `run.dir`.
    """
    _check(config)
    folder = SweepFolder(root=Path(config.sweep.folder).expanduser())
    read_index(folder)  # both can be told before hours of asking
    check_vanilla(read_results(Path(path))["model"]["role"] for path in config.report.evaluations)
    with locked(Run(Path(config.run.dir))):
        return _report(config, folder)


def _report(config: DictConfig, folder: SweepFolder) -> Path:
    """The evaluations, the choice and the page."""
    settings = config.sweep
    evaluations = evaluate_models(config, folder)
    jobs = {entry["name"]: entry for entry in read_index(folder)["jobs"]}
    shared = _shared([entry["overrides"] for name, entry in jobs.items() if name in evaluations])
    names = {str(path): _setting_name(jobs[name]["overrides"], shared) for name, path in evaluations.items()}
    collected = collect([*map(Path, config.report.evaluations), *evaluations.values()], {})
    found, shown = frontier(
        replace(collected, gate_margin=config.report.gate_margin),
        names,
        seed=settings.seed,
        keep=settings.keep,
        failed=len(jobs) - len(evaluations),
    )
    run = Run(Path(config.run.dir))
    write_report(
        run.root,
        shown,
        benchmark=None,
        show_subjects=False,
        title=config.report.title,
        banner=config.report.banner or None,
        commands=[str(read_index(folder)["command"])],
        extras=[frontier_section(found)],
        people_of=[collected],
    )
    labels = labels_of_people([collected, shown])
    write_tables(run, [shown], title=config.report.title, safe=lambda text: redact(text, labels))
    write_text(run.frontier, redact(frontier_csv(found), labels))
    write_text(
        run.selection, redact(json.dumps(selection_record(found), indent=1, ensure_ascii=False, allow_nan=False), labels) + "\n"
    )
    console.print(_table(found))
    console.print(
        f"Report: [bold]{run.report}[/bold], every setting in {run.frontier}, the choice in {run.selection}", soft_wrap=True
    )
    return run.root


def _check(config: DictConfig) -> None:
    settings = config.sweep
    if not 0 < settings.keep <= 1:
        raise ConfigError(f"sweep.keep: {settings.keep} must be above 0 and at most 1; the default is 0.95.")
    if settings.parallel < 1:
        raise ConfigError(f"sweep.parallel: {settings.parallel} is too small; the least is 1.")
    if not 0 <= config.report.gate_margin <= 1:
        raise ConfigError(f"report.gate_margin: {config.report.gate_margin} lies outside 0 to 1. The default is 0.05.")
    ignored = {"report.show_subjects": config.report.show_subjects, "report.trainings": config.report.trainings}
    ignored |= {"sweep.slurm": settings.slurm, "sweep.devices": settings.devices}
    for name, value in ignored.items():
        if value:
            raise ConfigError(f"{name}: this verb does not use it.")
    if not settings.folder:
        raise ConfigError("sweep.folder: name the folder of the sweep, the run.dir of `mmunlearn unlearn -m …`.")


_WHERE = ("run.seed", "run.dir", "run.resume", "run.overwrite", "run.label", "run.device")
"""Settings that make no other recipe."""


def _shared(overrides: list[list[str]]) -> set[str]:
    """The settings that all jobs have in common."""
    return set.intersection(*map(set, overrides)) if overrides else set()


def _setting_name(overrides: list[str], shared: set[str]) -> str:
    """What distinguishes a setting from the others, without its seed."""
    own = [word.lstrip("+") for word in overrides if word not in shared and word.lstrip("+").split("=")[0] not in _WHERE]
    return ", ".join(word.removeprefix("trainer.args.").removeprefix("trainer.method.") for word in own) or "as given"


def _table(found: Frontier) -> Table:
    table = Table(title="Chosen on the validation half; numbers of the other half", title_justify="left")
    for column in ("method", "setting"):
        table.add_column(column)
    for column in ("tried", "forget", "retain"):
        table.add_column(column, justify="right")
    for model, numbers in found.references:
        table.add_row(model.label, "", "", number(numbers.forget.value), number(numbers.retain.value))
    for budget in found.budgets:
        row = found.chosen(budget.method)
        cells: list[Any] = ["none keeps enough", str(budget.settings), "–", "–"]
        if row is not None:
            values = number(row.reported.forget.value), number(row.reported.retain.value)
            cells = [row.setting.name, str(budget.settings), *values]
        table.add_row(budget.method, *cells)
    return table
