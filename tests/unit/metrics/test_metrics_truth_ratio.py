"""The truth ratio against its definition in probabilities; the comparisons against sums and counts written out."""

import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.probability import option_probability
from mmunlearn.metrics.truth_ratio import (
    BINS,
    CEILING,
    forget_form,
    forget_quality,
    geometric_truth_ratio,
    js_similarity,
    retain_form,
    truth_ratio,
)

EXAMPLE = Example(id="q", question="Where?", answer="Oslo", choices=("Bergen", "Oslo", "Paris"))
COMPARISONS = (forget_quality, js_similarity)


def prediction(sums, tokens):
    return Prediction(id="q", prompt="", text="", option_log_likelihoods=sums, option_tokens=tokens)


def of_probabilities(*probabilities):
    return prediction(tuple(math.log(p) if p else -math.inf for p in probabilities), (1,) * len(probabilities))


def test_by_hand():
    assert truth_ratio(of_probabilities(0.1, 0.4, 0.3), EXAMPLE) == pytest.approx(0.5), "((0.1 + 0.3) / 2) / 0.4"


def test_is_the_definition_in_probabilities():
    generator = random.Random(0)
    for _ in range(200):
        tokens = tuple(generator.randint(1, 6) for _ in range(3))
        probabilities = [generator.uniform(0.05, 1) for _ in tokens]  # of each token on the average
        found = truth_ratio(
            prediction(tuple(n * math.log(p) for n, p in zip(tokens, probabilities, strict=True)), tokens), EXAMPLE
        )
        assert found == pytest.approx((probabilities[0] + probabilities[2]) / 2 / probabilities[1])


def test_the_mean_is_arithmetic():
    """TOFU's code has the geometric mean, which is smaller: 0.1 here."""
    assert truth_ratio(of_probabilities(0.01, 1.0, 1.0), EXAMPLE) == pytest.approx(0.505)


def test_the_scripts_mean_is_geometric():
    """They average losses: exp(-mean loss of the wrong answers) / exp(-loss of the right one)."""
    generator = random.Random(1)
    for _ in range(50):
        probabilities = [generator.uniform(0.05, 1) for _ in range(3)]
        losses = [-math.log(p) for p in probabilities]
        expected = math.exp(-statistics.fmean([losses[0], losses[2]])) / math.exp(-losses[1])
        found = geometric_truth_ratio(of_probabilities(*probabilities), EXAMPLE)
        assert found == pytest.approx(expected)
        assert found <= truth_ratio(of_probabilities(*probabilities), EXAMPLE) + 1e-12
    assert geometric_truth_ratio(of_probabilities(0.01, 1.0, 1.0), EXAMPLE) == pytest.approx(0.1)


def test_a_wrong_answer_that_is_ruled_out_makes_the_geometric_mean_zero():
    ruled_out = prediction((-math.inf, -1.0, -1.0), (1, 1, 1))
    assert geometric_truth_ratio(ruled_out, EXAMPLE) == 0
    assert truth_ratio(ruled_out, EXAMPLE) == pytest.approx(0.5)
    for sums in ((-math.inf,) * 3, (-math.inf, -math.inf, -1.0)):
        assert math.isnan(geometric_truth_ratio(prediction(sums, (1, 1, 1)), EXAMPLE))


def test_the_order_of_the_options_does_not_matter_but_which_is_right_does():
    swapped = Example(id="q", question="Where?", answer="Oslo", choices=("Oslo", "Bergen", "Paris"))
    assert truth_ratio(of_probabilities(0.4, 0.1, 0.3), swapped) == truth_ratio(of_probabilities(0.1, 0.4, 0.3), EXAMPLE)
    assert truth_ratio(of_probabilities(0.4, 0.1, 0.3), EXAMPLE) == pytest.approx(3.5)


def test_a_paraphrase_takes_the_place_of_the_right_answer():
    assert truth_ratio(of_probabilities(0.1, 0.4, 0.3), EXAMPLE, paraphrase=math.log(0.8)) == pytest.approx(0.25)


def free(wrong, own, paraphrased=()):
    """A free answer: token log-probabilities of its own, (sum, tokens) of two wrong ones and perhaps of a paraphrase."""
    example = Example(
        id="q", question="Who?", answer="Ann Lee", paraphrase="Miss Lee" if paraphrased else "", perturbed=("Bo Ray", "Cy Day")
    )
    sums, tokens = zip(*wrong, *([paraphrased] if paraphrased else []), strict=True)
    return replace(prediction(sums, tokens), answer_log_probs=own), example


