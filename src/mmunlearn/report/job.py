"""`mmunlearn report`: one page about several evaluations and the training runs behind them."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.errors import ConfigError
from mmunlearn.report.collect import collect
from mmunlearn.report.html import write_report
from mmunlearn.report.tables import terminal_table
from mmunlearn.run import Run


def run_report(config: DictConfig, commands: Sequence[str] = ()) -> Path:
    """Write `report.html` and `results.json` into `run.dir` and print the summary.

    Args:
        config: complete and checked; `report.evaluations` and `report.trainings` name the folders.
        commands: what to type to get these numbers again; by default those recorded in the folders.

    Raises:
        ConfigError: no evaluation is named.
    """
    settings = config.report
    if not settings.evaluations:
        raise ConfigError("report.evaluations is empty. Name evaluation folders: report.evaluations=[outputs/a,outputs/b]")
    collected = collect(
        [Path(path) for path in settings.evaluations],
        _labelled([Path(path) for path in settings.trainings]),
    )
    output = Path(config.run.dir)
    write_report(
        output,
        collected,
        benchmark=_benchmark(Path(settings.evaluations[0])) if settings.show_subjects else None,
        show_subjects=settings.show_subjects,
        title=settings.title,
        banner=settings.banner or None,
        commands=commands,
    )
    console = Console(stderr=True)
    console.print(terminal_table(collected))
    console.print(f"Report: [bold]{output / 'report.html'}[/bold]")
    return output


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
