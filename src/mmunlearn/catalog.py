"""`mmunlearn list`: models, methods, benchmarks and metrics, each with the first line of its own documentation."""

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from mmunlearn.config import TARGET, configs_folder
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS, SUMMARIES


def print_catalog() -> None:
    """Print one table for each kind of thing."""
    console = Console()
    for title, rows in (
        ("Models (model=NAME)", _models()),
        ("Methods (trainer=NAME)", _targets("trainer", "method")),
        ("Benchmarks (data=NAME)", _targets("data", "")),
        ("Metrics", _metrics()),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, line in rows:
            table.add_row(f"[bold]{name}[/bold]", line)
        console.print(table, "")


def _presets(group: str) -> Iterable[Path]:
    return sorted((configs_folder() / group).glob("*.yaml"))


def _models() -> Iterator[tuple[str, str]]:
    for path in _presets("model"):
        yield path.stem, path.read_text().splitlines()[0].lstrip("# ")


def _targets(group: str, key: str) -> Iterator[tuple[str, str]]:
    for path in _presets(group):
        target = OmegaConf.select(_with_base(path), f"{key}.{TARGET}".lstrip("."))
        yield path.stem, (inspect.getdoc(get_class(target)) or "").splitlines()[0]


def _with_base(path: Path) -> Any:
    """A preset on top of the one of its group that it names in `defaults`."""
    section: Any = OmegaConf.load(path)
    bases = [OmegaConf.load(path.with_name(f"{name}.yaml")) for name in section.get("defaults", []) if name != "_self_"]
    return OmegaConf.merge(*bases, section)


def _metrics() -> Iterator[tuple[str, str]]:
    yield "accuracy", "The primary choice score: option_letter_accuracy or option_text_accuracy, as evaluation.choice says."
    for name in dict.fromkeys([*CHOICE_METRICS, *CLOZE_METRICS, *GENERATION_METRICS]):
        yield name, SUMMARIES[name]