def test_of_a_free_answer_it_is_that_of_the_same_answers_as_options():
    generator = random.Random(1)
    for _ in range(100):
        wrong = [(-generator.expovariate(0.3), generator.randint(1, 6)) for _ in range(2)]
        own = tuple(-generator.expovariate(1) for _ in range(generator.randint(1, 6)))
        said, example = free(wrong, own)
        options = replace(example, choices=("Bo Ray", "Ann Lee", "Cy Day"), perturbed=())
        sums, tokens = zip(wrong[0], (sum(own), len(own)), wrong[1], strict=True)
        same = prediction(sums, tokens)
        assert truth_ratio(said, example) == pytest.approx(truth_ratio(same, options))
        assert option_probability(said, example) == pytest.approx(option_probability(same, options))


def test_of_a_free_answer_the_paraphrase_is_divided_by_and_the_answer_is_what_is_probable():
    wrong = [(2 * math.log(0.1), 2), (3 * math.log(0.3), 3)]
    said, example = free(wrong, (math.log(0.4),) * 5, (4 * math.log(0.8), 4))
    assert truth_ratio(said, example) == pytest.approx((0.1 + 0.3) / 2 / 0.8)
    assert truth_ratio(said, example, paraphrase=math.log(0.2)) == pytest.approx(1), "what is given takes precedence"
    assert option_probability(said, example) == pytest.approx(0.4 / (0.4 + 0.1 + 0.3))


def test_of_a_free_answer_nothing_is_made_up():
    fine, example = free([(-1.0, 1), (-1.0, 1)], (-1.0,), (-2.0, 1))
    assert truth_ratio(fine, example) == pytest.approx(math.e)
    for said, asked in (
        (replace(fine, answer_log_probs=()), example),
        (replace(fine, option_log_likelihoods=(-1.0, -1.0), option_tokens=(1, 1)), example),  # no paraphrase stored
        (fine, replace(example, paraphrase="")),  # one stored, none expected
        (replace(fine, option_tokens=(1, 0, 1)), example),
        (fine, replace(example, perturbed=(), paraphrase="")),
        (replace(fine, option_log_likelihoods=(math.nan, -1.0, -1.0)), example),
    ):
        assert math.isnan(truth_ratio(said, asked))
        assert math.isnan(option_probability(said, asked))
    broken = replace(fine, option_log_likelihoods=(-1.0, -1.0, math.nan))
    assert math.isnan(truth_ratio(broken, example))


def test_tiny_probabilities_neither_overflow_nor_underflow():
    assert truth_ratio(prediction((-5000.0, -5000.0, -5000.0), (1, 1, 1)), EXAMPLE) == pytest.approx(1)
    assert truth_ratio(prediction((-1.0, -5000.0, -1.0), (1, 1, 1)), EXAMPLE) == CEILING
    assert truth_ratio(prediction((-5000.0, -1.0, -5000.0), (1, 1, 1)), EXAMPLE) == 0
    assert truth_ratio(of_probabilities(0, 0.5, 0), EXAMPLE) == 0
    assert truth_ratio(of_probabilities(0.5, 0, 0.5), EXAMPLE) == CEILING


def test_what_cannot_be_compared_is_nan():
    fine = of_probabilities(0.1, 0.4, 0.3)
    only = Example(id="q", question="?", answer="Oslo", choices=("Oslo",))
    stray = Example(id="q", question="?", answer="Rome", choices=EXAMPLE.choices)
    for answered, example in (
        (prediction((), ()), EXAMPLE),
        (prediction((math.nan, -1.0, -1.0), (1, 1, 1)), EXAMPLE),
        (prediction((-1.0, -1.0), (1, 1)), EXAMPLE),
        (prediction((-1.0, -1.0, -1.0), (1, 0, 1)), EXAMPLE),
        (of_probabilities(0, 0, 0), EXAMPLE),
        (of_probabilities(0.5), only),
        (fine, stray),
    ):
        assert math.isnan(truth_ratio(answered, example))
    assert math.isnan(truth_ratio(fine, EXAMPLE, paraphrase=math.nan))
    assert math.isnan(truth_ratio(of_probabilities(0, 0.5, 0), EXAMPLE, paraphrase=-math.inf))


