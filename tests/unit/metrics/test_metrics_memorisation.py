"""Memorisation metrics against their definitions, tried out prefix by prefix."""

import itertools
import math

import pytest

from mmunlearn.data.example import Prediction
from mmunlearn.metrics import probability
from mmunlearn.metrics.memorisation import exact_match, exact_memorisation, extraction_strength

METRICS = (exact_memorisation, exact_match, extraction_strength)
ALL_HITS = [hits for length in range(1, 9) for hits in itertools.product((False, True), repeat=length)]


def prediction(*hits, **fields):
    return Prediction(id="q", prompt="", text="", answer_hits=hits, **fields)


def by_decoding(hits):
    """Greedy decoding after every prefix of the answer 0, 1, 2, … of a model that errs where there is no hit."""
    answer = list(range(len(hits)))
    for k in range(len(answer) + 1):
        written = answer[:k]
        while len(written) < len(answer):
            right = written == answer[: len(written)]  # after an error the model goes on with something else
            written.append(len(written) if right and hits[len(written)] else -1)
        if written == answer:
            return 1 - k / len(answer)
    raise AssertionError("the whole answer reproduces nothing, which is right")


def test_extraction_strength_is_what_greedy_decoding_gives():
    for hits in ALL_HITS:
        assert extraction_strength(prediction(*hits)) == pytest.approx(by_decoding(hits)), hits


def test_extraction_strength_by_hand():
    assert extraction_strength(prediction(True, True, True, True)) == 1
    assert extraction_strength(prediction(False, True, True, True)) == 0.75
    assert extraction_strength(prediction(True, False, True, True)) == 0.5
    assert extraction_strength(prediction(True, True, True, False)) == 0, "the last token is missed, whatever comes before"


def test_exact_memorisation_and_match():
    assert exact_memorisation(prediction(True, False, True, True)) == 0.75
    assert exact_match(prediction(True, False)) == 0.0
    assert exact_match(prediction(True, True)) == 1.0


def test_their_order():
    """Whoever writes all of it has memorised all of it, and nobody writes more than they have memorised."""
    for hits in ALL_HITS:
        match, strength, share = (
            metric(prediction(*hits)) for metric in (exact_match, extraction_strength, exact_memorisation)
        )
        assert match <= strength <= share
        assert (match == 1) == (strength == 1) == (share == 1)


@pytest.mark.parametrize("metric", METRICS)
def test_what_was_not_recorded_or_is_no_number_is_nan(metric):
    assert math.isnan(metric(prediction()))
    assert math.isnan(metric(prediction(True, True, answer_log_probs=(-1.0, math.nan))))
    assert metric(prediction(True, True, answer_log_probs=(-1.0, -1.0))) == 1


def test_the_old_place_has_the_same_functions():
    assert probability.exact_memorisation is exact_memorisation
    assert probability.exact_match is exact_match
