"""Every rule by which a report decides something, in a sentence with its number, from the constants that apply it."""

from collections.abc import Iterable

from mmunlearn.metrics.membership import SMALLEST_REST
from mmunlearn.metrics.statistics import DRAWS, FEW_PERSONS
from mmunlearn.metrics.utility import FEWEST_TOKENS, REPETITIVE
from mmunlearn.report.collect import Collected
from mmunlearn.report.condition import BROKEN, LITTLE
from mmunlearn.report.tables import number
from mmunlearn.report.verdict import BOUND_LEVEL, UNDECIDED_SHARE

_ONE_SIDED = f"{100 * (1 + BOUND_LEVEL) / 2:.0f}\u00a0%"
"""What each end of an interval at `BOUND_LEVEL` is called."""


def rules(collected: Collected) -> tuple[tuple[str, str], ...]:
    """What each word and mark of this report needs, as pairs of word and rule; those of the visual goal where it is pursued."""
    visual = any(model.record.goal == "visual_only" for model in collected.of_role("unlearned"))
    return (*_of_forgetting(collected), *(_of_facts(collected) if visual else ()), *_of_the_rest())


def _of_forgetting(collected: Collected) -> Iterable[tuple[str, str]]:
    share, margin = number(UNDECIDED_SHARE), number(collected.gate_margin)
    yield (
        "memorised",
        f"The one-sided {_ONE_SIDED} lower bound of vanilla − gold, on the same questions, lies above {margin} "
        "(report.gate_margin). Else no word below is given but “not shown”.",
    )
    yield (
        "not forgotten",
        f"The one-sided {_ONE_SIDED} lower bound of the model − gold lies above {share} of vanilla − gold, the margin.",
    )
    yield "traces left", "Otherwise: the 95\u00a0% interval of the model − gold lies above 0."
    yield (
        "below gold",
        "The value lies below gold’s 95\u00a0% interval, and the 95\u00a0% interval of the model − gold below 0.",
    )
    yield (
        "forgotten",
        "Neither of these, the value lies inside gold’s 95\u00a0% interval, and the one-sided "
        f"{_ONE_SIDED} upper bound of the model − gold lies below the margin, {share} of vanilla − gold.",
    )
    yield "not decided", "None of these."


def _of_facts(collected: Collected) -> Iterable[tuple[str, str]]:
    share, margin = number(UNDECIDED_SHARE), number(collected.gate_margin)
    yield (
        "facts damaged",
        "Goal visual_only, text questions: the 95\u00a0% interval of the model − gold_text lies below 0.",
    )
    yield (
        "facts kept",
        f"Otherwise: the one-sided {_ONE_SIDED} lower bound of the model − gold_text lies above −{share} of gold_text − gold. "
        f"Only where gold_text is shown to know the facts: the lower bound of gold_text − gold lies above {margin}.",
    )


def _of_the_rest() -> Iterable[tuple[str, str]]:
    yield (
        "collapsed",
        f"About those to be kept, at least {number(BROKEN)} of the free answers are empty, go round in circles or are one and "
        f"the same, and at least twice as many as vanilla’s; or less than {number(LITTLE)} of vanilla’s ROUGE-L is left. Round "
        f"in circles: at least {FEWEST_TOKENS} words, and at least {number(REPETITIVE)} of the pairs of words stood before.",
    )
    yield (
        "★ best",
        "Among the methods: nearest to gold on forget questions, highest on what is to be kept, where any two differ; never a "
        "collapsed model. It is no test: see the intervals.",
    )
    yield "no better than guessing", "The 95\u00a0% interval reaches down to what guessing gets."
    yield (
        "noise floor",
        "The largest difference between gold models whose recorded trainings differ in the seed only and whose weights differ.",
    )
    yield (
        "intervals",
        f"Clustered by person: Student’s t below {FEW_PERSONS} persons, from there on {DRAWS} bootstrap draws. Equal values "
        "are no certainty: the exact binomial bound then says how many persons may be unlike those asked.",
    )
    yield "PrivLeak", f"Left empty where gold’s AUC is above {number(1 - SMALLEST_REST)}."