@pytest.mark.parametrize(
    ("ratio", "forget", "retain"), [(0, 0, 1), (0.25, 0.25, 0.75), (1, 1, 0), (4, 0.25, 0), (CEILING, 1 / CEILING, 0)]
)
def test_forms(ratio, forget, retain):
    assert forget_form(ratio) == forget
    assert retain_form(ratio) == retain


def test_forms_of_nothing():
    assert math.isnan(forget_form(math.nan))
    assert math.isnan(retain_form(math.nan))


def exact_p_value(ones, others):
    """Kolmogorov-Smirnov by brute force: the share of all ways to deal the pooled values that are at least as far apart."""
    pooled = sorted([*ones, *others])
    observed, count = stats.ks_2samp(ones, others).statistic, 0
    deals = 0
    for chosen in range(1 << len(pooled)):
        if chosen.bit_count() != len(ones):
            continue
        deals += 1
        seen, largest = [0, 0], 0.0
        for index in range(len(pooled)):
            seen[chosen >> index & 1] += 1
            largest = max(largest, abs(seen[1] / len(ones) - seen[0] / len(others)))
        count += largest >= observed - 1e-9
    return count / deals


def test_forget_quality_is_the_exact_p_value():
    generator = random.Random(1)
    for _ in range(5):
        ones = [generator.random() for _ in range(5)]
        others = [generator.random() + 0.3 for _ in range(6)]
        assert forget_quality(ones, others) == pytest.approx(exact_p_value(ones, others))


@pytest.mark.filterwarnings("error")
def test_forget_quality_of_nearly_equal_samples_is_one_without_a_warning():
    generator = random.Random(5)
    for _ in range(200):
        ones = sorted(generator.random() for _ in range(generator.randint(2, 6)))
        others = [value + 1e-9 * generator.random() for value in ones]
        assert forget_quality(ones, others) == pytest.approx(1)


def test_forget_quality_depends_on_the_order_alone():
    generator = random.Random(2)
    ones, others = ([generator.uniform(0, 3) for _ in range(30)] for _ in range(2))
    squares = [[value**2 for value in values] for values in (ones, others)]
    assert forget_quality(ones, others) == forget_quality(*squares)
    assert forget_quality([value / 10 for value in ones], others) < 1e-3


def js_by_hand(ones, others):
    """Base 2, written out: square root of the entropy of the mixture less the mean entropy."""

    def shares(values):
        counts = [0] * BINS
        for value in values:
            counts[min(int(value / (1 + value) * BINS), BINS - 1)] += 1
        return [count / len(values) for count in counts]

    def entropy(parts):
        return -sum(part * math.log2(part) for part in parts if part)

    p, q = shares(ones), shares(others)
    mixture = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return 1 - math.sqrt(max(entropy(mixture) - (entropy(p) + entropy(q)) / 2, 0.0))


def test_js_similarity_by_hand():
    generator = random.Random(3)
    for size in (2, 7, 200):
        ones = [generator.uniform(0, 4) for _ in range(size)]
        others = [generator.expovariate(1) for _ in range(size + 3)]
        assert js_similarity(ones, others) == pytest.approx(js_by_hand(ones, others), abs=1e-7)


def test_js_similarity_is_symmetric_and_not_moved_by_one_outlier():
    generator = random.Random(4)
    ones, others = ([generator.uniform(low, low + 0.2) for _ in range(100)] for low in (0, 1))
    assert js_similarity(ones, others) == js_similarity(others, ones) == pytest.approx(0)
    assert js_similarity([*ones, CEILING], others) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_identical_samples_give_one(compare):
    ratios = list(np.random.default_rng(0).exponential(size=40))
    assert compare(ratios, ratios) == pytest.approx(1)
    assert compare(ratios, ratios[::-1]) == pytest.approx(1)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_fewer_than_two_ratios_are_refused(compare):
    for ones, others in (([], []), ([0.5], [0.5, 0.6]), ([0.5, 0.6], [0.5, math.nan]), ([math.nan] * 9, [0.5] * 9)):
        assert math.isnan(compare(ones, others))
    assert compare([0.5, 0.6, math.nan], [0.5, 0.6]) == pytest.approx(1), "NaN is left out"
