"""What the answers about one person show: numbers and a verdict. Needs no model and imports no torch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from scipy import stats

ALPHA = 0.05
"""The chance of calling anybody known, over all people together, where the model knows nobody."""

RULE = (
    "A person counts as known if more of the choice questions were answered rightly than guessing explains: one-sided exact "
    f"binomial test, p < {ALPHA} after Holm's correction over the people tested. Ties do not count as right. Cloze and free "
    "answers are listed and decide nothing. “Too few questions”: not even all answers right could have shown it."
)
REMARKS = (
    "A model may know what it does not say: “no sign” is not “does not know”.",
    "A name or a face lets a model guess well (a language, an age): ask about invented people of the same kind for comparison.",
)


class Verdict(StrEnum):
    """What the choice questions show about one person."""

    knows = "knows"
    no_sign = "no sign"
    too_few = "too few questions"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question and what its answer was scored with."""

    subject: str
    metrics: Mapping[str, float]
    """NaN: could not be scored."""
    chance: float = math.nan
    """What guessing gets on a choice question; NaN for the other kinds."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """So many questions, so many of them right, or their mean."""

    count: int
    right: int | None = None
    mean: float | None = None
    """None where there is no question."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """What the model said about one person."""

    person: str
    """The name, or a label in its place."""
    questions: int
    choice: Score
    chance: float | None
    """Mean over the choice questions; None where there is none."""
    p_value: float | None
    """Of the choice questions, one-sided, for this person alone; None where there is none."""
    p_holm: float | None
    """After the correction over people; None for people who were not tested."""
    probability: Score
    """Length-normalised probability of the expected answer, over all questions."""
    cloze: Score
    rouge_l: Score
    """Of the free answers."""
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` accepts."""
        return asdict(self)


def judge(answers: Iterable[Answered], labels: Mapping[str, str]) -> tuple[Person, ...]:
    """Numbers and verdict for each person, those known first, then by p-value.

    Args:
        answers: of all questions; those about nobody are left out.
        labels: how each subject is called.
    """
    by_person: dict[str, list[Answered]] = {}
    for answer in answers:
        if answer.subject:
            by_person.setdefault(answer.subject, []).append(answer)
    asked = {subject: [each for each in own if _is_scored_choice(each)] for subject, own in by_person.items()}
    p_values = {subject: _beyond_guessing(own) for subject, own in asked.items() if own}
    least = {subject: math.prod(each.chance for each in own) for subject, own in asked.items() if own}
    corrected = holm({subject: p_values[subject] for subject in testable(least)})
    people = [
        _person(labels[subject], own, asked[subject], p_values.get(subject), corrected.get(subject))
        for subject, own in by_person.items()
    ]
    order = list(Verdict)
    return tuple(sorted(people, key=lambda each: (order.index(each.verdict), each.p_value or 0, each.person)))


def _person(
    label: str, own: Sequence[Answered], choices: Sequence[Answered], p_value: float | None, p_holm: float | None
) -> Person:
    tested = Verdict.knows if p_holm is not None and p_holm < ALPHA else Verdict.no_sign
    return Person(
        person=label,
        questions=len(own),
        choice=replace(_score(choices, "accuracy"), right=sum(map(_is_right, choices))),
        chance=sum(each.chance for each in choices) / len(choices) if choices else None,
        p_value=p_value,
        p_holm=p_holm,
        probability=_score(own, "probability"),
        cloze=_score(own, "cloze_accuracy", right=lambda value: value == 1),
        rouge_l=_score(own, "rougeL"),
        verdict=Verdict.too_few if p_holm is None else tested,
    )


@dataclass(frozen=True, kw_only=True)
class Together:
    """The choice questions about everybody, as one."""

    count: int
    right: int
    p_value: float | None
    """One-sided; None without questions. Small: the model knows somebody, though it need not show whom."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` accepts."""
        return asdict(self)


def together(answers: Iterable[Answered]) -> Together:
    """Whether somebody is known, which may be seen where each person has too few questions."""
    choices = [each for each in answers if each.subject and _is_scored_choice(each)]
    return Together(
        count=len(choices), right=sum(map(_is_right, choices)), p_value=_beyond_guessing(choices) if choices else None
    )


def _beyond_guessing(choices: Sequence[Answered]) -> float:
    return tail_probability(sum(map(_is_right, choices)), [each.chance for each in choices])


def _is_scored_choice(answer: Answered) -> bool:
    return not math.isnan(answer.chance) and not math.isnan(answer.metrics["accuracy"])


def _is_right(answer: Answered) -> bool:
    """A first place shared with a wrong option (value 1/k) is not right, which keeps the test honest."""
    return answer.metrics["accuracy"] == 1


def _score(own: Sequence[Answered], metric: str, right: Callable[[float], bool] | None = None) -> Score:
    values = [value for each in own if not math.isnan(value := each.metrics.get(metric, math.nan))]
    return Score(
        count=len(values),
        right=sum(map(right, values)) if right else None,
        mean=math.fsum(values) / len(values) if values else None,
    )


# --- statistics -------------------------------------------------------------------------------------------------------


def tail_probability(right: int, chances: Sequence[float]) -> float:
    """The probability that guessing gets at least so many right: exact, one-sided.

    Binomial where all questions have equally many options, else the distribution of a sum of unlike coins.

    Args:
        right: number of right answers.
        chances: what guessing gets on each question; at least one.
    """
    if len(set(chances)) == 1:
        return float(stats.binomtest(right, len(chances), chances[0], alternative="greater").pvalue)
    ways = [1.0]  # ways[k]: probability of k right answers among the questions so far
    for chance in chances:
        ways = [
            old * (1 - chance) + new * chance for old, new in zip([*ways, 0.0], [0.0, *ways], strict=True)
        ]  # fmt: skip
    return min(1.0, math.fsum(ways[right:]))


def testable(least: Mapping[str, float]) -> tuple[str, ...]:
    """The people for whom all answers right would be significant, whatever is answered about the others.

    Those who have too few questions are not counted in the correction: they cannot be found significant, whatever the model
    says, so that leaving them out gives nobody an advantage (Tarone 1990).

    Args:
        least: the p-value of each person if all answers were right.
    """
    for tests in range(1, len(least) + 1):
        found = tuple(subject for subject, p_value in least.items() if p_value < ALPHA / tests)
        if len(found) <= tests:
            return found
    return ()


def questions_needed(people: int, options: int = 4) -> int:
    """So many choice questions about each of so many people are enough for a verdict."""
    count = 1
    while not float(options) ** -count < ALPHA / max(people, 1):
        count += 1
    return count


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: the chance of any false finding among all stays below the level (Holm 1979)."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (subject, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[subject] = highest
    return adjusted
