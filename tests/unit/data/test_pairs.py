import contextlib
from collections import Counter

import pytest

from mmunlearn.config_enums import Schedule
from mmunlearn.data.pairs import Item, Order, split_step


def order(forget, retain, *, step_size=4, seed=0, per_forget=1):
    return Order(num_forget=forget, num_retain=retain, step_size=step_size, seed=seed, retain_per_forget=per_forget)


def epoch(of, number):
    first = number * of.steps_per_epoch
    return [item for step in range(first, first + of.steps_per_epoch) for item in of.step(step)]


def test_the_order_depends_on_its_fields_alone():
    first = [order(10, 7, seed=3).step(step) for step in range(9)]
    backwards = [order(10, 7, seed=3).step(step) for step in reversed(range(9))]
    assert first == backwards[::-1]


def test_the_order_is_the_same_on_every_machine():
    """Recorded once: with another order an old checkpoint would be resumed on other data."""
    assert [item.forget for item in epoch(order(5, 0), 0)] == [(0,), (3,), (4,), (2,), (1,)]
    assert [item.retain for item in epoch(order(0, 5, seed=1), 2)] == [(3,), (4,), (1,), (0,), (2,)]


@pytest.mark.parametrize("per_forget", [1, 3])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_each_forget_example_comes_once_an_epoch(number, per_forget):
    items = epoch(order(11, 7, per_forget=per_forget), number)
    assert sorted(index for item in items for index in item.forget) == list(range(11))
    assert {len(item.retain) for item in items} == {per_forget}


@pytest.mark.parametrize(("forget", "retain", "per_forget"), [(11, 7, 1), (5, 13, 2), (4, 4, 3)])
def test_retain_examples_run_through_permutations_without_a_break(forget, retain, per_forget):
    """However epochs cut the stream, each stretch of `retain` examples from its start is a permutation."""
    of = order(forget, retain, per_forget=per_forget)
    stream = [index for number in range(8) for item in epoch(of, number) for index in item.retain]
    assert len(stream) == 8 * forget * per_forget
    laps = [stream[start : start + retain] for start in range(0, len(stream) - retain + 1, retain)]
    assert all(sorted(lap) == list(range(retain)) for lap in laps)
    assert len({tuple(lap) for lap in laps}) > 1, "each lap in an order of its own"


def test_seeds_and_epochs_differ():
    by_seed = {tuple(epoch(order(10, 10, seed=seed), 0)) for seed in range(5)}
    by_epoch = {tuple(item.forget for item in epoch(order(10, 10), number)) for number in range(5)}
    assert len(by_seed) == 5
    assert len(by_epoch) == 5


def test_forget_and_retain_are_shuffled_independently():
    items = epoch(order(12, 12), 0)
    assert [item.forget for item in items] != [item.retain for item in items]


