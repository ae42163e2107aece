"""What is left of a model: its utility in one number, and whether it still says anything. Compared with vanilla."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mmunlearn.metrics.truth_ratio import retain_form
from mmunlearn.metrics.utility import Collapse, Utility, collapse, model_utility
from mmunlearn.report.collect import Collected, Evaluation, primary_values, read_replies
from mmunlearn.report.words import FORGET_FAMILIES, KEEP_FAMILIES, kinds_of, parse_task, primary_metric, task_title

BROKEN = 0.5
"""From this share of empty, circular or identical replies on, a model that vanilla is not like has collapsed."""
LITTLE = 0.1
"""A model has collapsed too if it keeps less than this share of vanilla's ROUGE-L on what is to be kept."""

FREE_ANSWERS = kinds_of("rougeL")


@dataclass(frozen=True, kw_only=True)
class Replies:
    """The free answers of one model to one task."""

    evaluation: Evaluation
    task: str
    found: Collapse
    warning: str
    """What a reader must know before believing that the model forgot; empty if nothing is wrong."""


@dataclass(frozen=True, kw_only=True)
class Useful:
    """The utility of one model."""

    evaluation: Evaluation
    utility: Utility
    components: dict[str, float]
    """By what they are called on the page."""


def replies(collected: Collected, model: Evaluation) -> tuple[Replies, ...]:
    """Whether a model's free answers have collapsed, task by task; none for tasks whose answers were not kept.

    Warned of: a task about what is to be kept where at least half of the replies are empty, circular or one and the same,
    and at least twice as many as vanilla's; or where less than a tenth of vanilla's ROUGE-L is left. An unlearned model that
    answers nothing at all has every forget number of one that forgot.
    """
    found = []
    for task in model.tasks:
        name = parse_task(task)
        if name.kind in FREE_ANSWERS and name.family in FORGET_FAMILIES | KEEP_FAMILIES:
            shares = collapse(list(read_replies(model, task).values()))
            warned = model.role == "unlearned" and name.family in KEEP_FAMILIES
            warning = _warning(collected, model, task, shares) if warned else ""
            if shares.count or warning:
                found.append(Replies(evaluation=model, task=task, found=shares, warning=warning))
    return tuple(found)


def warnings(collected: Collected, model: Evaluation) -> tuple[str, ...]:
    """Why “forgotten” must not be believed of this model without a second look; empty for a model in good condition.

    Of several seeds each is looked at, since one that collapsed spoils the mean.
    """
    places: dict[tuple[str, str], list[str]] = {}
    for single in model.singles():
        which = f"{single.label}: " if model.members else ""
        for one in replies(collected, single):
            if one.warning:
                places.setdefault((which, one.warning), []).append(task_title(one.task).lower())
    return tuple(f"{which}{warning} ({'; '.join(tasks)})" for (which, warning), tasks in places.items())


def _warning(collected: Collected, model: Evaluation, task: str, shares: Collapse) -> str:
    vanillas = collected.references("vanilla")
    usual = _mean([collapse(list(read_replies(vanilla, task).values())).collapsed for vanilla in vanillas])
    if shares.collapsed >= BROKEN and not shares.collapsed < 2 * usual:
        kinds = {"are empty": shares.empty, "go round in circles": shares.repetitive, "are one and the same": shares.same}
        whole = [what for what, share in kinds.items() if share >= BROKEN]
        what = whole[0] if whole else "are empty, circular or one and the same"
        return f"{100 * kinds.get(what, shares.collapsed):.0f}\u00a0% of its replies {what}"
    metric = primary_metric(task, model.tasks.get(task, ()))
    now = model.estimate(task, metric)
    before = _mean([found.value for vanilla in vanillas if (found := vanilla.estimate(task, metric))])
    if now is not None and before >= LITTLE and now.value < LITTLE * before:
        return f"{100 * now.value / before:.0f}\u00a0% of vanilla’s ROUGE-L is left"
    return ""


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN if none is, so that every comparison with it is false."""
    scored = [value for value in values if not math.isnan(value)]
    return statistics.fmean(scored) if scored else math.nan


def usefulness(collected: Collected) -> tuple[Useful, ...]:
    """The utility of every model, from the same components; empty if nothing about what is to be kept was asked.

    Components, after TOFU: for each task about retain people, real people and general ability its primary number
    (accuracy, cloze or ROUGE-L); for free answers the probability of the expected answer as well; for multiple choice the
    truth ratio in its retain form, averaged over questions. A component that a model was not asked makes its utility NaN.
    Deviation: TOFU has free answers to all its questions, hence no accuracy; image and text questions count separately.
    """
    wanted = _components(collected)
    if not wanted:
        return ()
    result = []
    for model in collected.evaluations:
        parts = {title: _component(model, task, metric) for title, (task, metric) in wanted.items()}
        result.append(Useful(evaluation=model, utility=model_utility(parts), components=parts))
    return tuple(result)


_OF_FREE_ANSWERS = (("probability", "probability"), ("truth_ratio_retain", "truth ratio"))
"""The second where the data set has perturbed answers to compare with."""
_PARTS = {
    "accuracy": (("accuracy", "accuracy"), ("truth_ratio_retain", "truth ratio")),
    "cloze_accuracy": (("cloze_accuracy", "cloze"),),
    "rougeL": (("rougeL", "ROUGE-L"), *_OF_FREE_ANSWERS),
    "rougeL_recall": (("rougeL_recall", "ROUGE-L recall"), *_OF_FREE_ANSWERS),
}
"""By a task's primary metric: what counts, with its title."""


def _components(collected: Collected) -> dict[str, tuple[str, str]]:
    """Task and metric by title: what any of the models was scored with."""
    return {
        f"{task_title(task)}: {title}": (task, metric)
        for task in collected.task_names()
        if parse_task(task).family in KEEP_FAMILIES
        for metric, title in _PARTS[collected.primary_metric(task)]
        if any(not math.isnan(_component(model, task, metric)) for model in collected.evaluations)
    }


def _component(model: Evaluation, task: str, metric: str) -> float:
    if metric == "truth_ratio_retain":
        return _mean([retain_form(ratio) for ratio in primary_values(model, task, "truth_ratio").values()])
    estimate = model.estimate(task, metric)
    return math.nan if estimate is None else estimate.value
