"""What the numbers allow to be said: was there anything to forget, is it forgotten, what was kept."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mmunlearn.metrics.statistics import Estimate, paired_difference
from mmunlearn.report.collect import Collected, Evaluation, primary_values
from mmunlearn.report.condition import warnings
from mmunlearn.report.recipes import trained_alike, why_not_seeds
from mmunlearn.report.words import FAMILIES, FORGET_FAMILIES, MODALITIES, has_options, parse_task, primary_metric

MEMORISED = "memorised"
NOT_SHOWN = "not shown"
UNKNOWN = "unknown"
FORGOTTEN = "forgotten"
NOT_FORGOTTEN = "not forgotten"
OVER_FORGOTTEN = "below gold"
TRACES_LEFT = "traces left"
FACTS_KEPT = "facts kept, as intended"
FACTS_LOST = "facts damaged"
NOT_DECIDED = "not decided"

UNDECIDED_SHARE = 0.5
"""A model is called forgotten only if it is shown that less than this share of what vanilla had learned (vanilla minus gold)
is left; that it lies inside gold's interval, which is wide with few people, does not show it. It is called not forgotten only
if it is shown that more is left. Facts are called kept only if it is shown that less than this share of what gold_text knows
of them (gold_text minus gold) is lost. Shown: by the one-sided 95 % bound of the paired difference to gold or gold_text. Else
the word is `not decided`: more people or questions would tell."""
BOUND_LEVEL = 0.9
"""Two-sided level of an interval whose ends are one-sided 95 % bounds."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether the vanilla model knew more than one that never saw the forget people."""

    task: str
    metric: str
    state: str
    """`memorised`, `not shown` or `unknown`."""
    difference: Estimate | None
    """Vanilla minus gold on the same questions; its `low` is the one-sided 95 % bound. None where state is `unknown`."""
    reason: str
    """Why the state is what it is."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What can be said of one method on one forget task."""

    task: str
    estimate: Estimate
    word: str
    inside: bool | None
    """Whether the value lies inside gold's interval; None where there is none."""
    excess: Estimate | None
    """The method minus gold on the same questions; None if either side kept no scores of single questions. Several seeds count
    with their mean on each question, and the interval is over persons: it is about these seeds, whose spread is told apart.

    With few people gold's interval is wide. This difference is the sharper test: inside the interval, but surely above 0,
    means `traces left`, not `forgotten`.
    """
    highest: float
    """The highest mean of any person: a mean over all can hide one who is still known. NaN without scores of questions."""
    margin: float
    """What `excess` is held against: `UNDECIDED_SHARE` of what was learned; NaN where that is not known."""
    reason: str = ""
    """Why nothing can be said, where the gate does not say it."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How much of the vanilla model's number on a retain task is left."""

    task: str
    share: float
    """1 = all of it; NaN if vanilla has no number or 0."""
    at_chance: bool
    """The interval reaches down to what guessing gets, whatever the share."""


@dataclass(frozen=True, kw_only=True)
class MethodVerdict:
    """All findings of one method."""

    evaluation: Evaluation
    findings: tuple[Finding, ...]
    kept: tuple[Kept, ...]
    worst_person: float
    """The highest mean of any forget person on the first forget task: a mean can hide one who is still known."""
    warnings: tuple[str, ...]
    """Signs of a collapsed model, which has every forget number of one that forgot; see `condition.warnings`."""


def headline_tasks(collected: Collected, families: Sequence[str]) -> tuple[str, ...]:
    """For each family and modality its first task, multiple choice before blanks before free answers."""
    chosen = []
    for family in families:
        for modality in MODALITIES:
            tasks = [t for t in collected.task_names() if (parse_task(t).family, parse_task(t).modality) == (family, modality)]
            kinds = ("accuracy", "cloze_accuracy", "rougeL")
            tasks.sort(key=lambda task: kinds.index(primary_metric(task)))
            chosen += tasks[:1]
    return tuple(chosen)


def forget_tasks(collected: Collected) -> tuple[str, ...]:
    """The tasks by which forgetting is judged: the headline tasks, and free text answers where facts are to be kept.

    Choosing the right option takes less knowledge than writing it, so facts can be damaged while choices stay right.
    """
    tasks = headline_tasks(collected, ["forget"])
    if all(model.record.goal != "visual_only" for model in collected.of_role("unlearned")):
        return tasks
    written = [task for task in collected.task_names() if task in ("forget_text_generation", "forget_text_qa")]
    return (*tasks, *(task for task in written if task not in tasks))


def ideal(collected: Collected, goal: str, task: str, metric: str) -> Estimate | None:
    """The number that perfect forgetting would have: gold's, or that of `gold_text` where only recognition is to go.

    With several seeds: the mean of the values, and an interval that covers all of theirs.
    """
    models = ideal_models(collected, goal)
    estimates = [estimate for model in models if (estimate := model.estimate(task, metric)) is not None]
    estimates = [estimate for estimate in estimates if not math.isnan(estimate.value)]
    if not estimates:
        return None
    return Estimate(
        value=sum(estimate.value for estimate in estimates) / len(estimates),
        low=min(estimate.low for estimate in estimates),
        high=max(estimate.high for estimate in estimates),
        count=estimates[0].count,
        unscored=estimates[0].unscored,
    )


