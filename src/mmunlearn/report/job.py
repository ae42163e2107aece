"""`mmunlearn report`: one page about several evaluations and the training runs behind them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.errors import ConfigError
from mmunlearn.locks import locked
from mmunlearn.report.collect import Collected, redact
from mmunlearn.report.export import write_tables
from mmunlearn.report.groups import collect_groups, expanded, labels_of_people
from mmunlearn.report.html import write_report
from mmunlearn.report.seeds import fold_seeds
from mmunlearn.report.tables import terminal_table
from mmunlearn.run import Run


def run_report(config: DictConfig, commands: Sequence[str] = ()) -> Path:
    """Write `report.html`, `results.json` and the tables as Markdown, LaTeX and CSV into `run.dir`; print the summary.

    Args:
        config: complete and checked; `report.evaluations` and `report.trainings` name the folders.
        commands: what to type to get these numbers again; by default those recorded in the folders.

    Raises:
        ConfigError: no evaluation is named, or `report.gate_margin` is no share.
    """
    settings = config.report
    if not 0 <= settings.gate_margin <= 1:
        raise ConfigError(f"report.gate_margin: {settings.gate_margin} lies outside 0 to 1. The default is 0.05.")
    if not settings.evaluations:
        raise ConfigError("report.evaluations is empty. Name evaluation folders: report.evaluations=[outputs/a,outputs/b]")
    evaluations = [Path(path) for path in settings.evaluations]
    groups = [
        replace(fold_seeds(group) if settings.fold_seeds else group, gate_margin=settings.gate_margin)
        for group in collect_groups(evaluations, _labelled([Path(path) for path in settings.trainings]))
    ]
    output = Path(config.run.dir)
    with locked(Run(output)):
        _write(config, output, groups, evaluations, commands)
    console = Console(stderr=True)
    for group in groups:
        console.print(terminal_table(group))
    console.print(f"Report: [bold]{Run(output).report}[/bold], tables beside it as Markdown, LaTeX and CSV")
    return output


def _write(
    config: DictConfig, output: Path, groups: Sequence[Collected], evaluations: Sequence[Path], commands: Sequence[str]
) -> None:
    """All files of the report."""
    settings = config.report
    write_report(
        output,
        groups[0],
        others=groups[1:],
        benchmark=_benchmark(expanded(evaluations)[0]) if settings.show_subjects else None,
        show_subjects=settings.show_subjects,
        title=settings.title,
        banner=settings.banner or None,
        commands=commands,
    )
    run, labels = Run(output), {} if settings.show_subjects else labels_of_people(groups)
    write_tables(run, groups, title=settings.title, safe=lambda text: redact(text, labels))


def _labelled(trainings: Sequence[Path]) -> dict[str, Path]:
    """Folder names as labels; with the folder above where they would repeat."""
    names = [path.name for path in trainings]
    return {path.name if names.count(path.name) == 1 else str(path): path for path in trainings}


def _benchmark(evaluation: Path) -> Benchmark:
    """The benchmark that an evaluation asked, for the gallery.

    Raises:
        ConfigError: the evaluation does not say.
    """
    file = Run(evaluation).config
    recorded = OmegaConf.load(file) if file.is_file() else None
    if not isinstance(recorded, DictConfig) or "data" not in recorded:
        raise ConfigError(f"{file} does not say which people were asked about: set report.show_subjects=false.")
    return open_benchmark(recorded.data)
