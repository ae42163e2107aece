"""Neutral labels for people, so that a page about forgetting somebody does not name them."""

import hashlib
from collections.abc import Iterable

STAND_IN = "stand-in "
"""Begins the subject of every fictitious person who stands in for real ones, and of no real person."""


def pseudonyms(*groups: Iterable[str]) -> dict[str, str]:
    """A neutral label for each person: “person 1”, …, the first group's first; stand-ins are “stand-in 1”, ….

    Within a group the order is that of a hash, so that the number tells nothing about the name.
    """
    ordered: dict[str, str] = {}
    numbers = {"person": 0, "stand-in": 0}
    for group in groups:
        for subject in sorted(group, key=lambda subject: hashlib.sha256(subject.encode()).hexdigest()):
            if subject not in ordered:
                kind = "stand-in" if subject.startswith(STAND_IN) else "person"
                numbers[kind] += 1
                ordered[subject] = f"{kind} {numbers[kind]}"
    return ordered
