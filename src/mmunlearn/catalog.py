"""`mmunlearn list`: models, methods, masks, benchmarks and metrics, each with a line that stands where it is made."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmunlearn.config import configs_folder
from mmunlearn.metrics.cards import CARDS
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS, SUMMARIES


def print_catalog() -> None:
    """Print one table for each kind of thing."""
    console = Console()
    for title, rows in (
        ("Models (model=NAME)", _first_comments("model")),
        ("Methods (trainer=NAME)", _first_comments("trainer")),
        ("Saliency masks (saliency=NAME)", _first_comments("saliency")),
        ("Benchmarks (data=NAME)", _first_comments("data")),
        ("Metrics", _metrics()),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, line in rows:
            table.add_row(f"[bold]{name}[/bold]", line)
        console.print(table, "")


def _presets(group: str) -> Iterable[Path]:
    return sorted((configs_folder() / group).glob("*.yaml"))


def _first_comments(group: str) -> Iterator[tuple[str, str]]:
    for path in _presets(group):
        yield path.stem, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def _metrics() -> Iterator[tuple[str, str]]:
    yield "accuracy", "The primary choice score: option_letter_accuracy or option_text_accuracy, as evaluation.choice says."
    for name in dict.fromkeys([*CHOICE_METRICS, *CLOZE_METRICS, *GENERATION_METRICS]):
        yield name, SUMMARIES[name]
    yield "judge_factuality", CARDS["judge_factuality"].meaning
