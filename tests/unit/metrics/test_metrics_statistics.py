"""Intervals against a formula written out by hand, and against simulated truth."""

import math

import numpy as np
import pytest
from scipy import stats

from mmunlearn.metrics.statistics import Estimate, clustered_interval, paired_difference


def by_hand(values, subjects, level):
    """The cluster-robust t interval of Cameron & Miller (2015), spelled out with loops."""
    mean = sum(values) / len(values)
    people = sorted(set(subjects))
    squares = 0.0
    for person in people:
        squares += sum(value - mean for value, subject in zip(values, subjects, strict=True) if subject == person) ** 2
    error = math.sqrt(len(people) / (len(people) - 1) * squares) / len(values)
    margin = stats.t.ppf(1 - (1 - level) / 2, len(people) - 1) * error
    return mean - margin, mean + margin


def draw(generator, persons, questions):
    """Answers of persons who differ (beta-distributed ability, true mean 0.6) with unequal numbers of questions."""
    values, subjects = [], []
    for person in range(persons):
        ability = generator.beta(3, 2)
        count = int(generator.integers(questions - 2, questions + 3))
        values += list((generator.random(count) < ability).astype(float))
        subjects += [f"p{person}"] * count
    return values, subjects


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_few_persons_agree_with_the_formula(level):
    values, subjects = draw(np.random.default_rng(1), 8, 5)
    estimate = clustered_interval(values, subjects, level=level)
    assert (estimate.low, estimate.high) == pytest.approx(by_hand(values, subjects, level))
    assert estimate.value == pytest.approx(sum(values) / len(values))
    assert (estimate.count, estimate.unscored) == (len(values), 0)


def test_one_question_a_person_is_the_textbook_t_interval():
    values = [0.1, 0.4, 0.5, 0.9, 0.3]
    estimate = clustered_interval(values, list("abcde"))
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx(expected)


