"""Probability metrics on numbers small enough to work out by hand."""

import math

import pytest

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics import probability

EXAMPLE = Example(id="q", question="Where?", answer="Oslo", choices=("Bergen", "Oslo", "Paris"))


def prediction(**fields):
    return Prediction(id="q", prompt="", text="", **fields)


def test_answer_probability_is_the_geometric_mean():
    logs = tuple(math.log(p) for p in (0.5, 0.25, 0.125))
    assert probability.answer_probability(prediction(answer_log_probs=logs)) == pytest.approx((0.5 * 0.25 * 0.125) ** (1 / 3))
    assert probability.answer_probability(prediction(answer_log_probs=(0.0,))) == 1.0


def test_what_was_not_recorded_is_nan():
    assert math.isnan(probability.answer_probability(prediction()))
    for choice in (
        probability.option_letter_accuracy,
        probability.option_text_accuracy,
        probability.option_probability,
    ):
        assert math.isnan(choice(prediction(), EXAMPLE))


@pytest.mark.parametrize(
    ("letters", "expected"),
    [((0.2, 0.5, 0.3), 1.0), ((0.5, 0.2, 0.3), 0.0), ((0.4, 0.4, 0.2), 0.5), ((1 / 3, 1 / 3, 1 / 3), 1 / 3)],
)
def test_option_letter_accuracy_shares_ties(letters, expected):
    assert probability.option_letter_accuracy(prediction(option_letter_probabilities=letters), EXAMPLE) == expected


def test_option_text_accuracy_compares_means_not_sums():
    by_sum = prediction(option_log_likelihoods=(-3.0, -4.0, -5.0), option_tokens=(1, 4, 1))
    assert probability.option_text_accuracy(by_sum, EXAMPLE) == 1.0
    tie = prediction(option_log_likelihoods=(-1.0, -2.0, -9.0), option_tokens=(1, 2, 1))
    assert probability.option_text_accuracy(tie, EXAMPLE) == 0.5


def test_option_probability():
    two = prediction(option_log_likelihoods=(math.log(0.1), 2 * math.log(0.3), math.log(0.2)), option_tokens=(1, 2, 1))
    assert probability.option_probability(two, EXAMPLE) == pytest.approx(0.3 / 0.6)
    far = prediction(option_log_likelihoods=(-2000.0, -1000.0, -3000.0), option_tokens=(1, 1, 1))
    assert probability.option_probability(far, EXAMPLE) == pytest.approx(1.0)  # no underflow to 0 / 0


@pytest.mark.parametrize("letters", [(0.5, 0.5), (math.nan, 0.5, 0.5)])
def test_numbers_that_do_not_fit_the_options_are_nan(letters):
    assert math.isnan(probability.option_letter_accuracy(prediction(option_letter_probabilities=letters), EXAMPLE))


def test_an_answer_that_is_no_option_is_nan():
    stray = Example(id="q", question="Where?", answer="Rome", choices=EXAMPLE.choices)
    assert math.isnan(probability.option_letter_accuracy(prediction(option_letter_probabilities=(0.2, 0.5, 0.3)), stray))
