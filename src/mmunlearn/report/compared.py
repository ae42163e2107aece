"""Numbers of one model that need another model: differences on the same questions, the gap to gold, forget quality.

Every number becomes a `Number`, a row of the report's `results.json`; a part that cannot be given says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmunlearn.metrics.statistics import Estimate, paired_difference
from mmunlearn.metrics.truth_ratio import forget_quality, js_similarity
from mmunlearn.metrics.utility import Gap, gap_to_gold
from mmunlearn.report.collect import Collected, Evaluation, primary_values
from mmunlearn.report.recipes import why_not_seeds
from mmunlearn.report.verdict import forget_tasks, headline_tasks, ideal_models, mean_by_question, no_noise_floor
from mmunlearn.report.words import FAMILIES, FORGET_FAMILIES, KEEP_FAMILIES, has_options, parse_task

ALL_TASKS = "all"
"""Stands for the task of a number that is about no task alone."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number that needs more than one question set or more than one model."""

    evaluation: Evaluation
    task: str
    """The forget task that it is about, or `ALL_TASKS`."""
    metric: str
    """As on its card."""
    estimate: Estimate
    of: str = ""
    """The metric that is compared, the attack, or the judge; empty where there is only one."""


def number_rows(collected: Collected, numbers: Sequence[Number]) -> list[dict[str, Any]]:
    """Flat rows like those of `Collected.rows`, with one more field, `of`."""
    return [
        {
            "benchmark": collected.benchmark,
            "version": collected.version,
            "protocol": collected.protocol,
            "fingerprint": number.evaluation.fingerprint,
            "role": number.evaluation.role,
            "method": number.evaluation.method,
            "seed": number.evaluation.seed,
            "task": number.task,
            "metric": number.metric,
            "of": number.of,
            **number.estimate.to_json(),
        }
        for number in numbers
    ]


def exactly(value: float, count: int, unscored: int = 0) -> Estimate:
    """A number for which no interval is known."""
    return Estimate(value=value, low=math.nan, high=math.nan, count=count, unscored=unscored)


# Differences --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model in one task, held against vanilla and against the gold of its goal."""

    evaluation: Evaluation
    task: str
    metric: str
    to_vanilla: Estimate | None
    """On the same questions; None for vanilla itself, and where either side kept no scores of single questions."""
    to_gold: Estimate | None
    gap: Gap
    """Of the aggregated numbers; its noise floor is NaN where the gold models are no seeds of one another."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The headline tasks, and every model in each of them."""

    tasks: tuple[str, ...]
    found: tuple[Difference, ...]
    no_floor: str = ""
    """Why there is no noise floor of the gold models; empty if there is one."""

    def of(self, model: Evaluation, task: str) -> Difference | None:
        """One model in one task."""
        return next((d for d in self.found if d.evaluation is model and d.task == task), None)

    def noise_floor(self, task: str) -> float:
        """The largest difference between two seeds of gold; NaN where there is none."""
        floors = (one.gap.noise_floor for one in self.found if one.task == task and one.evaluation.record.goal != "visual_only")
        return next(floors, math.nan)

    def numbers(self) -> list[Number]:
        """As rows; differences that do not exist have none."""
        return [number for one in self.found for number in _difference_numbers(one)]


def _difference_numbers(one: Difference) -> list[Number]:
    found = {"difference_to_vanilla": one.to_vanilla, "difference_to_gold": one.to_gold}
    if one.gap.golds:
        count = (one.evaluation.estimate(one.task, one.metric) or exactly(math.nan, 0)).count
        found |= {"gap_to_gold": exactly(one.gap.gap, count), "noise_floor": exactly(one.gap.noise_floor, one.gap.golds)}
    return [
        Number(evaluation=one.evaluation, task=one.task, of=one.metric, metric=name, estimate=estimate)
        for name, estimate in found.items()
        if estimate is not None
    ]


def surely(estimate: Estimate | None) -> str:
    """`above` or `below` if the interval of a difference leaves out 0, else empty."""
    if estimate is None or math.isnan(estimate.low) or estimate.low <= 0 <= estimate.high:
        return ""
    return "above" if estimate.low > 0 else "below"


def differences(collected: Collected) -> Differences:
    """Every model but vanilla and the golds themselves in the headline tasks, less vanilla and less gold.

    With several seeds of vanilla or gold each question counts with their mean.
    """
    families = [family for family in FAMILIES if family in FORGET_FAMILIES | KEEP_FAMILIES]  # the holdout is no goal in itself
    tasks = tuple(dict.fromkeys((*forget_tasks(collected), *headline_tasks(collected, families))))
    tasks = tuple(sorted(tasks, key=lambda task: FAMILIES.index(parse_task(task).family)))
    models = [model for model in collected.evaluations if not model.role.startswith("gold")]
    found = [
        _difference(collected, model, task)
        for model in models
        for task in tasks
        if model.estimate(task, collected.primary_metric(task)) is not None
    ]
    return Differences(tasks=tasks, found=tuple(found), no_floor=no_noise_floor(collected.references("gold")))


