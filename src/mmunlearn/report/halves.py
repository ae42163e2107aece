"""Two halves of the people: one to choose settings on, the other to report numbers of."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from mmunlearn.errors import RunError
from mmunlearn.metrics.cards import bounds_of
from mmunlearn.metrics.statistics import Estimate, clustered_interval
from mmunlearn.report.collect import Collected, Evaluation, QuestionScores
from mmunlearn.report.words import FORGET_FAMILIES

CHOSEN_ON = (FORGET_FAMILIES, frozenset({"retain"}))
"""The groups of tasks whose people are halved: those to be forgotten, and those to be kept. Others take no part in a choice."""


@dataclass(frozen=True, kw_only=True)
class Halves:
    """People on whom settings are chosen, and those whom the reported numbers are about."""

    validation: frozenset[str]
    reported: frozenset[str]


def halves(collected: Collected, seed: int) -> Halves:
    """Halve the forget people, and the retain people.

    The people of a group are put in the order of a hash of seed and name; the first half (the smaller one, if their number
    is odd) is for validation. So the halves depend on who was asked about, and on nothing that a model said.

    Args:
        collected: evaluations that asked the same questions.
        seed: another one makes other halves.

    Raises:
        RunError: a group has fewer than two people, or is not there.
    """
    validation: set[str] = set()
    everybody: set[str] = set()
    for families in CHOSEN_ON:
        people = collected.subjects(families)
        if len(people) < 2:
            raise RunError(
                f"Settings are chosen on one half of the {sorted(families)[0]} people and reported on the other, but the "
                f"evaluations asked about {len(people)} of them. Ask about more: evaluation.splits, evaluation.limit."
            )
        validation |= set(first_half(people, seed))
        everybody |= people
    return Halves(validation=frozenset(validation), reported=frozenset(everybody - validation))


def first_half(people: Iterable[str], seed: int) -> list[str]:
    """Half of some people, rounded down, by a seeded hash of their names."""
    ranked = sorted(set(people), key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest())
    return ranked[: len(ranked) // 2]


def without_people(collected: Collected, dropped: Collection[str]) -> Collected:
    """The same evaluations as if nobody had been asked about some people; a task that is about nobody else is left out.

    Raises:
        RunError: an evaluation has no scores of single questions.
    """
    return replace(collected, evaluations=tuple(_without(model, dropped) for model in collected.evaluations))


def _without(model: Evaluation, dropped: Collection[str]) -> Evaluation:
    tasks, scores = {}, {}
    for task, estimates in model.tasks.items():
        questions = model.scores.get(task, {})
        if not questions and any(estimate.count for estimate in estimates.values()):
            raise RunError(
                f"{model.path}: the scores of single questions are missing ({task}), so a half of the people cannot be told "
                f"apart. Run `mmunlearn score run.dir={model.path}`."
            )
        kept = {id_: question for id_, question in questions.items() if question.subject not in dropped}
        if len(kept) == len(questions):
            tasks[task], scores[task] = estimates, questions
        elif kept:
            tasks[task], scores[task] = {metric: _estimate(metric, kept.values()) for metric in estimates}, kept
    return replace(model, tasks=tasks, scores=scores)


def _estimate(metric: str, questions: Iterable[QuestionScores]) -> Estimate:
    """As an evaluation computes it."""
    asked = [question for question in questions if metric in question.metrics]
    values, subjects = [each.metrics[metric] for each in asked], [each.subject for each in asked]
    return clustered_interval(values, subjects, bounds=bounds_of(metric))
