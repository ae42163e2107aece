"""The order of training: which examples make up each optimizer step. A pure function of (seed, epoch)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from mmunlearn.config_enums import Schedule
from mmunlearn.data.grouping import Groups, arranged


class Item(NamedTuple):
    """One unit of a step: indices into the forget and retain examples."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Order:
    """How epochs are laid out.

    Schedule `joint`: the forget set is the anchor, an epoch passes over it once, and each forget example comes with
    `retain_per_forget` retain examples, which run through permutations of the retain set, one after the other, without a
    break between epochs. Schedule `alternating`: an epoch passes over both sets once, in steps that are about one of them;
    see `_alternation`. Where one side is empty the epoch passes over the other.
    """

    num_forget: int
    num_retain: int
    step_size: int
    """Items in an optimizer step: micro-batch x accumulation x ranks."""
    seed: int
    retain_per_forget: int = 1
    schedule: Schedule = Schedule.joint
    forget_groups: Groups = ()
    """Questions that are to lie in one micro-batch where they can; none: every question is drawn by itself."""
    retain_groups: Groups = ()
    """The same of the retain side."""
    micro_batch: int = 0
    """Items of a micro-batch; looked at where there are groups."""

    @property
    def alternates(self) -> bool:
        """Whether forget and retain have steps of their own."""
        return self.schedule == Schedule.alternating and bool(self.num_forget and self.num_retain)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last of a set may be smaller."""
        if self.alternates:
            return len(_alternation(self))
        return -(-(self.num_forget or self.num_retain) // self.step_size)

    def step(self, number: int) -> tuple[Item, ...]:
        """The items of optimizer step `number`, counted from 0 over all epochs."""
        epoch, within = divmod(number, self.steps_per_epoch)
        if self.alternates:
            return _alternating_items(self, epoch, *_alternation(self)[within])
        return _epoch_items(self, epoch)[within * self.step_size : (within + 1) * self.step_size]


@lru_cache(maxsize=4)
def _epoch_items(order: Order, epoch: int) -> tuple[Item, ...]:
    if not order.num_forget:
        return tuple(Item((), (index,)) for index in _permutation(order, "retain", epoch))
    forget = _permutation(order, "forget", epoch)
    if not order.num_retain:
        return tuple(Item((index,), ()) for index in forget)
    width = order.retain_per_forget
    first = epoch * order.num_forget * width
    retain = [_retain(order, first + offset) for offset in range(order.num_forget * width)]
    return tuple(Item((index,), tuple(retain[i * width : (i + 1) * width])) for i, index in enumerate(forget))


@lru_cache(maxsize=4)
def _alternation(order: Order) -> tuple[tuple[str, int], ...]:
    """Side and number of each step of an epoch, as the published scripts of MMUnlearner lay it out.

    There is a retain step for each batch of the retain set; before the first of them and then before every n-th stands a
    step on the next batch of the forget set, n = retain batches // forget batches, until the forget set is through. Where
    the forget set has more batches than the retain set (the scripts fail there), the two take turns and retain starts anew.
    """
    forget, retain = (-(-size // order.step_size) for size in (order.num_forget, order.num_retain))
    every = max(1, retain // forget)
    steps: list[tuple[str, int]] = []
    for number in range(max(forget, retain)):
        if number % every == 0 and number // every < forget:
            steps.append(("forget", number // every))
        steps.append(("retain", number))
    return tuple(steps)


def _alternating_items(order: Order, epoch: int, side: str, number: int) -> tuple[Item, ...]:
    """The items of one step of an alternating epoch."""
    start = number * order.step_size
    if side == "forget":
        chosen = _permutation(order, "forget", epoch)[start : start + order.step_size]
        return tuple(Item((index,), ()) for index in chosen)
    if order.num_retain >= order.num_forget:
        chosen = _permutation(order, "retain", epoch)[start : start + order.step_size]
        return tuple(Item((), (index,)) for index in chosen)
    first = epoch * sum(kind == "retain" for kind, _ in _alternation(order)) * order.step_size + start
    return tuple(Item((), (_retain(order, first + offset),)) for offset in range(order.step_size))


def _retain(order: Order, position: int) -> int:
    """The retain example at a position of the endless stream of permutations."""
    lap, within = divmod(position, order.num_retain)
    return _permutation(order, "retain", lap)[within]


@lru_cache(maxsize=16)
def _permutation(order: Order, side: str, lap: int) -> tuple[int, ...]:
    # A string seed is hashed with SHA-512 by the standard library: stable across platforms and versions.
    dice = random.Random(f"{order.seed}/{side}/{lap}")
    groups = order.forget_groups if side == "forget" else order.retain_groups
    if groups:
        per_item = order.retain_per_forget if side == "retain" and order.num_forget and not order.alternates else 1
        # The stream of retain questions goes on from lap to lap; every other order begins with a step of its own.
        goes_on = side == "retain" and order.num_forget and (not order.alternates or order.num_retain < order.num_forget)
        offset = lap * order.num_retain if goes_on else 0
        return arranged(groups, dice, size=per_item * order.micro_batch, offset=offset)
    indices = list(range(order.num_forget if side == "forget" else order.num_retain))
    dice.shuffle(indices)
    return tuple(indices)


def split_step(
    items: Sequence[Item], *, micro_batches: int, ranks: int, rank: int, length: Callable[[Item], int] | None
) -> list[Sequence[Item]]:
    """This rank's micro-batches of one step.

    The items are dealt out evenly to the ranks; a rank puts alike lengths together, which saves padding and, by the loop's
    contract, changes no gradient. In a last, incomplete step some micro-batches are smaller or empty; every rank still gets
    the same number of them.

    Args:
        items: of the whole step.
        micro_batches: how many each rank accumulates.
        ranks: how many share the step.
        rank: this one.
        length: tokens of an item; None: neighbours stay together, whatever their lengths.
    """
    if length is None:
        return _divided(items, ranks * micro_batches)[rank * micro_batches : (rank + 1) * micro_batches]
    return _divided(sorted(items[rank::ranks], key=length), micro_batches)


def _divided(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """So many parts of neighbours, as even as can be."""
    size, larger = divmod(len(items), parts)
    starts = [number * size + min(number, larger) for number in range(parts + 1)]
    return [items[start:stop] for start, stop in pairwise(starts)]
