"""Forgetting against keeping over the settings of a sweep, and the choice among them on a half of the people."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmunlearn.errors import RunError
from mmunlearn.metrics.statistics import Estimate, clustered_interval
from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.report.halves import CHOSEN_ON, Halves, halves, without_people
from mmunlearn.report.seeds import fold, folded_estimate
from mmunlearn.report.verdict import headline_tasks, ideal_models, person_means
from mmunlearn.report.words import parse_task, primary_metric

VISUAL_ONLY = "visual_only"
SLACK = 1e-9
"""Numbers that differ by less are equal."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One combination of settings, tried with one seed or several."""

    name: str
    """What differs from the other settings, without the seed."""
    members: tuple[Evaluation, ...]
    """One model for each seed."""

    @property
    def method(self) -> str:
        """The class of the method."""
        return self.members[0].method

    @property
    def goal(self) -> str:
        """What it is after."""
        return self.members[0].record.goal


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The tasks by which a goal is judged."""

    forget: tuple[str, ...]
    """What is to be forgotten."""
    kept: Mapping[str, tuple[str, ...]]
    """What is to be kept, by the name of the condition: the retain people, and with visual_only the forget people's facts."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Of one setting on one half of the people."""

    forget: Estimate
    kept: Mapping[str, Estimate]
    distance: float
    """From gold's forget number; without a gold model the forget number itself."""

    @property
    def retain(self) -> Estimate:
        """The number of the retain people."""
        return self.kept["retain"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting."""

    setting: Setting
    validation: Numbers
    reported: Numbers
    qualifies: bool
    """Whether it keeps enough on the validation half."""
    chosen: bool
    """Whether it is its method's choice."""
    best: bool
    """Whether no other setting of its method is nearer to the ideal and keeps more, on the validation half."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much was tried for one method."""

    method: str
    settings: int
    runs: int
    """All of them: the more are tried, the better the best one looks."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """All settings of a sweep and what was chosen."""

    rows: tuple[Row, ...]
    references: tuple[tuple[Evaluation, Numbers], ...]
    """Base, vanilla and gold on the reported half, by the tasks of the first setting's goal."""
    aim: Aim
    rule: str
    seed: int
    keep: float
    people: Mapping[str, tuple[int, int]]
    """Number of people for validation and in the reported half: `forget`, `retain`."""
    budgets: tuple[Budget, ...]
    failed: int
    """Runs of the sweep that have no model; they count as tried."""

    def chosen(self, method: str) -> Row | None:
        """A method's choice; None if no setting of it keeps enough."""
        return next((row for row in self.rows if row.chosen and row.setting.method == method), None)


def check_vanilla(roles: Iterable[str]) -> None:
    """Nothing can be chosen without the model before unlearning.

    Raises:
        RunError: it is not among the evaluations.
    """
    if "vanilla" not in roles:
        raise RunError(
            "Without an evaluation of the vanilla model nobody knows what a setting keeps. Name it, and gold's, which says "
            "what perfect forgetting looks like: report.evaluations=[outputs/eval-vanilla,outputs/eval-gold]"
        )


def frontier(
    collected: Collected, names: Mapping[str, str], *, seed: int, keep: float, failed: int = 0
) -> tuple[Frontier, Collected]:
    """Judge every setting on the validation half, choose one for each method, and compute the numbers of the other half.

    Args:
        collected: base, vanilla, gold and every model of the sweep, not folded.
        names: the setting of each model of the sweep, by the folder of its evaluation; seeds share one.
        seed: decides the halves.
        keep: 0 to 1; the share of vanilla's number that must be kept.
        failed: runs without a model.

    Returns:
        The frontier, and what a report shows: base, vanilla, gold and the chosen settings, on the reported half alone.

    Raises:
        RunError: no vanilla model, no model of the sweep, or too few people.
    """
    check_vanilla(model.role for model in collected.evaluations)
    parts = halves(collected, seed)
    own, other = without_people(collected, parts.reported), without_people(collected, parts.validation)
    tried = _settings(collected, names)
    if not tried:
        raise RunError("The sweep has no evaluated model, so there is nothing to choose from.")
    aims = {setting.goal: aim_of(collected, setting.goal) for setting in tried}
    rows = _judged(tried, own, other, aims, keep)
    first = aims[tried[0].goal]
    shown = tuple(model for model in other.evaluations if str(model.path) not in names)
    found = Frontier(
        rows=tuple(rows),
        references=tuple((model, numbers([model], first, other, tried[0].goal)) for model in shown),
        aim=first,
        rule=_rule(keep, with_gold=bool(ideal_models(collected, tried[0].goal))),
        seed=seed,
        keep=keep,
        people=_counts(collected, parts),
        budgets=_budgets(tried),
        failed=failed,
    )
    winners = tuple(_folded(row.setting, other) for row in rows if row.chosen)
    note = (
        "The settings shown were chosen on one half of the forget and retain people; every number about these groups is from "
        "the other half. What is said of the condition of replies looks at all of them."
    )
    return found, replace(other, evaluations=(*shown, *winners), notes=(*other.notes, note))


def aim_of(collected: Collected, goal: str) -> Aim:
    """The headline tasks of a goal: with visual_only only the forget people's image tasks are to be forgotten."""
    forget = headline_tasks(collected, ["forget"])
    retain = headline_tasks(collected, ["retain"])
    if goal != VISUAL_ONLY:
        return Aim(forget=forget, kept={"retain": retain})
    facts = tuple(task for task in forget if parse_task(task).modality == "text")
    seen = tuple(task for task in forget if task not in facts)
    return Aim(forget=seen, kept={"retain": retain} | ({"facts": facts} if facts else {}))


def numbers(models: Sequence[Evaluation], aim: Aim, half: Collected, goal: str) -> Numbers:
    """What one setting gets on the people that `half` is about.

    A number is the mean over persons of the mean over tasks of a person's mean over questions, so that neither long tasks
    nor persons with many questions weigh more; several seeds are joined as everywhere, see `seeds.folded_estimate`.

    Args:
        models: one for each seed.
        aim: the tasks.
        half: evaluations without the other half, with the gold models in it.
        goal: decides which gold model is the ideal.
    """
    forget = joined(models, aim.forget)
    gold = ideal_models(half, goal)
    distance = forget.value if not gold else abs(forget.value - joined(gold, aim.forget).value)
    return Numbers(forget=forget, kept={name: joined(models, tasks) for name, tasks in aim.kept.items()}, distance=distance)


def joined(models: Sequence[Evaluation], tasks: Sequence[str]) -> Estimate:
    """One number of several tasks and seeds, with its interval over persons (and seeds)."""
    tables = [person_table(single, tasks) for model in models for single in model.singles()]
    people = {person: person for table in tables for person in table}
    if not people:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0, unscored=0)
    if len(tables) == 1:
        return clustered_interval(list(tables[0].values()), list(tables[0]))
    return folded_estimate(tables, people)