def _difference(collected: Collected, model: Evaluation, task: str) -> Difference:
    metric = collected.primary_metric(task)
    golds = ideal_models(collected, model.record.goal)
    estimate = model.estimate(task, metric)
    values = [found.value for gold in golds if (found := gold.estimate(task, metric)) is not None]
    vanillas = () if model.role == "vanilla" else collected.references("vanilla")
    gap = gap_to_gold(math.nan if estimate is None else estimate.value, values)
    return Difference(
        evaluation=model,
        task=task,
        metric=metric,
        to_vanilla=_paired(model, vanillas, task, metric),
        to_gold=_paired(model, golds, task, metric),
        gap=gap if not no_noise_floor(golds) else replace(gap, noise_floor=math.nan),
    )


def _paired(model: Evaluation, others: Sequence[Evaluation], task: str, metric: str) -> Estimate | None:
    mine, theirs = primary_values(model, task, metric), mean_by_question(others, task, metric)
    if not mine.keys() & theirs.keys():
        return None
    return paired_difference(mine, theirs, {id_: scores.subject for id_, scores in model.scores[task].items()})


# Forget quality -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Are a model's truth ratios on one task distributed as gold's?"""

    evaluation: Evaluation
    task: str
    p_value: float
    """Of the Kolmogorov-Smirnov test; with several gold models the smallest."""
    similarity: float
    """1 less the Jensen-Shannon distance; with several gold models the smallest."""
    count: int
    """Questions that the model and every gold model it is held against have a truth ratio for."""
    asked: int
    """Questions of the task that the model was asked."""


@dataclass(frozen=True, kw_only=True)
class ForgetQuality:
    """Forget quality of every model, or why there is none."""

    missing: str
    found: tuple[Quality, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """In order."""
        return tuple(dict.fromkeys(quality.task for quality in self.found))

    def of(self, model: Evaluation, task: str) -> Quality | None:
        """One model in one task."""
        return next((q for q in self.found if q.evaluation is model and q.task == task), None)

    def numbers(self) -> list[Number]:
        """As rows."""
        return [
            Number(evaluation=q.evaluation, task=q.task, metric=metric, of="truth_ratio", estimate=exactly(value, q.count))
            for q in self.found
            for metric, value in (("forget_quality", q.p_value), ("forget_quality_js", q.similarity))
        ]


def forget_qualities(collected: Collected) -> ForgetQuality:
    """The truth ratios of each model held against those of gold, on the questions that both have one for.

    For the goal visual_only gold is gold_text. A gold model is held against the other seeds, which shows the best that can
    be expected; with several golds a model gets the smallest number, that of the gold from which it differs most.
    """
    tasks = [
        task
        for task in collected.task_names()
        if parse_task(task).family in FORGET_FAMILIES
        and any((one := model.estimate(task, "truth_ratio")) and not math.isnan(one.value) for model in collected.evaluations)
    ]
    if not tasks:
        return ForgetQuality(missing=_no_truth_ratio(collected))
    if not collected.of_role("gold") and not collected.of_role("gold_text"):
        return ForgetQuality(missing="no gold model was evaluated")
    tasks.sort(key=lambda task: FAMILIES.index(parse_task(task).family))
    found = [q for task in tasks for model in collected.evaluations if (q := _quality(collected, model, task)) is not None]
    if not found:
        return ForgetQuality(missing="no model and gold model of its goal have kept the truth ratios of the same questions")
    return ForgetQuality(missing="", found=tuple(found))


def _no_truth_ratio(collected: Collected) -> str:
    """Why no forget task has one: nothing was asked, nothing to compare with, or no probabilities."""
    asked = [task for task in collected.task_names() if parse_task(task).family in FORGET_FAMILIES]
    if not asked:
        return "no task asked about the forget people"
    if any(has_options(task) for task in asked):
        return "the evaluations kept no truth ratio of the multiple choice about the forget people"
    return (
        "no task about the forget people comes with wrong answers to compare with: a truth ratio needs the options of multiple "
        "choice or, for free answers, perturbed ones"
    )


def _quality(collected: Collected, model: Evaluation, task: str) -> Quality | None:
    own_kind = model.role if model.role.startswith("gold") else ""
    golds = _ideals(collected, model, own_kind)
    mine = primary_values(model, task, "truth_ratio")
    tables = [primary_values(gold, task, "truth_ratio") for gold in golds if gold is not model]
    shared = [id_ for id_ in mine if all(_scored(table, id_) for table in (mine, *tables))]
    if not tables or not shared:
        return None
    ratios = [mine[id_] for id_ in shared]
    others = [[table[id_] for id_ in shared] for table in tables]
    return Quality(
        evaluation=model,
        task=task,
        p_value=min(forget_quality(ratios, other) for other in others),
        similarity=min(js_similarity(ratios, other) for other in others),
        count=len(shared),
        asked=len(model.scores[task]),
    )


def _ideals(collected: Collected, model: Evaluation, own_kind: str) -> Sequence[Evaluation]:
    """The golds that a model is held against; a gold only against others that were trained alike, but with other weights."""
    if not own_kind:
        return ideal_models(collected, model.record.goal)
    others = [gold for gold in collected.references(own_kind) if gold is not model]
    return [gold for gold in others if not why_not_seeds([model, gold])]


def _scored(table: Mapping[str, float], id_: str) -> bool:
    return not math.isnan(table.get(id_, math.nan))
