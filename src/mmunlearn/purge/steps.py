"""What a purge does and what it leaves: steps in an order in which it may be stopped and repeated."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path

from mmunlearn.errors import RunError
from mmunlearn.purge import files
from mmunlearn.purge.scan import Rest, is_file


class Order(IntEnum):
    """When a step is taken: what tells whom a file is about goes last."""

    records = 0
    pages = 1
    rows = 2
    """Of reports: they tell what the pages were made from."""
    numbers = 3
    answers = 4
    settings = 5
    scores = 6


@dataclass(frozen=True, kw_only=True)
class Step:
    """One file that is deleted or cleaned."""

    order: Order
    path: Path
    what: str
    count: int
    """Of lines, entries or names; 1 for a whole file."""
    act: Callable[[], None] = field(repr=False)


@dataclass
class Plan:
    """Everything that is to be done and everything that cannot be."""

    steps: list[Step] = field(default_factory=list)
    rest: list[Rest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: set[Path] = field(default_factory=set)
    """Files that were looked into as what they are; all others are searched for names."""

    _gone: set[Path] = field(default_factory=set)

    def delete(self, order: Order, path: Path, why: str) -> None:
        """Delete a file, if it is there."""
        if path not in self._gone and is_file(path):
            self._gone.add(path)
            self.steps.append(Step(order=order, path=path, what=f"delete: {why}", count=1, act=partial(files.delete, path)))

    def cannot(self, path: Path, error: RunError) -> None:
        """Leave a damaged file."""
        self.read.add(path)
        self.rest.append(Rest(path=path, why=f"damaged: {error}", remedy="Delete or restore it, and purge again."))

    def leave(self, paths: Iterable[Path], why: str, remedy: str) -> None:
        """Leave files or folders to the reader."""
        self.rest += [Rest(path=path, why=why, remedy=remedy) for path in paths]

    def settle(self, busy: Sequence[Path]) -> None:
        """Put the steps in order and take out those that cannot be taken.

        The scores stay wherever anything about the people stays that could have gone: they tell what it is about.

        Args:
            busy: folders in which a run is writing now.
        """
        self.steps.sort(key=lambda step: (step.order, step.path))
        wait = "Wait until it is through, or stop it, and purge again."
        self.leave(busy, "a run is writing here now, so nothing here is touched", wait)
        locked = [step for step in self.steps if not may_change(step.path)]
        self.leave((step.path for step in locked), _READ_ONLY, "Make the folder writable, and purge again.")
        locked += [step for step in self.steps if step not in locked and not set(busy).isdisjoint(step.path.parents)]
        waiting = [step for step in self.steps if step.order is Order.scores and step not in locked] if locked else []
        self.leave((step.path for step in waiting), _TELLING, "Purge again when they can be.")
        self.steps = [step for step in self.steps if step not in locked and step not in waiting]
        self.rest = [*dict.fromkeys(sorted(self.rest, key=lambda rest: (rest.path, rest.why)))]


_READ_ONLY = "cannot be cleaned: its folder is read-only"
_TELLING = "kept until the other files can be cleaned, because it tells whom their questions are about"


def may_change(path: Path) -> bool:
    """Whether a file may be deleted or replaced, which is a matter of its folder."""
    folder = next(each for each in path.parents if each.exists())
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