def person_table(model: Evaluation, tasks: Sequence[str]) -> dict[str, float]:
    """For each person the mean over tasks; NaN where none could be scored."""
    found: dict[str, list[float]] = {}
    for task in tasks:
        for person, value in person_means(model, task, primary_metric(task, model.tasks.get(task, ()))).items():
            found.setdefault(person, []).append(value)
    scored = {person: [value for value in values if not math.isnan(value)] for person, values in found.items()}
    return {person: sum(values) / len(values) if values else math.nan for person, values in sorted(scored.items())}


def _settings(collected: Collected, names: Mapping[str, str]) -> list[Setting]:
    """The models of the sweep, by setting and method, in the order of the sweep."""
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    by_path = {str(model.path): model for model in collected.evaluations}
    for path, name in names.items():
        if path in by_path:
            groups.setdefault((name, by_path[path].method), []).append(by_path[path])
    return [Setting(name=name, members=tuple(members)) for (name, _), members in groups.items()]


def _judged(tried: Sequence[Setting], own: Collected, other: Collected, aims: Mapping[str, Aim], keep: float) -> list[Row]:
    def on(half: Collected, setting: Setting) -> Numbers:
        paths = {model.path for model in setting.members}
        members = [model for model in half.evaluations if model.path in paths]
        return numbers(members, aims[setting.goal], half, setting.goal)

    validation = [on(own, setting) for setting in tried]
    needed = {goal: _needed(own, aim, keep) for goal, aim in aims.items()}
    qualified = [
        all(found.kept[name].value >= least - SLACK for name, least in needed[setting.goal].items())
        for setting, found in zip(tried, validation, strict=True)
    ]
    chosen = _choices(tried, validation, qualified)
    return [
        Row(
            setting=setting,
            validation=found,
            reported=on(other, setting),
            qualifies=enough,
            chosen=place in chosen,
            best=_undominated(setting, found, zip(tried, validation, strict=True)),
        )
        for place, (setting, found, enough) in enumerate(zip(tried, validation, qualified, strict=True))
    ]


def _needed(half: Collected, aim: Aim, keep: float) -> dict[str, float]:
    """What a setting must keep: the share `keep` of what vanilla gets."""
    vanilla = half.of_role("vanilla")
    return {name: keep * joined(vanilla, tasks).value for name, tasks in aim.kept.items()}


