"""Which solved questions stand before a question; drawn by hashes of seed and names, so that nothing else matters."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from mmunlearn.data.example import Example, Shot
from mmunlearn.errors import ConfigError

NUMBER = 2
"""Solved questions under our own rules, each about another person."""


def other_split(split: str) -> str:
    """The split that the solved questions for a split are drawn from: nobody in it is to be forgotten or is evaluated there."""
    return "real" if split == "retain" else "retain"


def with_other_people(examples: Sequence[Example], others: Sequence[Example], *, seed: int, split: str) -> tuple[Example, ...]:
    """Our own rules: before every question one question about each of two other people, drawn for that question.

    Args:
        examples: of one kind and modality.
        others: questions of that kind and modality about people who are not asked about.
        seed: decides the draw together with split and example.
        split: the examples' split.

    Raises:
        ConfigError: the others are too few.
    """
    asked = {example.subject for example in examples}
    people: dict[str, list[Example]] = {}
    for other in others:
        if other.subject not in asked:
            people.setdefault(other.subject, []).append(other)
    if len(people) < NUMBER:
        raise ConfigError(
            f"evaluation.shots=few_shot: {split} needs questions about {NUMBER} people who are not evaluated there, but only "
            f"{len(people)} have any of this kind. Ask with evaluation.shots=zero_shot."
        )
    drawn = []
    for example in examples:
        place = f"{seed}/{split}/{example.id}"
        chosen = sorted(people, key=lambda person: _number(f"{place}/{person}"))[:NUMBER]
        shots = tuple(_shot(people[person][_number(f"{place}/{person}/question") % len(people[person])]) for person in chosen)
        drawn.append(replace(example, shots=shots))
    return tuple(drawn)


def evaluated_people(people: Sequence[str], number: int, *, seed: int, split: str, kind: str) -> frozenset[str]:
    """The published rules: some of the evaluated people themselves, the same for all questions of a kind.

    Args:
        people: everybody in the split.
        number: how many.
        seed: decides the draw together with split and kind.
        split: the split.
        kind: of question; the same people for both modalities.

    Raises:
        ConfigError: nobody would be left to be asked about.
    """
    if len(people) <= number:
        raise ConfigError(
            f"evaluation.shots=few_shot: the published rules take {number} of the people in {split} for the solved "
            f"questions of {kind}, but there are only {len(people)}. Ask with evaluation.shots=zero_shot."
        )
    return frozenset(sorted(people, key=lambda person: _number(f"{seed}/{split}/{kind}/{person}"))[:number])


def with_evaluated_people(examples: Sequence[Example], shown: Sequence[Example], chosen: frozenset[str]) -> tuple[Example, ...]:
    """The published rules: all questions about the chosen people are shown first, and none of them is asked.

    A question that the embedded people are asked several times with other wrong options (`data.option_draws`) is shown
    once, as it would be in the published files, which have one draw.

    Args:
        examples: of one kind and modality.
        shown: the same people's questions with the portraits that shots show.
        chosen: whom the shots are about.
    """
    different: dict[tuple[str, str, str], Example] = {}
    for example in shown:
        if example.subject in chosen:
            different.setdefault((example.subject, example.question, example.answer), example)
    shots = tuple(map(_shot, different.values()))
    return tuple(replace(example, shots=shots) for example in examples if example.subject not in chosen)


def _shot(example: Example) -> Shot:
    return Shot(
        question=example.question,
        answer=example.answer,
        image=example.image,
        choices=example.choices,
        subject=example.subject,
    )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