def gates(collected: Collected, margin: float | None = None) -> tuple[Gate, ...]:
    """The memorisation gate of every task about forget people.

    Args:
        collected: the report's data.
        margin: 0 to 1; the lower one-sided 95 % bound of vanilla minus gold must exceed it. None: `collected.gate_margin`.
    """
    tasks = [task for task in collected.task_names() if parse_task(task).family in FORGET_FAMILIES]
    tasks.sort(key=lambda task: FAMILIES.index(parse_task(task).family))
    margin = collected.gate_margin if margin is None else margin
    return tuple(_gate(collected, task, collected.primary_metric(task), margin) for task in tasks)


def noise_floor(collected: Collected) -> float:
    """The largest difference between two gold models in any task's primary metric; NaN where `no_noise_floor` says why."""
    golds = ideal_models(collected, "erase")
    if no_noise_floor(golds):
        return math.nan
    spans = []
    for task in collected.task_names():
        found = [gold.estimate(task, collected.primary_metric(task)) for gold in golds]
        values = [estimate.value for estimate in found if estimate is not None and not math.isnan(estimate.value)]
        if len(values) > 1:
            spans.append(max(values) - min(values))
    return max(spans, default=math.nan)


def no_noise_floor(golds: Sequence[Evaluation]) -> str:
    """Why the difference between gold models is not that between seeds; empty if it is."""
    if len(golds) < 2:
        return "only one gold model was evaluated" if golds else "no gold model was evaluated"
    alike = trained_alike(golds)
    return why_not_seeds(alike if len(alike) > 1 else golds)


def person_means(evaluation: Evaluation, task: str, metric: str) -> dict[str, float]:
    """The mean of a metric over each person's questions; NaN for a person with none that could be scored."""
    values: dict[str, list[float]] = defaultdict(list)
    for id_, value in primary_values(evaluation, task, metric).items():
        values[evaluation.scores[task][id_].subject].append(value)
    scored = {subject: [value for value in numbers if not math.isnan(value)] for subject, numbers in values.items()}
    return {subject: sum(numbers) / len(numbers) if numbers else math.nan for subject, numbers in scored.items()}


def verdicts(collected: Collected) -> tuple[MethodVerdict, ...]:
    """One verdict for each unlearned model, in the order of the report."""
    states = {gate.task: gate for gate in gates(collected)}
    forget, retain = forget_tasks(collected), headline_tasks(collected, ["retain"])
    result = []
    for model in collected.of_role("unlearned"):
        findings = [finding for task in forget if (finding := _finding(collected, model, task, states[task]))]
        kept = [share for task in retain if (share := _kept(collected, model, task))]
        worst = _highest(model, forget[0], collected.primary_metric(forget[0])) if forget else math.nan
        result.append(
            MethodVerdict(
                evaluation=model,
                findings=tuple(findings),
                kept=tuple(kept),
                worst_person=worst,
                warnings=_warnings(collected, model),
            ),
        )
    return tuple(result)


def _warnings(collected: Collected, model: Evaluation) -> tuple[str, ...]:
    """Of any of its seeds, each once: answers are read seed by seed."""
    found = [warning for single in model.singles() for warning in warnings(collected.unfolded(), single)]
    return tuple(dict.fromkeys(found))


def ideal_models(collected: Collected, goal: str) -> tuple[Evaluation, ...]:
    """The models that show what perfect forgetting looks like, one a seed; none if they were not evaluated.

    Of several the first and those not known to be trained otherwise than it: their mean is to be about one recipe.
    """
    return trained_alike(collected.references("gold_text" if goal == "visual_only" else "gold"))


def mean_by_question(models: Sequence[Evaluation], task: str, metric: str) -> dict[str, float]:
    """Over seeds; a question that any of them could not be scored on is NaN."""
    tables = [values for model in models if (values := primary_values(model, task, metric))]
    if not tables:
        return {}
    shared = [id_ for id_ in tables[0] if all(id_ in table for table in tables)]
    return {id_: sum(table[id_] for table in tables) / len(tables) for id_ in shared}


def _gate(collected: Collected, task: str, metric: str, margin: float) -> Gate:
    vanilla, gold = collected.references("vanilla"), ideal_models(collected, "erase")
    if not gold and parse_task(task).modality == "image":
        gold = ideal_models(collected, "visual_only")  # it never saw a forget face either

    def unknown(reason: str) -> Gate:
        return Gate(task=task, metric=metric, state=UNKNOWN, difference=None, reason=reason)

    if not vanilla or not gold:
        return unknown(f"no {'vanilla' if not vanilla else 'gold'} model was evaluated")
    before, never = mean_by_question(vanilla, task, metric), mean_by_question(gold, task, metric)
    if not before.keys() & never.keys():
        return unknown("the two models have no scored question in common")
    subjects = {id_: scores.subject for model in vanilla for id_, scores in model.scores[task].items()}
    difference = paired_difference(before, never, subjects, level=BOUND_LEVEL)
    if math.isnan(difference.low):
        return Gate(task=task, metric=metric, state=UNKNOWN, difference=difference, reason="too few people for a bound")
    passed = difference.low > margin
    comparison = "exceeds" if passed else "does not exceed"
    reason = f"the lower bound {difference.low:.2f} {comparison} {margin:.2f}"
    return Gate(task=task, metric=metric, state=MEMORISED if passed else NOT_SHOWN, difference=difference, reason=reason)


