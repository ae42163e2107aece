"""Fictitious people who stand in for real ones: who they are, and that nothing mixes them with real people."""

from collections import Counter

import pytest

from mmunlearn.benchmarks.people_biographies import Sizes, make_population
from mmunlearn.benchmarks.pseudonyms import STAND_IN, pseudonyms
from mmunlearn.benchmarks.stand_ins import IMAGE_SIZE, Mix, StandInUse, make_stand_ins, shared_out
from mmunlearn.benchmarks.table import Table
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.evaluation.score import questions_fingerprint

HEADER = "subject,kind,question,answer,options,gender,age\n"
ROWS = (
    "Ada,choice,What does Ada do?,baker,baker|judge|tailor,female,40\n"
    "Ada,generation,Who is Ada?,a baker,,female,40\n"
    "Bea,generation,Who is Bea?,a judge,,f,60\n"
    "Cal,generation,Who is Cal?,a tailor,,m,\n"
)
REAL = {"Ada", "Bea", "Cal"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "people.csv").write_text(HEADER + ROWS, encoding="utf-8")
    return tmp_path


def table(folder, forget=("Ada", "Bea", "Cal"), **settings):
    return Table(root=str(folder), table="people.csv", forget=forget, **{"stand_ins": 4, **settings})


def subjects(examples):
    return {example.subject for example in examples}


def is_stand_in(subject):
    return subject.startswith(STAND_IN)


def asked(bench):
    return {task.name: subjects(task.examples) for task in bench.tasks()}


# --- who they are -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 7, 20])
@pytest.mark.parametrize("values", [("a",), ("a", "b"), ("a", "a", "b"), ("a", "b", "b", "c", "c", "c", "c")])
def test_shares_are_met_to_within_one(values, count):
    shared = Counter(shared_out(values, count))
    assert shared.total() == count
    for value, number in Counter(values).items():
        assert abs(shared[value] - number * count / len(values)) < 1


def test_what_is_left_over_goes_to_the_largest_remainders():
    """Exact shares 20/9, 12/9 and 4/9: two, one and none, and the last one to the third, whose remainder is 4/9."""
    assert shared_out("aaaaabbbc", 4) == ["a", "a", "b", "c"]


def test_the_mix_is_that_of_the_table(folder):
    """Two women and one man, aged 40 and 60 as far as the table tells: four women of six, ages half and half."""
    bench = table(folder, stand_ins=6)
    retain = bench.splits().retain
    ages = Counter(e.answer for e in retain if e.question.endswith("[Blank] years old."))
    assert ages == {"40": 3, "60": 3}
    everybody = {
        f"{STAND_IN}{person.name}": person.look.gender
        for person in make_population(
            1_000_003, Sizes(people=8, public_figures=2, holdout=32, general=1, general_train=1)
        ).holdout
    }
    assert Counter(everybody[subject] for subject in subjects(retain)) == {"female": 4, "male": 2}


def test_without_a_mix_half_are_women_and_no_age_is_asked():
    made = make_stand_ins(6, StandInUse.holdout, Mix(), names=(), seed=0)
    assert len(made.groups) == 6
    assert not any("years old" in row.question for row, _ in made.rows)


def test_the_same_settings_give_the_same_people_and_another_seed_gives_others(folder):
    first, again, other = (table(folder, seed=seed).splits().retain for seed in (0, 0, 1))
    assert examples_fingerprint(first) == examples_fingerprint(again)
    assert not subjects(first) & subjects(other)


def test_nobody_is_called_like_somebody_real():
    made = make_stand_ins(3, StandInUse.retain, Mix(), names=(), seed=0)
    names = [subject.removeprefix(STAND_IN).upper() for subject in made.groups]
    others = make_stand_ins(3, StandInUse.retain, Mix(), names=names, seed=0)
    assert not made.groups.keys() & others.groups.keys()


