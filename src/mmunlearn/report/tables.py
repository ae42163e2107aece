"""Results as tables: for the page, for Markdown and for the terminal."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table as RichTable

from mmunlearn.metrics.statistics import Estimate
from mmunlearn.report.collect import ZERO_SHOT, Collected, Evaluation
from mmunlearn.report.condition import warnings
from mmunlearn.report.verdict import forget_tasks, headline_tasks, ideal
from mmunlearn.report.words import (
    FAMILIES,
    FORGET_FAMILIES,
    KEEP_FAMILIES,
    METRIC_CARDS,
    MODALITIES,
    kind_title,
    kinds_of,
    parse_task,
)

_TIE = 1e-9
_WIDEST_LABEL = 14
"""A longer word of a label is broken in the terminal, so that the numbers fit."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One task and metric of a summary."""

    family: str
    modality: str
    task: str
    chance: float | None
    """What guessing gets, where there is something to guess."""
    starts_family: bool
    """Whether the column to the left belongs to another family."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model's number in one column."""

    estimate: Estimate | None
    mark: str = ""
    """`best` or `worst` among the methods, else empty."""
    spread: tuple[float, float] | None = None
    """Lowest and highest seed, where several were folded into the row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model."""

    evaluation: Evaluation
    cells: tuple[Cell, ...]
    starts_methods: bool
    """Whether this is the first unlearned model below the models it is compared with."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric over the families of tasks: models in rows."""

    title: str
    metric: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def groups(self) -> dict[str, int]:
        """Number of columns of each family, in order."""
        return dict(Counter(column.family for column in self.columns))

    def has_chance(self) -> bool:
        """Whether guessing is possible in any column."""
        return any(column.chance is not None for column in self.columns)


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The headline tasks, each by its own metric: models in rows."""

    tasks: tuple[str, ...]
    rows: tuple[tuple[Evaluation, tuple[Estimate | None, ...]], ...]


_VIEWS = (
    ("Multiple choice", "accuracy", kinds_of("accuracy")),
    ("Free answers", "rougeL", ("generation",)),
    ("Captions", "rougeL", ("caption",)),
    ("Questions and answers", "rougeL", ("qa",)),
    ("Fill in the blank", "cloze_accuracy", kinds_of("cloze_accuracy")),
    ("Truth ratio", "truth_ratio", kinds_of("accuracy")),
    ("Truth ratio of free answers", "truth_ratio", ("generation",)),
    ("Truth ratio of captions", "truth_ratio", ("caption",)),
)


def number(value: float) -> str:
    """Two decimals; “–” for NaN; a true minus sign, and none before a zero."""
    return "–" if math.isnan(value) else f"{value:z.2f}".replace("-", "−")


def interval(estimate: Estimate) -> str:
    """“0.24 to 0.31”, or why there is none."""
    if math.isnan(estimate.value):
        return "none could be scored"
    if math.isnan(estimate.low):
        return "no interval"
    return f"{number(estimate.low)} to {number(estimate.high)}"


def short_interval(estimate: Estimate) -> str:
    """“0.24–0.31” where room is short; with words between the numbers if one is negative."""
    plain = not math.isnan(estimate.low) and estimate.low >= 0
    return f"{number(estimate.low)}–{number(estimate.high)}" if plain else interval(estimate)


def summaries(collected: Collected) -> tuple[Summary, ...]:
    """One table for each kind of question: models in rows, families of tasks in columns; empty ones are left out."""
    result = []
    broken = collapsed(collected)
    for title, metric, kinds in _VIEWS:
        columns = tuple(_columns(collected, metric, kinds))
        if columns:
            if metric == "rougeL":  # under some rules its recall is the first
                metric = collected.primary_metric(columns[0].task)
            rows = _rows(collected, columns, metric, broken)
            result.append(Summary(title=title, metric=metric, columns=columns, rows=rows))
    return tuple(result)


def collapsed(collected: Collected) -> frozenset[str]:
    """The labels of the methods that have collapsed (`condition.warnings`), in any of their seeds."""
    return frozenset(model.label for model in collected.of_role("unlearned") if warnings(collected, model))


def overview(collected: Collected) -> Overview:
    """One table of everything that matters most, for evaluations that are not the main part of a report."""
    tasks = headline_tasks(collected, FAMILIES)
    rows = [
        (model, tuple(model.estimate(task, collected.primary_metric(task)) for task in tasks))
        for model in collected.evaluations
    ]
    return Overview(tasks=tasks, rows=tuple(rows))


def rules_title(collected: Collected) -> str:
    """By which rules numbers came about: “mllmu 1.0, protocol official, few_shot”."""
    shots = "" if "," in collected.protocol else f", {ZERO_SHOT}"
    return f"{collected.benchmark} {collected.version}, protocol {collected.protocol}{shots}"


def metric_title(metric: str) -> str:
    """The name of a metric in headings."""
    return METRIC_CARDS[metric].title if metric in METRIC_CARDS else metric


def terminal_table(collected: Collected) -> RichTable:
    """The tasks by which forgetting and keeping are judged, for the terminal: models in rows, so that many fit.

    Fits 80 columns with five tasks: labels break, numbers do not. All other numbers are in the report.
    """
    tasks = (*forget_tasks(collected), *headline_tasks(collected, ["retain"]))
    seen: set[str] = set()
    table = RichTable(title=f"{rules_title(collected)}: value, 95 % interval", title_justify="left")
    words = [word for model in collected.evaluations for word in model.label.split()]
    table.add_column("model", overflow="fold", min_width=min(_WIDEST_LABEL, max(map(len, words), default=0)))
    for task in tasks:
        table.add_column(_short_title(task, seen), justify="right", min_width=9)
    for model in collected.evaluations:
        estimates = [model.estimate(task, collected.primary_metric(task)) for task in tasks]
        table.add_row(escape(model.label), *(_two_lines(estimate) for estimate in estimates))
    return table


def _short_title(task: str, seen: set[str]) -> str:
    """“forget image”; with the kind where the same people were asked in the same way before."""
    name = parse_task(task)
    group = f"{name.family} {name.modality}"
    title = f"{group} {kind_title(name.kind)}" if group in seen else group
    seen.add(group)
    return title


def _two_lines(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    bounds = "" if math.isnan(estimate.low) else f"\n[dim]{short_interval(estimate)}[/dim]"
    return number(estimate.value) + bounds


def _columns(collected: Collected, metric: str, kinds: Sequence[str]) -> list[Column]:
    """For each family and modality the first task of one of the kinds that any model has the metric for."""
    columns: list[Column] = []
    for family in FAMILIES:
        for modality in MODALITIES:
            for kind in kinds:
                task = f"{family}_{modality}_{kind}"
                if any(evaluation.estimate(task, metric) for evaluation in collected.evaluations):
                    chance = collected.chance.get(task) if metric == "accuracy" else None
                    first = not columns or columns[-1].family != family
                    columns.append(Column(family=family, modality=modality, task=task, chance=chance, starts_family=first))
                    break
    return columns


def _rows(collected: Collected, columns: Sequence[Column], metric: str, broken: frozenset[str]) -> tuple[Row, ...]:
    marks = [_marks(collected, column, metric, broken) for column in columns]
    first_method = next(iter(collected.of_role("unlearned")), None)
    return tuple(
        Row(
            evaluation=evaluation,
            cells=tuple(
                Cell(
                    estimate=evaluation.estimate(column.task, metric),
                    mark=mark.get(evaluation.label, ""),
                    spread=evaluation.spread(column.task, metric),
                )
                for column, mark in zip(columns, marks, strict=True)
            ),
            starts_methods=evaluation is first_method,
        )
        for evaluation in collected.evaluations
    )


def _marks(collected: Collected, column: Column, metric: str, broken: frozenset[str]) -> dict[str, str]:
    """The best and the worst method of a column, by label; none where there is no direction or nothing to compare.

    A collapsed model answers nothing, which looks like forgetting: it is never the best, and on forget questions it is not
    ranked at all, so that no other is the worst for not having collapsed.
    """
    shortfalls = {
        method.label: shortfall
        for method in collected.of_role("unlearned")
        if not (column.family in FORGET_FAMILIES and method.label in broken)
        and (shortfall := _shortfall(collected, method, column, metric)) is not None
    }
    goals = {method.record.goal for method in collected.of_role("unlearned")}
    mixed = len(goals) > 1 and column.family in FORGET_FAMILIES and column.modality == "text"
    sound = [value for label, value in shortfalls.items() if label not in broken]
    if len(shortfalls) < 2 or mixed or not sound:
        return {}
    best, worst = min(sound), max(shortfalls.values())
    if worst - best < _TIE:
        return {}
    marked = {label: "best" for label, value in shortfalls.items() if value - best < _TIE and label not in broken}
    return marked | {label: "worst" for label, value in shortfalls.items() if worst - value < _TIE}


def _shortfall(collected: Collected, method: Evaluation, column: Column, metric: str) -> float | None:
    """How far a method is from the ideal, for ranking only; None where the task is no goal in itself.

    On forget questions the ideal is gold's number, not 0: a model that is worse than one which never knew has been
    damaged. Without gold the lower number is the better one, or the higher where only recognition is to go.
    """
    estimate = method.estimate(column.task, metric)
    if estimate is None or math.isnan(estimate.value) or column.family not in FORGET_FAMILIES | KEEP_FAMILIES:
        return None
    if column.family in KEEP_FAMILIES:
        return -estimate.value if metric != "truth_ratio" else None
    target = ideal(collected, method.record.goal, column.task, metric)
    if target is not None:
        return abs(estimate.value - target.value)
    if metric == "truth_ratio":
        return None
    keeps_facts = method.record.goal == "visual_only" and column.modality == "text"
    return -estimate.value if keeps_facts else estimate.value
