"""Any benchmark with other people to be forgotten."""

from collections import Counter

import pytest

from mmunlearn.benchmarks.chosen import Chosen
from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people_files import BENCHMARK_FOLDER, TRAIN_FOLDER
from mmunlearn.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def places(people_root):
    return {"root": str(people_root / BENCHMARK_FOLDER), "train_root": str(people_root / TRAIN_FOLDER), "forget_ratio": "15"}


@pytest.fixture(scope="module")
def plain(places):
    return MLLMUBench(**places)


def people(examples):
    return {example.subject for example in examples}


@pytest.fixture(scope="module")
def sides(plain):
    splits = plain.splits()
    return sorted(people(splits.forget)), sorted(people(splits.retain))


def chosen(places, **fields):
    return Chosen(of={"_target_": "mmunlearn.benchmarks.mllmu.MLLMUBench", **places}, **fields)


def test_the_benchmark_s_own_forget_people_give_the_benchmark_itself(places, plain, sides):
    own = chosen(places, forget=sides[0])
    for side in ("forget", "retain"):
        assert Counter(e.id for e in getattr(own.splits(), side)) == Counter(e.id for e in getattr(plain.splits(), side))
    theirs = {task.name: task for task in plain.tasks()}
    ours = {task.name: task for task in own.tasks()}
    assert list(ours) == list(theirs)
    for name, task in ours.items():
        assert Counter(e.id for e in task.examples) == Counter(e.id for e in theirs[name].examples)
        assert (task.ask, task.metrics, task.higher_is_better) == (
            theirs[name].ask,
            theirs[name].metrics,
            theirs[name].higher_is_better,
        )


def test_others_are_forgotten_and_nobody_stands_on_two_sides(places, plain, sides):
    forget, earlier = [sides[1][0], sides[0][0]], [sides[1][1]]
    own = chosen(places, forget=forget, earlier=earlier)
    splits = own.splits()
    everybody = {*sides[0], *sides[1]}
    assert people(splits.forget) == set(forget)
    assert people(splits.retain) == everybody - {*forget, *earlier}
    assert people(splits.full) == everybody
    both = Counter(e.id for e in (*plain.splits().forget, *plain.splits().retain) if e.subject not in earlier)
    assert Counter(e.id for e in (*splits.forget, *splits.retain)) == both
    asked = {}  # not everybody has questions of every kind
    for task in plain.tasks():
        asked.setdefault(task.name.partition("_")[2], set()).update(people(task.examples))
    for task in own.tasks():
        family, _, kind = task.name.partition("_")
        wanted = {
            "forget": set(forget),
            "retain": everybody - {*forget, *earlier},
            "test": {sides[0][0]},
            "reworded": {sides[0][0]},
        }
        if family in wanted:
            assert people(task.examples) == wanted[family] & asked[kind], task.name


def test_asking_about_one_side_alone_changes_nothing_in_it(places, sides):
    own = chosen(places, forget=[sides[1][0]])
    alone = {task.name: [e.id for e in task.examples] for task in own.tasks(("forget",))}
    among = {task.name: [e.id for e in task.examples] for task in own.tasks() if task.name.startswith("forget")}
    assert alone == among
    assert alone


def test_names_are_compared_whatever_their_case(places, sides):
    assert people(chosen(places, forget=[f" {sides[1][0].upper()} "]).splits().forget) == {sides[1][0]}


def test_its_numbers_are_not_taken_for_the_benchmark_s(places, plain, sides):
    assert chosen(places, forget=sides[0]).name != plain.name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"forget": []}, "nobody is to be forgotten"),
        ({"forget": ["a", "A"]}, "more than once"),
        ({"forget": ["a"], "earlier": ["a"]}, "more than once"),
    ],
)
def test_mistaken_lists(places, fields, message):
    with pytest.raises(ConfigError, match=message):
        chosen(places, **fields)


def test_mistaken_sections(places, sides):
    with pytest.raises(ConfigError, match=r"data\.of"):
        Chosen(of=None, forget=["a"])
    with pytest.raises(ConfigError, match="rooot"):
        chosen({**places, "rooot": "x"}, forget=sides[0]).splits().forget  # noqa: B018


@pytest.mark.parametrize("fields", [{"forget": ["Nobody"]}, {"earlier": ["Nobody"]}])
def test_somebody_unknown_is_named(places, sides, fields):
    with pytest.raises(DataError, match="nobody is called 'Nobody'"):
        chosen(places, **{"forget": [sides[0][0]], **fields}).splits().retain  # noqa: B018
