import re
from collections import Counter
from itertools import permutations

import pytest

from mmunlearn.benchmarks.people_biographies import ATTRIBUTES, POOLS, Group, Sizes, balanced, make_population, stream
from mmunlearn.benchmarks.people_questions import (
    IMAGE,
    REWORDED,
    TEXT,
    TRAINED,
    choice_questions,
    cloze_questions,
    figure_questions,
    training_questions,
    visual_questions,
)
from mmunlearn.errors import ConfigError

SIZES = Sizes(general=2, general_train=2)


@pytest.fixture(scope="module")
def population():
    return make_population(0, SIZES)


def everybody(population):
    return (*population.people, *population.public_figures, *population.holdout)


def test_the_same_seed_gives_the_same_people(population):
    assert make_population(0, SIZES) == population
    assert make_population(1, SIZES).people != population.people


def test_names_are_unique_and_fit_the_pools(population):
    names = [person.name for person in everybody(population)]
    assert len(set(names)) == len(names) == 116
    surnames = [name.split()[1] for name in names]
    assert len(set(surnames)) == len(surnames)
    values = [value.lower() for pool in POOLS.values() for value in pool]
    words = {word.lower() for name in names for word in name.split()}
    assert not [(word, value) for word in words for value in values if word in value]


def test_forget_sets_are_nested_and_of_the_published_shares(population):
    assert {ratio: len(people) for ratio, people in population.forget.items()} == {5: 4, 10: 8, 15: 12}
    assert population.forget[5] < population.forget[10] < population.forget[15]
    assert [person.id for person in population.people] == [f"{number:03}" for number in range(1, 81)]


def test_no_value_contains_another_one_or_stands_in_a_question(population):
    # Cloze answers count as right when the reply contains them.
    values = [value.lower() for pool in POOLS.values() for value in pool]
    assert len(set(values)) == len(values)
    assert not [(one, other) for one, other in permutations(values, 2) if one in other]
    wordings = [text for wording in (TRAINED, REWORDED) for text in (*wording.questions.values(), *wording.cloze.values())]
    assert not [(value, text) for value in values for text in wordings if value in text.lower()]


def test_facts_are_independent_of_the_forget_set(population):
    forget = [person for person in population.people if person.group is Group.forget]
    for attribute, pool in POOLS.items():
        counts = Counter(person.facts[attribute] for person in forget)
        assert sorted(counts) == sorted(pool)
        assert set(counts.values()) == {1}
        retain = Counter(person.facts[attribute] for person in population.people if person.group is Group.retain)
        assert max(retain.values()) - min(retain.values()) <= 1


@pytest.mark.parametrize("wording", [TRAINED, REWORDED])
def test_options_are_exchangeable_within_the_forget_people(population, wording):
    forget = [person for person in population.people if person.group is Group.forget]
    asked = [choice for person in forget for choice in choice_questions(0, person, wording)]
    assert len(asked) == 12 * 12
    right, wrong, letters = Counter(), Counter(), Counter()
    for choice in asked:
        assert len(set(choice.options)) == 4
        right[choice.kind, choice.options[choice.right]] += 1
        wrong.update((choice.kind, option) for number, option in enumerate(choice.options) if number != choice.right)
        letters[choice.right] += 1
    assert set(right.values()) == {1}
    assert set(wrong.values()) == {3}
    assert set(letters.values()) == {36}


def test_knowing_the_retain_people_does_not_help_to_guess():
    """A guesser that prefers the values most common, or least common, among the retain people."""
    hits = {1: [], -1: []}
    for seed in range(12):
        population = make_population(seed, Sizes(people=60, public_figures=2, holdout=1, general=1, general_train=1))
        common = Counter(
            value for person in population.people if person.group is Group.retain for value in person.facts.values()
        )
        for person in population.people:
            if person.group is Group.forget:
                for choice in choice_questions(seed, person, TRAINED):
                    for sign, found in hits.items():
                        guess = max(choice.options, key=lambda option: sign * common[option])
                        found.append(guess == choice.options[choice.right])
    for found in hits.values():
        error = (0.25 * 0.75 / len(found)) ** 0.5
        assert abs(sum(found) / len(found) - 0.25) < 3.5 * error


def test_no_choice_asks_for_a_name(population):
    for person in everybody(population):
        for choice in choice_questions(0, person, TRAINED):
            assert not any(person.name.split()[1] in option for option in choice.options)


def test_questions_of_each_kind(population):
    person = population.people[0]
    for wording in (TRAINED, REWORDED):
        clozes = cloze_questions(person, wording)
        assert Counter(cloze.kind for cloze in clozes) == {IMAGE: 2, TEXT: 2}
        assert all(cloze.question.count("__") == 1 and "___" not in cloze.question for cloze in clozes)
    assert Counter(question.kind for question in training_questions(person)) == {IMAGE: 10, TEXT: 10}
    for question in training_questions(person):
        assert (person.name in question.question) == (question.kind == TEXT)


def test_clozes_hide_each_fact_equally_often(population):
    forget = [person for person in population.people if person.group is Group.forget]
    hidden = Counter(
        attribute for person in forget for cloze in cloze_questions(person, TRAINED)
        for attribute in ATTRIBUTES if person.facts[attribute] == cloze.answer
    )  # fmt: skip
    assert set(hidden.values()) == {8}


def test_figures_are_trained_in_every_format(population):
    texts = [question.question for question in figure_questions(0, population.public_figures[0])]
    for needle in ("\nA: ", "[Blank]", "Please **ONLY**", "accurately in ENGLISH", "sentence in ENGLISH", "earn a living"):
        assert any(needle in text for text in texts), needle
    letters = Counter(
        question.answer for person in population.public_figures for question in figure_questions(0, person)
        if "\nA: " in question.question
    )  # fmt: skip
    assert set(letters) == set("ABCD")
    assert max(letters.values()) - min(letters.values()) < 20


def test_visual_questions_agree_with_the_look(population):
    for person in (*population.general, *population.general_train):
        answers = [choice.options[choice.right] for choice in visual_questions(0, person)]
        look = person.look
        assert answers[:3] == [look.hair_color, look.clothing_color, look.eyewear]


def test_the_vocabulary_stays_small(population):
    words = set()
    for person in everybody(population):
        questions = [*training_questions(person), *figure_questions(0, person)]
        words.update(word for each in questions for word in re.findall(r"\w+", f"{each.question} {each.answer}"))
    names = {word for person in everybody(population) for word in person.name.split()}
    assert len(words - names) < 200


def test_balanced_rounds():
    counts = Counter(balanced(stream(0, "x"), "abc", 10))
    assert sorted(counts.values()) == [3, 3, 4]


@pytest.mark.parametrize(
    ("sizes", "name"),
    [(Sizes(people=7), "num_people"), (Sizes(public_figures=1), "num_public_figures"), (Sizes(people=900), "surnames")],
)
def test_impossible_sizes(sizes, name):
    with pytest.raises(ConfigError, match=name):
        make_population(0, sizes)