@pytest.mark.parametrize(("persons", "lowest"), [(12, 0.92), pytest.param(40, 0.92, marks=pytest.mark.thorough)])
def test_coverage(persons, lowest):
    """The true mean lies in about 95 % of the intervals; 600 trials have a standard error of 0.9 points."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(600):
        estimate = clustered_interval(*draw(generator, persons, 5), seed=trial)
        hits += estimate.low <= 0.6 <= estimate.high
    assert lowest <= hits / 600 <= 0.98


def test_bootstrap_agrees_with_a_loop_over_resampled_persons():
    values, subjects = draw(np.random.default_rng(5), 30, 5)
    estimate = clustered_interval(values, subjects)
    groups = [[v for v, s in zip(values, subjects, strict=True) if s == person] for person in sorted(set(subjects))]
    generator = np.random.default_rng(99)
    means = []
    for _ in range(4000):
        chosen = [groups[index] for index in generator.integers(len(groups), size=len(groups))]
        pooled = [value for group in chosen for value in group]
        means.append(sum(pooled) / len(pooled))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.015)


def test_ignoring_persons_would_give_a_narrower_interval():
    values, subjects = [1.0] * 30 + [0.0] * 30, [f"p{index // 6}" for index in range(60)]
    clustered = clustered_interval(values, subjects)
    independent = clustered_interval(values, [str(index) for index in range(60)])
    assert clustered.high - clustered.low > 2 * (independent.high - independent.low)


def test_the_order_of_questions_does_not_matter_and_the_seed_does():
    values, subjects = draw(np.random.default_rng(3), 25, 4)
    assert clustered_interval(values, subjects) == clustered_interval(values, subjects)
    assert clustered_interval(values, subjects) != clustered_interval(values, subjects, seed=1)
    backwards = clustered_interval(values[::-1], subjects[::-1])
    assert backwards.low == pytest.approx(clustered_interval(values, subjects).low)


def test_nan_is_counted_and_left_out():
    with_gaps = clustered_interval([1.0, math.nan, 0.0, 1.0, math.nan], ["a", "a", "b", "c", "d"])
    without = clustered_interval([1.0, 0.0, 1.0], ["a", "b", "c"])
    assert with_gaps.unscored == 2
    assert (with_gaps.count, with_gaps.value, with_gaps.low, with_gaps.high) == (
        without.count,
        without.value,
        without.low,
        without.high,
    )


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_nothing_scored(values):
    estimate = clustered_interval(values, ["a"] * len(values))
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert (estimate.count, estimate.unscored) == (0, len(values))


def test_one_person_has_no_interval():
    estimate = clustered_interval([0.0, 1.0, 1.0], ["a"] * 3)
    assert estimate.value == pytest.approx(2 / 3)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


@pytest.mark.parametrize("persons", [5, 12, 40])
def test_all_wrong_and_all_right_get_the_exact_binomial_bound_of_persons(persons):
    subjects = [f"p{index % persons}" for index in range(persons * 4)]
    expected = stats.binomtest(0, persons).proportion_ci(0.95, "exact").high
    wrong, right = (clustered_interval([value] * len(subjects), subjects) for value in (0.0, 1.0))
    assert (wrong.low, wrong.high) == pytest.approx((0.0, expected))
    assert (right.low, right.high) == pytest.approx((1 - expected, 1.0))


@pytest.mark.parametrize(("value", "bounds"), [(0.3, None), (0.3, (0.0, 1.0)), (4.0, (1.0, 10.0)), (0.0, (-1.0, 1.0))])
def test_equal_values_inside_the_range_are_no_certainty(value, bounds):
    """The largest share of unlike persons, each as far off as possible, that 7 persons would miss with 2.5 %."""
    estimate = clustered_interval([value] * 14, list("abcdefg") * 2, bounds=bounds)
    missed = next(share / 1e5 for share in range(100_000) if (1 - share / 1e5) ** 7 <= 0.025)
    lowest, highest = bounds or (0.0, 1.0)
    assert estimate.value == value
    assert estimate.low == pytest.approx((1 - missed) * value + missed * lowest, abs=1e-3)
    assert estimate.high == pytest.approx((1 - missed) * value + missed * highest, abs=1e-3)


def test_equal_values_are_equal_whatever_the_rounding():
    values = [0.1 + 0.2, 0.3, 0.3]
    assert clustered_interval(values, list("abc")).high - 0.3 > 0.1


@pytest.mark.parametrize(
    ("value", "bounds"), [(0.0, (0.0, math.inf)), (7.0, None), (0.0, (-math.inf, 0.0)), (2.0, (0, math.inf))]
)
def test_equal_values_without_a_natural_end_have_no_interval(value, bounds):
    estimate = clustered_interval([value] * 8, list("abcdabcd"), bounds=bounds)
    assert estimate.value == value
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert estimate.to_json()["high"] is None


def test_persons_with_equal_means_fall_back_to_questions():
    values, subjects = [0.0, 1.0] * 6, [f"p{index // 2}" for index in range(12)]
    estimate = clustered_interval(values, subjects)
    margin = stats.t.ppf(0.975, 5) * np.std(values, ddof=1) / math.sqrt(12)
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - margin, 0.5 + margin))


def test_shares_are_cut_to_their_range_and_other_metrics_are_not():
    share = clustered_interval([0.0, 0.0, 0.0, 1.0], list("abcd"))
    assert share.low == 0.0
    loss = clustered_interval([0.0, 0.0, 0.0, 4.0], list("abcd"))
    assert loss.low < 0.0
    with pytest.raises(ValueError, match="outside"):
        clustered_interval([0.0, 2.0], ["a", "b"], bounds=(0, 1))


def test_questions_without_a_person_are_their_own():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert clustered_interval(values, [""] * 5) == clustered_interval(values, list("abcde"))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 values but 1 subjects"):
        clustered_interval([1.0, 0.0], ["a"])


def test_paired_difference():
    before = {"q1": 1.0, "q2": 1.0, "q3": 1.0, "q4": math.nan, "q5": 1.0}
    after = {"q1": 0.0, "q2": 1.0, "q3": 0.5, "q4": 1.0}
    subjects = {"q1": "a", "q2": "b", "q3": "c", "q4": "d", "q5": "e"}
    difference = paired_difference(before, after, subjects, level=0.9)
    assert difference.value == pytest.approx(0.5)
    assert (difference.count, difference.unscored) == (3, 2)
    expected = by_hand([1.0, 0.0, 0.5], list("abc"), 0.9)
    assert difference.low == pytest.approx(max(-1, expected[0]))


def test_paired_difference_is_not_cut_at_zero():
    ids = [f"q{index}" for index in range(8)]
    before, after = dict.fromkeys(ids, 1.0), {**dict.fromkeys(ids, 1.0), "q0": 0.0}
    assert paired_difference(before, after, dict(zip(ids, ids, strict=True))).low < 0


def test_json_round_trip():
    estimate = clustered_interval([1.0, math.nan], ["a", "b"])
    assert estimate.to_json() == {"value": 1.0, "low": None, "high": None, "count": 1, "unscored": 1}
    again = Estimate.from_json(estimate.to_json())
    assert again.value == 1.0
    assert math.isnan(again.low)


@pytest.mark.parametrize("difference", [0.0, 0.1, 0.5, -0.25])
@pytest.mark.parametrize("persons", [2, 5, 12])
def test_equal_differences_are_no_certainty(difference, persons):
    """The bounds are those at which a person unlike the others would be missed with 2.5 %: brute force over its share."""
    base = [i / 10 for i in range(persons)]
    people = {str(i): str(i) for i in range(persons)}
    found = paired_difference(
        {str(i): value + difference for i, value in enumerate(base)}, {str(i): value for i, value in enumerate(base)}, people
    )
    share = next(share / 1e5 for share in range(100_000) if (1 - share / 1e5) ** persons <= 0.025)
    assert found.value == pytest.approx(difference)
    assert found.low == pytest.approx(difference - (1 + difference) * share, abs=1e-4)
    assert found.high == pytest.approx(difference + (1 - difference) * share, abs=1e-4)
