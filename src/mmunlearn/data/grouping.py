"""An order in which questions about one picture follow each other, so that a micro-batch can read the picture once."""

import random
from collections.abc import Sequence

from mmunlearn.data.example import Example

Groups = tuple[tuple[int, ...], ...]
"""Indices of examples, each once; those of a group belong together."""


def groups_by_picture(examples: Sequence[Example]) -> Groups:
    """The questions about the same pictures as one group; each question without a picture is a group of its own."""
    found: dict[tuple[str, ...] | int, list[int]] = {}
    for index, example in enumerate(examples):
        found.setdefault(tuple(image.key for image in example.images()) or index, []).append(index)
    return tuple(tuple(group) for group in found.values())


def arranged(groups: Groups, dice: random.Random, *, size: int, offset: int) -> tuple[int, ...]:
    """The groups in random order, each in random order within, cut as little as possible where a chunk ends.

    A group that has no room left in the present chunk waits until it fits; if none fits, the next one is cut.

    Args:
        groups: what belongs together.
        dice: draws the order.
        size: of a chunk.
        offset: where in a chunk the order begins.
    """
    waiting = [dice.sample(group, len(group)) for group in dice.sample(groups, len(groups))]
    found: list[int] = []
    while waiting:
        room = size - (offset + len(found)) % size
        number = next((number for number, group in enumerate(waiting) if len(group) <= room), 0)
        found += waiting.pop(number)
    return tuple(found)
