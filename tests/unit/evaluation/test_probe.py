import itertools
import math
import random

import pytest
from rich.console import Console
from scipy import stats

from mmunlearn.evaluation import probe_people
from mmunlearn.evaluation.probe import people_table
from mmunlearn.evaluation.probe_people import (
    ALPHA,
    Answered,
    Verdict,
    holm,
    judge,
    questions_needed,
    tail_probability,
    together,
)


def choice(subject, accuracy, options=4, probability=0.5):
    return Answered(subject=subject, metrics={"accuracy": accuracy, "probability": probability}, chance=1 / options)


def answers(subject, right, count, options=4):
    return [choice(subject, float(number < right), options) for number in range(count)]


def judged(found):
    subjects = {answer.subject for answer in found}
    return {person.person: person for person in judge(found, {name: name for name in subjects})}


def brute_force(right, chances):
    """Over all 2^n outcomes."""
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=len(chances)):
        if sum(outcome) >= right:
            total += math.prod(p if hit else 1 - p for hit, p in zip(outcome, chances, strict=True))
    return total


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "count", "options"), [(0, 1, 4), (3, 3, 4), (2, 7, 4), (5, 9, 2), (6, 10, 3)])
def test_equal_questions_follow_the_binomial_law_in_closed_form(right, count, options):
    expected = sum(math.comb(count, k) * (options - 1) ** (count - k) / options**count for k in range(right, count + 1))
    assert tail_probability(right, [1 / options] * count) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_unlike_questions_are_summed_over_all_outcomes(seed):
    drawn = random.Random(seed)
    chances = [1 / drawn.randint(2, 6) for _ in range(8)]
    for right in range(9):
        assert tail_probability(right, chances) == pytest.approx(brute_force(right, chances), rel=1e-12)
        assert tail_probability(right, chances) == pytest.approx(stats.poisson_binom.sf(right - 1, chances), rel=1e-9)


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.025 * 2 but not below the one before, 0.9 * 1
    assert holm({"c": 0.025, "a": 0.01, "d": 0.9, "b": 0.02}) == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.9})


@pytest.mark.parametrize("seed", range(20))
def test_holm_rejects_what_its_definition_rejects(seed):
    drawn = random.Random(seed)
    values = {f"p{number}": drawn.random() ** 4 for number in range(7)}
    rejected = set()
    for rank, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        if value >= ALPHA / (7 - rank):
            break
        rejected.add(name)
    assert {name for name, value in holm(values).items() if value < ALPHA} == rejected


def test_whoever_is_tested_would_be_known_with_all_answers_right():
    drawn = random.Random(0)
    for _ in range(200):
        least = {f"p{number}": 4.0 ** -drawn.randint(1, 7) for number in range(drawn.randint(1, 40))}
        chosen = probe_people.testable(least)
        worst = {name: least[name] if name == next(iter(chosen), "") else 1.0 for name in chosen}
        assert not chosen or holm(worst)[chosen[0]] < ALPHA
        # people with equally many questions are treated alike
        assert {least[name] for name in chosen}.isdisjoint(least[name] for name in least if name not in chosen)


@pytest.mark.parametrize(("people", "needed"), [(1, 3), (2, 3), (3, 3), (4, 4), (10, 4), (100, 6)])
def test_questions_needed(people, needed):
    assert questions_needed(people) == needed
    assert 4**-needed < ALPHA / people <= 4 ** -(needed - 1)


def test_nobody_is_called_known_more_often_than_promised_where_the_model_guesses():
    drawn = random.Random(1)
    wrong = 0
    for _ in range(400):
        found = [choice(f"p{p}", float(drawn.random() < 0.25)) for p in range(6) for _ in range(8)]
        wrong += any(person.verdict is Verdict.knows for person in judged(found).values())
    assert wrong / 400 < ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 400)


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_verdicts():
    people = judged([*answers("known", 7, 8), *answers("guessed", 2, 8), *answers("hardly asked", 2, 2)])
    assert {name: person.verdict for name, person in people.items()} == {
        "known": Verdict.knows,
        "guessed": Verdict.no_sign,
        "hardly asked": Verdict.too_few,
    }
    assert list(people) == ["known", "guessed", "hardly asked"]
    known = people["known"]
    assert (known.choice.right, known.choice.count, known.chance) == (7, 8, 0.25)
    assert known.p_value == pytest.approx(stats.binomtest(7, 8, 0.25, alternative="greater").pvalue)
    assert known.p_holm == pytest.approx(2 * known.p_value)  # two are tested: the third cannot be found significant
    assert people["hardly asked"].p_holm is None
    assert people["hardly asked"].p_value == pytest.approx(1 / 16)


def test_the_correction_counts_people():
    """Four of six right is p = 0.038: a sign for one person alone, none among five."""
    assert judged(answers("one", 4, 6))["one"].verdict is Verdict.knows
    found = [answer for number in range(5) for answer in answers(f"p{number}", 4 if number == 0 else 1, 6)]
    assert {person.verdict for person in judged(found).values()} == {Verdict.no_sign}


def test_free_answers_alone_never_show_anything():
    free = [Answered(subject="a", metrics={"rougeL": 1.0, "probability": 1.0}) for _ in range(50)]
    gaps = [Answered(subject="a", metrics={"cloze_accuracy": 1.0, "probability": 0.5}) for _ in range(50)]
    (person,) = judged([*free, *gaps]).values()
    assert person.verdict is Verdict.too_few
    assert (person.questions, person.cloze.right, person.cloze.count) == (100, 50, 50)
    assert (person.rouge_l.mean, person.rouge_l.count) == (1.0, 50)
    assert person.probability.mean == 0.75
    assert (person.p_value, person.chance) == (None, None)


def test_a_shared_first_place_is_not_right_and_an_unscored_question_does_not_count():
    found = [*[choice("a", 0.5) for _ in range(4)], *[choice("a", math.nan, probability=math.nan) for _ in range(3)]]
    (person,) = judged(found).values()
    assert (person.choice.right, person.choice.count, person.choice.mean, person.questions) == (0, 4, 0.5, 7)
    assert person.p_value == 1
    assert person.probability.count == 4


def test_questions_about_nobody_are_left_out():
    assert list(judged([*answers("", 5, 5), *answers("a", 5, 5)])) == ["a"]


def test_many_people_with_a_question_each_are_seen_together_only():
    found = [*[answer for number in range(40) for answer in answers(f"p{number}", number % 2, 1)], *answers("", 9, 9)]
    assert {person.verdict for person in judged(found).values()} == {Verdict.too_few}
    everybody = together(found)
    assert (everybody.right, everybody.count) == (20, 40)
    assert everybody.p_value == pytest.approx(stats.binom.sf(19, 40, 0.25))
    assert together([]).p_value is None


def test_a_name_with_markup_is_printed_as_it_is():

    name = "[red]<b>Bobby[/red]"
    console = Console(width=120, record=True)
    console.print(people_table(judge(answers("a", 5, 5), {"a": name})))
    assert name in console.export_text()
