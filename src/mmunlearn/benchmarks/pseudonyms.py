"""Neutral labels for people, so that a page about forgetting somebody does not name them."""

import hashlib
from collections.abc import Iterable


def pseudonyms(*groups: Iterable[str]) -> dict[str, str]:
    """A neutral label for each person: “person 1”, …, the first group's first.

    Within a group the order is that of a hash, so that the number tells nothing about the name.
    """
    ordered: dict[str, str] = {}
    for group in groups:
        for subject in sorted(group, key=lambda subject: hashlib.sha256(subject.encode()).hexdigest()):
            ordered.setdefault(subject, f"person {len(ordered) + 1}")
    return ordered
