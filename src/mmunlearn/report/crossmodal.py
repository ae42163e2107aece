"""Facts that were asked both with the picture and in text: is a model consistent, and what is left in which modality?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mmunlearn.metrics.agreement import Agreement, Pairs, cross_modal, pair_facts
from mmunlearn.metrics.statistics import Estimate
from mmunlearn.report.answers import Answers
from mmunlearn.report.collect import Collected, Evaluation, primary_values
from mmunlearn.report.compared import Number, exactly
from mmunlearn.report.words import FAMILIES, FORGET_FAMILIES, parse_task, primary_metric, task_title

_YES_OR_NO = ("accuracy", "cloze_accuracy")


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """One model on the facts of one kind of question."""

    evaluation: Evaluation
    task: str
    """The task with pictures; that in text has the same family and kind."""
    found: Agreement

    def estimates(self) -> dict[str, Estimate]:
        """By what follows `cross_modal_` in the metric's name."""
        found = self.found
        return {
            "both_right": found.both_right,
            "image_only": found.image_only,
            "text_only": found.text_only,
            "both_wrong": found.both_wrong,
            "agreement": found.agreement,
            "phi": exactly(found.phi, found.agreement.count, found.agreement.unscored),
        }


@dataclass(frozen=True, kw_only=True)
class CrossModal:
    """Every model on the paired facts, or why there are none."""

    missing: str
    pairs: Mapping[str, Pairs]
    """By task."""
    found: tuple[Consistency, ...] = ()
    notes: tuple[str, ...] = ()
    """Questions that had to be left out, and why."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """In order."""
        return tuple(self.pairs)

    def in_task(self, task: str) -> tuple[Consistency, ...]:
        """All models in one task."""
        return tuple(one for one in self.found if one.task == task)

    def numbers(self) -> list[Number]:
        """As rows."""
        return [
            Number(evaluation=one.evaluation, task=one.task, metric=f"cross_modal_{name}", estimate=estimate)
            for one in self.found
            for name, estimate in one.estimates().items()
        ]


def cross_modal_agreement(collected: Collected, answers: Answers) -> CrossModal:
    """Pair the image and text questions about forget people by person and expected answer, and compare.

    Args:
        collected: the report's data.
        answers: the expected answers, without which nothing can be paired; questions that have none are left out and counted.
    """
    asked = collected.task_names()
    tasks = [task for task in asked if _is_pairable(task) and _in_text(task) in asked]
    tasks.sort(key=lambda task: FAMILIES.index(parse_task(task).family))
    if not tasks:
        return CrossModal(missing="no kind of multiple choice or blank was asked both with and without pictures", pairs={})
    pairs = {task: pair_facts(*(_facts(collected, name, answers.by_id) for name in (task, _in_text(task)))) for task in tasks}
    notes = tuple(note for task in tasks for name in (task, _in_text(task)) if (note := _unanswered(collected, name, answers)))
    pairs = {task: paired for task, paired in pairs.items() if paired.ids}
    if not pairs:
        because = without_details(answers) or "it has none of these questions"
        why = f"the expected answers could not be read from the benchmark ({because})"
        return CrossModal(missing="no fact was asked both ways" if answers.by_id else why, pairs={}, notes=notes)
    found = [
        Consistency(evaluation=model, task=task, found=one)
        for task, paired in pairs.items()
        for model in collected.evaluations
        if (one := _consistency(model, task, paired)) is not None
    ]
    return CrossModal(missing="", pairs=pairs, found=tuple(found), notes=notes)


def _is_pairable(task: str) -> bool:
    name = parse_task(task)
    return name.family in FORGET_FAMILIES and name.modality == "image" and primary_metric(task) in _YES_OR_NO


def _in_text(task: str) -> str:
    name = parse_task(task)
    return f"{name.family}_text_{name.kind}"


def _facts(collected: Collected, task: str, answers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Person and expected answer of every question of a task that any model was asked."""
    return {
        id_: (scores.subject, answers[id_])
        for model in collected.evaluations
        for id_, scores in model.scores.get(task, {}).items()
        if id_ in answers
    }


def without_details(answers: Answers) -> str:
    """Why there are no answers, without what a message of the benchmark's own may quote, such as names."""
    return answers.missing.partition(":")[0]


def _unanswered(collected: Collected, task: str, answers: Answers) -> str:
    """Says that the benchmark has no expected answer to some questions of a task; empty if it has all."""
    asked = {id_ for model in collected.evaluations for id_ in model.scores.get(task, {})}
    lacking = len(asked - answers.by_id.keys())
    if not lacking:
        return ""
    why = f" ({without_details(answers)})" if answers.missing else ""
    return f"{lacking} of {len(asked)} questions of “{task_title(task).lower()}” have no expected answer in the benchmark{why}."


def _consistency(model: Evaluation, task: str, paired: Pairs) -> Agreement | None:
    metric = primary_metric(task, model.tasks.get(task, ()))
    sides = primary_values(model, task, metric), primary_values(model, _in_text(task), metric)
    if not all(sides):
        return None
    image, text = ([side.get(ids[at], math.nan) for ids in paired.ids] for at, side in enumerate(sides))
    people = {id_: scores.subject for id_, scores in model.scores[task].items()}
    return cross_modal(image, text, [people.get(ids[0], "") for ids in paired.ids])
