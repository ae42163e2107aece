"""Several seeds of one model as one row: the mean over seeds, with an interval that covers persons and seeds."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mmunlearn.metrics.cards import bounds_of
from mmunlearn.metrics.statistics import Estimate, clustered_interval
from mmunlearn.report.collect import Collected, Evaluation, QuestionScores, numbered
from mmunlearn.report.recipes import recipe, why_not_seeds
from mmunlearn.run import fingerprint


def fold_seeds(collected: Collected) -> Collected:
    """Models that differ only in their seed become one row, “GradDiff (3 seeds)”, at the place of the first.

    Folded are models of one role, method, goal, label (without its seed) and recipe (`recipes.recipe`) whose seeds and weights
    are all different. A model whose training is not on record stays alone: it may have been trained in any way. Where models
    look like seeds of each other and are not folded, a note says why. `Collected.unfolded` undoes it.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, model in enumerate(collected.evaluations):
        alike.setdefault((model.role, model.method, model.record.goal, _without_seed(model)), []).append(place)
    rows, notes = dict(enumerate(collected.evaluations)), []
    for places in alike.values():
        for group in _by_recipe(collected.evaluations, places):
            models = [collected.evaluations[place] for place in group]
            if len(models) > 1 and None not in {model.seed for model in models} and not why_not_seeds(models):
                rows = {place: row for place, row in rows.items() if place not in group} | {group[0]: fold(models)}
        kept = [place for place in places if place in rows and rows[place] is collected.evaluations[place]]
        if len(places) > 1 and kept:
            notes += _why_apart([collected.evaluations[place] for place in places])
    evaluations = [rows[place] for place in sorted(rows)]
    labels = numbered([model.label for model in evaluations])
    return replace(
        collected,
        evaluations=tuple(replace(model, label=label) for model, label in zip(evaluations, labels, strict=True)),
        notes=(*collected.notes, *notes),
    )


def _by_recipe(models: Sequence[Evaluation], places: Sequence[int]) -> list[list[int]]:
    """The places in groups of one recipe; a model whose recipe is not known is a group of its own."""
    groups: dict[Any, list[int]] = {}
    for place in places:
        found = recipe(models[place])
        groups.setdefault(place if found is None else fingerprint(found), []).append(place)
    return list(groups.values())


def _why_apart(models: Sequence[Evaluation]) -> list[str]:
    """Why models that are called alike are no seeds of one another; nothing where nobody would think so."""
    why = why_not_seeds(models)
    if not why or len({model.seed for model in models}) < 2:
        return []
    return [f"{', '.join(model.label for model in models)}: not all are shown as seeds of one model, because {why}."]


def fold(models: Sequence[Evaluation]) -> Evaluation:
    """One row for several seeds of one model.

    Each question counts with the mean over the seeds that could be scored on it; numbers are those of `folded_estimate`.
    `path` is the first seed's, `fingerprint` names all.
    """
    tasks = {
        task: {metric: _estimate(models, task, metric) for metric in models[0].tasks[task]}
        for task in models[0].tasks
        if all(task in model.tasks for model in models)
    }
    return replace(
        models[0],
        label=f"{_without_seed(models[0])} ({len(models)} seeds)",
        seed=None,
        fingerprint="+".join(model.fingerprint for model in models),
        tasks=tasks,
        scores={task: _mean_scores([model.scores.get(task, {}) for model in models]) for task in tasks},
        members=tuple(models),
    )