def _finding(collected: Collected, model: Evaluation, task: str, gate: Gate) -> Finding | None:
    metric = collected.primary_metric(task)
    estimate = model.estimate(task, metric)
    if estimate is None or math.isnan(estimate.value):
        return None
    goal = model.record.goal
    highest = _highest(model, task, metric)
    target = ideal(collected, goal, task, metric)
    if target is None or math.isnan(target.low):
        return Finding(task=task, estimate=estimate, word=UNKNOWN, inside=None, excess=None, highest=highest, margin=math.nan)
    excess = _excess(collected, model, task, metric)
    bounds = _excess(collected, model, task, metric, level=BOUND_LEVEL)
    learned, word, reason = gate.difference, gate.state, ""
    if gate.state == MEMORISED and goal == "visual_only" and parse_task(task).modality == "text":
        learned = _facts_learned(collected, task, metric)
        if learned.low > collected.gate_margin:
            word = _facts(excess, bounds, UNDECIDED_SHARE * learned.value)
        else:
            word, reason = UNKNOWN, "gold_text is not shown to know these facts better than gold"
    elif gate.state == MEMORISED and learned is not None:
        word = _left(target, estimate, excess, bounds, UNDECIDED_SHARE * learned.value)
    return Finding(
        task=task,
        estimate=estimate,
        word=word,
        inside=target.low <= estimate.value <= target.high,
        excess=excess,
        highest=highest,
        margin=math.nan if learned is None else UNDECIDED_SHARE * learned.value,
        reason=reason,
    )


def _left(target: Estimate, estimate: Estimate, excess: Estimate | None, bounds: Estimate | None, margin: float) -> str:
    """The word for what is to go; each needs a bound of the difference to gold on the same questions.

    Args:
        target: gold's number.
        estimate: the model's.
        excess: the model less gold, with its 95 % interval.
        bounds: the same with one-sided 95 % bounds.
        margin: so much more than gold is too much.
    """
    if excess is None or bounds is None or math.isnan(excess.low):
        return NOT_DECIDED
    if bounds.low > margin:
        return NOT_FORGOTTEN
    if excess.low > 0:
        return TRACES_LEFT
    if estimate.value < target.low:
        return OVER_FORGOTTEN if excess.high < 0 else NOT_DECIDED
    return FORGOTTEN if estimate.value <= target.high and bounds.high < margin else NOT_DECIDED


def _facts(excess: Estimate | None, bounds: Estimate | None, margin: float) -> str:
    """The word for facts that are to stay, by the difference to gold_text; see `_left`."""
    if excess is None or bounds is None or math.isnan(excess.low):
        return NOT_DECIDED
    if excess.high < 0:
        return FACTS_LOST
    return FACTS_KEPT if bounds.low > -margin else NOT_DECIDED


def _facts_learned(collected: Collected, task: str, metric: str) -> Estimate:
    """gold_text minus gold: the facts that are to stay. Likeness to a gold_text that did not learn them would show nothing."""
    ideals, golds = (ideal_models(collected, goal) for goal in ("visual_only", "erase"))
    knows, never = (mean_by_question(models, task, metric) for models in (ideals, golds))
    subjects = {id_: scores.subject for model in ideals for id_, scores in model.scores.get(task, {}).items()}
    return paired_difference(knows, never, subjects, level=BOUND_LEVEL)


def _highest(model: Evaluation, task: str, metric: str) -> float:
    means = person_means(model, task, metric).values()
    return max((value for value in means if not math.isnan(value)), default=math.nan)


def _excess(collected: Collected, model: Evaluation, task: str, metric: str, level: float = 0.95) -> Estimate | None:
    now = primary_values(model, task, metric)
    never = mean_by_question(ideal_models(collected, model.record.goal), task, metric)
    if not now.keys() & never.keys():
        return None
    return paired_difference(now, never, {id_: scores.subject for id_, scores in model.scores[task].items()}, level=level)


def _kept(collected: Collected, model: Evaluation, task: str) -> Kept | None:
    metric = collected.primary_metric(task)
    now = model.estimate(task, metric)
    if now is None or math.isnan(now.value):
        return None
    before = [estimate.value for vanilla in collected.references("vanilla") if (estimate := vanilla.estimate(task, metric))]
    vanilla_value = sum(before) / len(before) if before else math.nan
    chance = collected.chance.get(task, -math.inf) if has_options(task) else -math.inf
    return Kept(
        task=task,
        share=now.value / vanilla_value if vanilla_value else math.nan,
        at_chance=now.low <= chance,
    )