def test_the_last_step_of_an_epoch_may_be_smaller():
    of = order(10, 3, step_size=4)
    assert of.steps_per_epoch == 3
    assert [len(of.step(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]


def test_step_size_cuts_the_same_sequence():
    """A larger batch sees the same examples in the same order."""
    assert epoch(order(12, 5, step_size=1), 1) == epoch(order(12, 5, step_size=12), 1) == epoch(order(12, 5, step_size=5), 1)


def test_an_empty_side_stays_empty():
    retain_only = epoch(order(0, 5), 0)
    assert [item.forget for item in retain_only] == [()] * 5
    assert sorted(item.retain for item in retain_only) == [(i,) for i in range(5)]
    forget_only = epoch(order(5, 0), 0)
    assert [item.retain for item in forget_only] == [()] * 5
    assert order(0, 5).steps_per_epoch == order(5, 0).steps_per_epoch == 2


LENGTHS = (30, 5, 21, 30, 8, 13, 5, 2)


def deal(count, micro_batches, ranks):
    """The micro-batches of every rank."""
    items = tuple(Item((index,), ()) for index in range(count))
    settings = {"micro_batches": micro_batches, "ranks": ranks, "length": lambda item: LENGTHS[item.forget[0]]}
    return items, [split_step(items, **settings, rank=rank) for rank in range(ranks)]


@pytest.mark.parametrize("count", [0, 1, 5, 7, 8])
@pytest.mark.parametrize(("micro_batches", "ranks"), [(1, 1), (4, 1), (1, 2), (2, 2), (4, 3)])
def test_splitting_a_step_partitions_it_evenly(count, micro_batches, ranks):
    items, by_rank = deal(count, micro_batches, ranks)
    assert {len(parts) for parts in by_rank} == {micro_batches}, "every rank does the same number of forward passes"
    dealt = [part for parts in by_rank for part in parts]
    assert Counter(item for part in dealt for item in part) == Counter(items)
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_alike_lengths_share_a_micro_batch():
    _, (parts,) = deal(8, 4, 1)
    assert [[LENGTHS[item.forget[0]] for item in part] for part in parts] == [[2, 5], [5, 8], [13, 21], [30, 30]]


def test_ranks_share_by_position_so_that_none_gets_all_the_long_ones():
    _, by_rank = deal(8, 1, 2)
    assert [sorted(item.forget[0] for part in parts for item in part) for parts in by_rank] == [[0, 2, 4, 6], [1, 3, 5, 7]]


# --- forget and retain in steps of their own -------------------------------------------------------------------------

SIZES = [(8, 40), (3, 40), (8, 8), (7, 9), (10, 41), (9, 30), (1, 17), (12, 20), (4, 11)]
"""Forget and retain examples, no more of the former."""


def alternating(forget, retain, *, step_size=4, seed=0):
    return Order(num_forget=forget, num_retain=retain, step_size=step_size, seed=seed, schedule=Schedule.alternating)


def steps_of(of, number):
    """The steps of an epoch, each ("forget" or "retain", indices)."""
    found = []
    for items in (of.step(number * of.steps_per_epoch + within) for within in range(of.steps_per_epoch)):
        forget = [index for item in items for index in item.forget]
        retain = [index for item in items for index in item.retain]
        assert bool(forget) != bool(retain), "a step is about one side"
        found.append(("forget", forget) if forget else ("retain", retain))
    return found


def published_loop(forget_batches, retain_batches):
    """The order of steps as the published script takes them: it walks through the retain loader, and at every n-th batch it
    first asks the forget loader for its next one; when that is used up, the error is passed over."""
    forget_loader = iter(range(forget_batches))
    every = retain_batches // forget_batches
    steps = []
    for number in range(retain_batches):
        if number % every == 0:
            with contextlib.suppress(StopIteration):
                steps.append(("forget", next(forget_loader)))
        steps.append(("retain", number))
    return steps


@pytest.mark.parametrize("step_size", [1, 3, 4, 50])
@pytest.mark.parametrize(("forget", "retain"), SIZES)
def test_alternating_steps_are_those_of_the_published_loop(forget, retain, step_size):
    of = alternating(forget, retain, step_size=step_size)
    expected = published_loop(-(-forget // step_size), -(-retain // step_size))
    for number in (0, 1, 4):
        steps = steps_of(of, number)
        assert [side for side, _ in steps] == [side for side, _ in expected]
        for side, size in (("forget", forget), ("retain", retain)):
            seen = [indices for kind, indices in steps if kind == side]
            assert sorted(index for indices in seen for index in indices) == list(range(size)), "each exactly once an epoch"
            assert [len(indices) for indices in seen[:-1]] == [step_size] * (len(seen) - 1), "only the last may be smaller"


@pytest.mark.parametrize(("forget", "retain", "every"), [(8, 40, 5), (12, 20, 1), (10, 41, 3)])
def test_forget_steps_come_before_every_nth_retain_step(forget, retain, every):
    of = alternating(forget, retain)
    retain_steps_before, places = 0, []
    for side, _ in steps_of(of, 2):
        if side == "forget":
            places.append(retain_steps_before)
        retain_steps_before += side == "retain"
    assert places == [every * number for number in range(-(-forget // 4))]


@pytest.mark.parametrize(("forget", "retain"), [(9, 4), (20, 3), (8, 7), (5, 1)])
def test_with_more_forget_than_retain_they_take_turns_and_retain_starts_anew(forget, retain):
    of = alternating(forget, retain, step_size=2)
    stream = []
    for number in range(6):
        steps = steps_of(of, number)
        assert [side for side, _ in steps] == ["forget", "retain"] * -(-forget // 2)
        assert sorted(index for side, indices in steps if side == "forget" for index in indices) == list(range(forget))
        stream += [index for side, indices in steps if side == "retain" for index in indices]
    laps = [stream[start : start + retain] for start in range(0, len(stream) - retain + 1, retain)]
    assert all(sorted(lap) == list(range(retain)) for lap in laps), "permutations one after the other"


@pytest.mark.parametrize(("forget", "retain"), [(8, 40), (9, 4)])
def test_the_alternating_order_depends_on_its_fields_alone(forget, retain):
    total = 3 * alternating(forget, retain).steps_per_epoch
    first = [alternating(forget, retain, seed=3).step(step) for step in range(total)]
    backwards = [alternating(forget, retain, seed=3).step(step) for step in reversed(range(total))]
    assert first == backwards[::-1]
    assert first != [alternating(forget, retain, seed=4).step(step) for step in range(total)]
    epochs = {tuple(first[start : start + total // 3]) for start in range(0, total, total // 3)}
    assert len(epochs) == 3, "each epoch in an order of its own"


def test_both_schedules_take_the_forget_examples_in_the_same_order():
    joint = [item.forget for item in epoch(order(8, 40), 1)]
    assert [(index,) for side, indices in steps_of(alternating(8, 40), 1) if side == "forget" for index in indices] == joint


@pytest.mark.parametrize(("forget", "retain"), [(0, 5), (5, 0)])
def test_one_side_alone_does_not_alternate(forget, retain):
    of = alternating(forget, retain)
    assert not of.alternates
    assert epoch(of, 1) == epoch(order(forget, retain), 1)