def folded_estimate(
    tables: Sequence[Mapping[str, float]],
    subjects: Mapping[str, str],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean over seeds of the mean over questions, with an interval for other persons *and* other seeds.

    With S seeds, P persons, y the mean of one person's questions in one seed, and dots for means:

    - persons: the interval [l, h] of `clustered_interval` on each question's mean over seeds. It holds for these seeds.
    - seeds: the variance of the mean that seeds add, `e² = max(0, V_seed - V_cell)`, where `V_seed = Σ_s (y_s. - y_..)² /
      (S (S-1))` and `V_cell = Σ_sp (y_sp - y_s. - y_.p + y_..)² / (S P (S-1)(P-1))`. `V_cell` is what persons and questions
      alone make seeds differ by; the person interval has it already. The difference is the usual unbiased estimate of the
      seeds' variance component, cut at 0 (persons weigh as many questions as they were asked).
    - together: `low = m - √((m - l)² + (t e)²)`, likewise high, with t of S-1 degrees of freedom: the limits of the two
      parts are joined as in Zou and Donner (Statistics in Medicine 27, 2008, eq. 6), so that each keeps its own quantile
      and the person interval its own shape and its rules for extremes.

    Why not the person interval alone: with 75 persons and seeds that differ by half as much as persons do it held the true
    mean in 61 % of simulated studies of three seeds, this one in 95 %. Why not t of S-1 degrees of freedom on the whole: with
    three seeds that do not differ it is twice as wide for nothing. Without a difference between seeds this is the person
    interval, and identical seeds change nothing. Two seeds tell little of how seeds differ: where they differ that much, the
    interval is very wide and still holds in about 91 to 94 % only.

    Args:
        tables: for each seed the value of each question by its id; NaN: could not be scored. At least two.
        subjects: person by question id.
        level: two-sided coverage.
        bounds: as for `clustered_interval`.

    Returns:
        value: the mean of the seeds' means; unscored: questions that not every seed could be scored on; count: the others.
    """
    ids = [id_ for id_ in tables[0] if all(id_ in table for table in tables)]
    values = np.array([[table[id_] for id_ in ids] for table in tables], dtype=np.float64).reshape(len(tables), len(ids))
    scored = ~np.isnan(values)
    complete = int(scored.all(axis=0).sum())
    if not scored.any(axis=1).all():  # a seed without any number
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=complete, unscored=len(ids) - complete)
    value = float(np.mean([row[known].mean() for row, known in zip(values, scored, strict=True)]))
    people = [subjects[id_] for id_ in ids]
    persons = clustered_interval(_column_means(values, scored).tolist(), people, level=level, bounds=bounds)
    reach = float(stats.t.ppf((1 + level) / 2, len(tables) - 1)) * _seed_error(values, scored, people)
    low = value - math.hypot(persons.value - persons.low, reach)
    high = value + math.hypot(persons.high - persons.value, reach)
    if bounds is None and np.nanmin(values) >= 0 and np.nanmax(values) <= 1:
        bounds = 0.0, 1.0
    if bounds is not None:
        low, high = (float(np.clip(end, *bounds)) for end in (low, high))  # NaN stays NaN
    return Estimate(value=value, low=low, high=high, count=complete, unscored=len(ids) - complete)


def _column_means(values: NDArray[np.float64], scored: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[seeds, questions] to [questions]: the mean over the seeds with a number, NaN where none has one."""
    counts = scored.sum(axis=0)
    sums = np.where(scored, values, 0.0).sum(axis=0)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(counts), math.nan), where=counts > 0)
    return means


def _seed_error(values: NDArray[np.float64], scored: NDArray[np.bool_], people: Sequence[str]) -> float:
    """The root of e² in `folded_estimate`; 0 with one person, whose interval is unknown anyway.

    From the questions that every seed was scored on. With persons of different size the sums of a person's residuals take
    the place of the means, which is the same where all have as many questions.
    """
    places = np.flatnonzero(scored.all(axis=0))
    kept = values[:, places]
    persons = np.unique([people[place] or f"\0question {place}" for place in places.tolist()], return_inverse=True)[1]
    seeds, questions, groups = len(kept), kept.shape[1], len(set(persons.tolist()))
    if groups < 2:
        return 0.0
    by_seed = kept.mean(axis=1)
    v_seed = float(by_seed.var(ddof=1)) / seeds
    residuals = kept - by_seed[:, None] - kept.mean(axis=0) + kept.mean()
    sums = np.array([np.bincount(persons, row) for row in residuals])
    v_cell = float((sums**2).sum()) / questions**2 * groups / (groups - 1) / (seeds - 1) / seeds
    return math.sqrt(max(0.0, v_seed - v_cell))


def _estimate(models: Sequence[Evaluation], task: str, metric: str) -> Estimate:
    """From the scores of single questions; without them the mean, and an interval that covers those of all seeds."""
    tables = [
        {id_: scores.metrics[metric] for id_, scores in model.scores.get(task, {}).items() if metric in scores.metrics}
        for model in models
    ]
    if all(tables) and all(table.keys() == tables[0].keys() for table in tables):
        subjects = {id_: scores.subject for id_, scores in models[0].scores[task].items()}
        return folded_estimate(tables, subjects, bounds=bounds_of(metric))
    found = [model.tasks[task][metric] for model in models if metric in model.tasks[task]]
    return Estimate(
        value=sum(estimate.value for estimate in found) / len(found),
        low=min(estimate.low for estimate in found),
        high=max(estimate.high for estimate in found),
        count=min(estimate.count for estimate in found),
        unscored=max(estimate.unscored for estimate in found),
    )


def _mean_scores(tables: Sequence[Mapping[str, QuestionScores]]) -> dict[str, QuestionScores]:
    """Each question that all seeds were asked, with the mean over the seeds that could be scored."""

    def mean(id_: str, metric: str) -> float:
        found = [table[id_].metrics.get(metric, math.nan) for table in tables]
        numbers = [value for value in found if not math.isnan(value)]
        return sum(numbers) / len(numbers) if numbers else math.nan

    return {
        id_: replace(first, metrics={metric: mean(id_, metric) for metric in first.metrics})
        for id_, first in tables[0].items()
        if all(id_ in table for table in tables)
    }


def _without_seed(model: Evaluation) -> str:
    """The label without the model's own seed at its end: “GradDiff seed 1” and “GradDiff-s1” are GradDiff."""
    name = model.name or model.label
    return re.sub(rf"[\s_,-]+\(?(?:seed|s)[\s_=:-]*{model.seed}\)?$", "", name, flags=re.IGNORECASE) or name
