"""Drawing pictures rather than questions: every question once, those about one picture side by side where they can be."""

import random
from itertools import pairwise

import pytest
from tiny_cases import make_examples, picture

from mmunlearn.config_enums import Schedule
from mmunlearn.data.grouping import arranged, groups_by_picture
from mmunlearn.data.pairs import Item, Order, split_step

GROUPS = tuple([(3 * n, 3 * n + 1, 3 * n + 2) for n in range(6)] + [(18 + n,) for n in range(14)])
COUNT = 32


def owner(index):
    return next(number for number, group in enumerate(GROUPS) if index in group)


def chunks(order, size, offset=0):
    cuts = [0, *range((-offset) % size or size, len(order), size), len(order)]
    return [order[start:stop] for start, stop in pairwise(cuts)]


def test_questions_about_the_same_picture_are_a_group_and_texts_are_alone():
    questions = make_examples("forget", 6)  # every second one with a picture of its own
    assert groups_by_picture(questions) == ((0,), (1,), (2,), (3,), (4,), (5,))
    shown = [picture(1), None, picture(2), picture(1), None, picture(2)]
    shared = [type(e)(id=e.id, question=e.question, answer=e.answer, image=i) for e, i in zip(questions, shown, strict=True)]
    assert groups_by_picture(shared) == ((0, 3), (1,), (2, 5), (4,))


@pytest.mark.parametrize("offset", [0, 1, 3, 6])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_each_index_comes_once_and_groups_that_fit_are_whole_but_for_the_last(size, offset):
    cut = 0
    for seed in range(20):
        order = arranged(GROUPS, random.Random(seed), size=size, offset=offset)
        assert sorted(order) == list(range(COUNT))
        parts = [number for number, part in enumerate(chunks(order, size, offset)) for _ in part]
        cut += sum(len({parts[order.index(index)] for index in group}) > 1 for group in GROUPS)
    if size >= 3:
        assert cut <= 20, "one an epoch of 6 groups: where no single question is left to fill a gap"


def test_groups_and_questions_within_are_shuffled():
    found = {arranged(GROUPS, random.Random(seed), size=4, offset=0) for seed in range(10)}
    assert len(found) == 10
    firsts = {next(index for index in order if index < 3) for order in found}
    assert len(firsts) > 1


def order(forget=COUNT, retain=COUNT, **more):
    groups = {"forget_groups": GROUPS if forget else (), "retain_groups": GROUPS if retain else (), "micro_batch": 4}
    return Order(num_forget=forget, num_retain=retain, step_size=4, seed=0, **groups, **more)


def test_the_order_is_the_same_on_every_machine():
    """Recorded once: with another order an old checkpoint would be resumed on other data."""
    assert [item.forget[0] for step in range(3) for item in order().step(step)] == [18, 22, 25, 27, 31, 6, 7, 8, 24, 5, 4, 3]


@pytest.mark.parametrize("per_forget", [1, 2, 3])
def test_both_sides_of_a_step_hold_whole_groups(per_forget):
    of = order(retain_per_forget=per_forget)
    split = {"forget": 0, "retain": 0}
    steps = 6 * of.steps_per_epoch
    for number in range(steps):
        items = of.step(number)
        for side in split:
            indices = [index for item in items for index in getattr(item, side)]
            pictured = {owner(index) for index in indices if index < 18}
            split[side] += sum(len(set(GROUPS[group]) - set(indices)) > 0 for group in pictured)
    assert split["forget"] <= 2 * 6
    assert split["retain"] <= 3 * 6 * per_forget
    random_order = Order(num_forget=COUNT, num_retain=COUNT, step_size=4, seed=0)
    indices = [[index for item in random_order.step(number) for index in item.forget] for number in range(steps)]
    scattered = sum(len(set(GROUPS[g]) - set(step)) > 0 for step in indices for g in {owner(i) for i in step if i < 18})
    assert scattered > 5 * max(split["forget"], 1)


def test_retain_goes_through_permutations_without_a_break():
    of = order(forget=10, retain_per_forget=3)
    of = Order(**{**vars(of), "forget_groups": tuple((n,) for n in range(10))})
    stream = [i for number in range(8 * of.steps_per_epoch) for item in of.step(number) for i in item.retain]
    laps = [stream[start : start + COUNT] for start in range(0, len(stream) - COUNT + 1, COUNT)]
    assert len(laps) == 7
    assert all(sorted(lap) == list(range(COUNT)) for lap in laps)


@pytest.mark.parametrize(("forget", "retain"), [(COUNT, COUNT), (9, COUNT)])
def test_alternating_steps_hold_every_question_once_an_epoch(forget, retain):
    of = order(forget=forget, retain=retain, schedule=Schedule.alternating)
    of = Order(**{**vars(of), "forget_groups": GROUPS if forget == COUNT else ((0, 1, 2), (3, 4, 5), (6, 7, 8))})
    items = [item for number in range(of.steps_per_epoch) for item in of.step(number)]
    assert sorted(i for item in items for i in item.forget) == list(range(forget))
    assert sorted(i for item in items for i in item.retain) == list(range(retain))


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 2)])
@pytest.mark.parametrize("count", [0, 5, 16])
def test_neighbours_stay_together_on_a_rank(ranks, micro_batches, count):
    items = tuple(Item((index,), ()) for index in range(count))
    dealt = [
        part
        for rank in range(ranks)
        for part in split_step(items, micro_batches=micro_batches, ranks=ranks, rank=rank, length=None)
    ]
    assert len(dealt) == ranks * micro_batches
    assert [item for part in dealt for item in part] == list(items)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
