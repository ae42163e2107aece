"""Does a model know a fact in both modalities, in one of them, or in none?

A person is not forgotten who is lost in pictures and still described in text, and two tables of accuracy do not show it:
both may be at one half for the same facts or for different ones. So the questions are paired, fact by fact.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmunlearn.metrics.statistics import Estimate, clustered_interval
from mmunlearn.metrics.text import tokenize

RIGHT = 0.5
"""A question counts as right above this score: a tie of the right option with another one (1/2, 1/3, …) does not."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Questions that ask for one fact of one person, with the picture and in text."""

    ids: tuple[tuple[str, str], ...]
    """Of the question with the picture, and of the one in text."""
    unpaired: int
    """Questions of either side without a partner, or with several."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Shares of the paired facts; the four of them add up to 1. Intervals are clustered by person."""

    both_right: Estimate
    image_only: Estimate
    """Right with the picture, wrong in text."""
    text_only: Estimate
    """Wrong with the picture, right in text."""
    both_wrong: Estimate
    agreement: Estimate
    """both_right + both_wrong."""
    phi: float
    """Correlation of the two answers; see `phi`."""


def pair_facts(image: Mapping[str, tuple[str, str]], text: Mapping[str, tuple[str, str]]) -> Pairs:
    """Pair the questions that ask the same person for the same answer, whatever its case and punctuation.

    Data sets do not say which two questions ask for one fact, and their numbers agree by accident only, so the answer has
    to. An answer that a person's questions expect more than once in a modality (two facts with one value) is left out:
    which of them belong together is not known. An answer about nobody in particular is left out too.

    Args:
        image: person and expected answer of the questions with a picture, by question id.
        text: the same of the questions without.
    """
    sides = [_unambiguous(side) for side in (image, text)]
    ids = tuple((id_, sides[1][fact]) for fact, id_ in sides[0].items() if fact in sides[1])
    return Pairs(ids=ids, unpaired=len(image) + len(text) - 2 * len(ids))


def _unambiguous(questions: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The question of each fact that is asked for once."""
    facts = {id_: (person, " ".join(tokenize(answer))) for id_, (person, answer) in questions.items()}
    times = Counter(facts.values())
    return {fact: id_ for id_, fact in facts.items() if times[fact] == 1 and all(fact)}


def cross_modal(image: Sequence[float], text: Sequence[float], subjects: Sequence[str]) -> Agreement:
    """How often a model is right in both modalities, in one, or in none; a pair with a NaN is unscored.

    No direction is better in itself: the ideal on forget questions is gold's number. Guessing agrees too, by
    1/16 + 9/16 with four options, which `phi` takes out. Source: this project; phi is Pearson's, of two binary variables.

    Args:
        image: 0 to 1 for each fact, asked with the picture; above `RIGHT` is right.
        text: the same facts, asked in text.
        subjects: whom each fact is about.

    Raises:
        ValueError: the lengths differ.
    """
    pairs = list(zip(image, text, strict=True))

    def share(*wanted: tuple[bool, bool]) -> Estimate:
        hits = [math.nan if math.isnan(a + b) else float((a > RIGHT, b > RIGHT) in wanted) for a, b in pairs]
        return clustered_interval(hits, subjects)

    return Agreement(
        both_right=share((True, True)),
        image_only=share((True, False)),
        text_only=share((False, True)),
        both_wrong=share((False, False)),
        agreement=share((True, True), (False, False)),
        phi=phi([(a > RIGHT, b > RIGHT) for a, b in pairs if not math.isnan(a + b)]),
    )


def phi(pairs: Sequence[tuple[bool, bool]]) -> float:
    """(n11 n00 - n10 n01) / sqrt(n1. n0. n.1 n.0): the correlation of two yes-or-no answers.

    Range -1 to 1; 0: knowing a fact in one modality says nothing about the other. NaN where a side is always right or
    always wrong, since nothing varies there.
    """
    counts = Counter((bool(a), bool(b)) for a, b in pairs)
    both, image, text, neither = (counts[key] for key in ((True, True), (True, False), (False, True), (False, False)))
    margins = (both + image) * (text + neither) * (both + text) * (image + neither)
    return (both * neither - image * text) / math.sqrt(margins) if margins else math.nan