def test_they_have_faces_and_questions_of_every_kind(folder):
    bench = table(folder)
    tasks = {task.name: task for task in bench.tasks(["retain"])}
    assert list(tasks) == [f"retain_{m}_{k}" for m in ("image", "text") for k in ("choice", "cloze", "generation")]
    for name, task in tasks.items():
        assert all((example.image is not None) == ("image" in name) for example in task.examples)
        assert all(example.answer in example.choices for example in task.examples if example.choices)
    (picture, *_) = {e.image.key: e.image for e in tasks["retain_image_choice"].examples}.values()
    assert picture.open().size == (IMAGE_SIZE, IMAGE_SIZE)


# --- they never mix ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", list(StandInUse))
@pytest.mark.parametrize("forget", [("Ada",), ("Ada", "Bea")])
def test_no_number_is_about_both(folder, use, forget):
    bench = table(folder, forget, stand_ins_as=use)
    for name, people in asked(bench).items():
        assert len({is_stand_in(each) for each in people}) == 1, name
    assert {each for name, people in asked(bench).items() if name.startswith("forget") for each in people} == set(forget)
    without = table(folder, forget, stand_ins=0)
    real = {task.name: task for task in without.tasks()}
    for task in bench.tasks():  # what is asked about real people, and how, does not depend on stand-ins
        if task.name in real:
            assert questions_fingerprint([task]) == questions_fingerprint([real[task.name]])


def test_retain_stand_ins_are_trained_on_and_holdout_ones_never(folder):
    bench = table(folder, stand_ins_as="both")
    splits, tasks = bench.splits(), asked(bench)
    held = {each for name, people in tasks.items() if name.startswith("holdout") for each in people}
    assert len(held) == len(subjects(splits.retain)) == 4
    assert all(map(is_stand_in, held | subjects(splits.retain)))
    assert subjects(splits.full) == REAL | subjects(splits.retain)
    assert not held & (subjects(splits.full) | subjects(splits.forget) | subjects(splits.retain))
    assert subjects(splits.forget) == REAL


def test_stand_ins_join_real_people_who_are_kept_in_training_only(folder):
    bench = table(folder, ("Ada",))
    retain = subjects(bench.splits().retain)
    assert {each for each in retain if not is_stand_in(each)} == {"Bea", "Cal"}
    assert sum(map(is_stand_in, retain)) == 4
    assert {each for name, people in asked(bench).items() if name.startswith("retain") for each in people} == {"Bea", "Cal"}


def test_everybody_can_be_forgotten_only_if_somebody_stands_in(folder):
    with pytest.raises(DataError, match=r"names everybody.*data\.stand_ins=20"):
        table(folder, stand_ins=0).tasks()
    with pytest.raises(DataError, match="names everybody"):
        table(folder, stand_ins_as="holdout").tasks()
    assert table(folder).tasks()


def test_a_stand_in_cannot_be_forgotten_and_nobody_real_is_called_one(folder):
    name = next(iter(subjects(table(folder).splits().retain)))
    with pytest.raises(DataError, match="is not in the table"):
        table(folder, (name,)).tasks()
    (folder / "people.csv").write_text(f"{HEADER}Stand-in Joe,generation,Who?,he,,,\n{ROWS}")
    with pytest.raises(DataError, match=r"row 2: 'subject' begins with 'stand-in'"):
        table(folder).tasks()


def test_results_say_that_there_are_stand_ins(folder):
    bench = table(folder, stand_ins_as="both")
    assert bench.version == "1 with 4 stand-ins as both"
    assert table(folder, stand_ins=0).version == "1"
    assert bench.problems() == {
        "fictitious person who stands in as holdout, nobody real": 4,
        "fictitious person who stands in as retain, nobody real": 4,
    }
    assert all(f"/{STAND_IN}" in example.id for example in bench.splits().retain)
    labels = pseudonyms(REAL, subjects(bench.splits().retain))
    assert {label.split()[0] for subject, label in labels.items() if is_stand_in(subject)} == {"stand-in"}
    assert {labels[name] for name in REAL} == {"person 1", "person 2", "person 3"}


@pytest.mark.parametrize("count", [-1, 101])
def test_too_many_or_too_few(folder, count):
    with pytest.raises(ConfigError, match=r"data\.stand_ins"):
        table(folder, stand_ins=count)


@pytest.mark.thorough
def test_as_many_as_there_may_be(folder):
    assert len(table(folder, stand_ins=100)._opened.stand_ins.groups) == 100