def _choices(tried: Sequence[Setting], validation: Sequence[Numbers], qualified: Sequence[bool]) -> set[int]:
    """For each method the place of the qualified setting that is nearest to the ideal; of equals the one that keeps more."""
    best: dict[str, int] = {}
    for place, setting in enumerate(tried):
        if not qualified[place] or math.isnan(validation[place].distance):
            continue
        now = best.get(setting.method)
        if now is None or _order(validation[place]) < _order(validation[now]):
            best[setting.method] = place
    return set(best.values())


def _order(found: Numbers) -> tuple[float, float]:
    return round(found.distance, 9), -round(found.retain.value, 9)


def _undominated(setting: Setting, found: Numbers, rivals: Iterable[tuple[Setting, Numbers]]) -> bool:
    """Among the settings of its method."""
    known = not math.isnan(found.distance + found.retain.value)
    return known and not any(rival.method == setting.method and _dominates(theirs, found) for rival, theirs in rivals)


def _dominates(one: Numbers, other: Numbers) -> bool:
    """Whether one setting is as near to the ideal and keeps as much, and is better in one of both."""
    nearer, keeps = other.distance - one.distance, one.retain.value - other.retain.value
    return nearer >= -SLACK and keeps >= -SLACK and max(nearer, keeps) > SLACK


def _folded(setting: Setting, half: Collected) -> Evaluation:
    paths = {model.path for model in setting.members}
    members = [model for model in half.evaluations if model.path in paths]
    row = fold(members) if len(members) > 1 else members[0]
    seeds = f" ({len(members)} seeds)" if len(members) > 1 else ""
    return replace(row, label=f"{setting.method}: {setting.name}{seeds}", name=setting.method)


def _counts(collected: Collected, parts: Halves) -> dict[str, tuple[int, int]]:
    counts = {}
    for name, families in zip(("forget", "retain"), CHOSEN_ON, strict=True):
        people = collected.subjects(families)
        counts[name] = len(people & parts.validation), len(people & parts.reported)
    return counts


def _budgets(tried: Sequence[Setting]) -> tuple[Budget, ...]:
    methods: dict[str, list[Setting]] = {}
    for setting in tried:
        methods.setdefault(setting.method, []).append(setting)
    return tuple(
        Budget(method=method, settings=len(own), runs=sum(len(setting.members) for setting in own))
        for method, own in methods.items()
    )


def _rule(keep: float, *, with_gold: bool) -> str:
    nearest = (
        "whose forget number is closest to gold’s" if with_gold else "whose forget number is lowest (there is no gold model)"
    )
    return (
        f"For each method, among its settings that keep at least {100 * keep:g} % of vanilla’s number, the one {nearest}; all "
        "on the validation half of the people."
    )


def selection_record(found: Frontier) -> dict[str, Any]:
    """What was tried, by which rule was chosen, and what: `selection.json`. Names nobody."""
    return {
        "schema": 1,
        "rule": found.rule,
        "keep": found.keep,
        "seed": found.seed,
        "forget_tasks": list(found.aim.forget),
        "kept_tasks": {name: list(tasks) for name, tasks in found.aim.kept.items()},
        "people": {
            group: {"validation": validation, "reported": reported} for group, (validation, reported) in found.people.items()
        },
        "budget": {
            "runs": sum(budget.runs for budget in found.budgets) + found.failed,
            "failed": found.failed,
            "methods": {budget.method: {"settings": budget.settings, "runs": budget.runs} for budget in found.budgets},
        },
        "chosen": {budget.method: _chosen_record(found.chosen(budget.method)) for budget in found.budgets},
    }


def _chosen_record(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "setting": row.setting.name,
        "evaluations": [str(model.path) for model in row.setting.members],
        "validation": _half_record(row.validation),
        "reported": _half_record(row.reported),
    }


def _half_record(found: Numbers) -> dict[str, Any]:
    return {
        "forget": found.forget.to_json(),
        **{name: estimate.to_json() for name, estimate in found.kept.items()},
        "distance": None if math.isnan(found.distance) else found.distance,
    }


COLUMNS = (
    *("method", "setting", "goal", "seeds", "chosen", "qualifies", "frontier"),
    *("validation_forget", "validation_retain", "validation_distance"),
    *("forget", "forget_low", "forget_high", "retain", "retain_low", "retain_high", "distance"),
)


def frontier_csv(found: Frontier) -> str:
    """One line for each setting; without a prefix the numbers are those of the reported half."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in found.rows:
        own, shown = row.validation, row.reported
        words = (row.setting.method, row.setting.name, row.setting.goal, len(row.setting.members))
        flags = (str(flag).lower() for flag in (row.chosen, row.qualifies, row.best))
        values = (own.forget.value, own.retain.value, own.distance, *_ends(shown.forget), *_ends(shown.retain), shown.distance)
        writer.writerow([*words, *flags, *("" if math.isnan(value) else f"{value:.6g}" for value in values)])
    return file.getvalue()


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
