"""Utility, gaps and collapse; texts in several scripts, since a collapsed model writes anything."""

import math
import random

import pytest
from scipy import stats

from mmunlearn.metrics.utility import (
    FEWEST_TOKENS,
    collapse,
    distinct,
    gap_to_gold,
    harmonic_mean,
    model_utility,
    repetition,
    share_of_same_reply,
)

PROSE = (
    "The person was born in the old town of Quenmoor, where her father kept a small bakery near the harbour.",
    "此人出生于古老的小镇，父亲在港口附近经营一家面包店。",
    "وُلد هذا الشخص في البلدة القديمة حيث كان والده يدير مخبزًا صغيرًا قرب الميناء.",
    "Né à Orléans, élevé à Besançon; sa sœur aînée tenait une pâtisserie près du théâtre.",
    "यह व्यक्ति पुराने शहर में पैदा हुआ था और उसके पिता बंदरगाह के पास काम करते थे।",
    "Donaudampfschifffahrtsgesellschaftskapitän in Überlingen, früher Straßenbahnfahrer",
    "Great 😀 weather ☀️ and 🎂 for all 👨‍👩‍👧!",
)
CIRCLES = (
    "the the the the the the",
    "I do not know. I do not know. I do not know. I do not know.",
    "小镇小镇小镇小镇小镇小镇",
    "لا أعرف لا أعرف لا أعرف لا أعرف لا أعرف",
    "été été été été été",
    "😀😀😀😀😀😀",
    "👍🏽 👍🏽 👍🏽 👍🏽 👍🏽 👍🏽",
    "!!!!!!!!",
    "lalalalalalalalalalala",
    "नहीं नहीं नहीं नहीं नहीं",
)


def test_harmonic_mean_is_that_of_scipy():
    generator = random.Random(0)
    for size in (1, 2, 9):
        values = [generator.uniform(0.01, 1) for _ in range(size)]
        assert harmonic_mean(values) == pytest.approx(stats.hmean(values))
    assert harmonic_mean([0.5, 0.25]) == pytest.approx(1 / 3)


def test_harmonic_mean_of_special_numbers():
    assert harmonic_mean([0.9, 0.0, 0.9]) == 0
    assert math.isnan(harmonic_mean([]))
    assert math.isnan(harmonic_mean([0.5, math.nan]))
    assert math.isnan(harmonic_mean([0.0, math.nan])), "what was not scored may not hide behind a zero"
    with pytest.raises(ValueError, match=r"-0\.1"):
        harmonic_mean([0.5, -0.1])


def test_utility_names_what_it_is_missing():
    whole = model_utility({"retain probability": 0.5, "real rougeL": 0.25})
    assert (whole.value, whole.count, whole.unscored) == (pytest.approx(1 / 3), 2, ())
    broken = model_utility({"retain probability": 0.5, "real rougeL": math.nan, "real truth ratio": math.nan})
    assert math.isnan(broken.value)
    assert (broken.count, broken.unscored) == (3, ("real rougeL", "real truth ratio"))
    assert math.isnan(model_utility({}).value)


def test_gap_to_gold():
    found = gap_to_gold(0.5, [0.25, 0.3, 0.2])
    assert found.gap == pytest.approx(0.25)
    assert found.noise_floor == pytest.approx(0.1)
    assert (found.golds, found.beyond_noise) == (3, True)
    assert gap_to_gold(0.2, [0.2, 0.3]).beyond_noise is False
    assert gap_to_gold(0.0, [0.2, 0.3]).gap == pytest.approx(-0.25)
    assert gap_to_gold(0.0, [0.2, 0.3]).beyond_noise is True, "below gold counts as well"


def test_gap_without_enough_golds():
    none, one = gap_to_gold(0.5, []), gap_to_gold(0.5, [0.2, math.nan])
    assert math.isnan(none.gap)
    assert (none.golds, none.beyond_noise) == (0, None)
    assert one.gap == pytest.approx(0.3)
    assert math.isnan(one.noise_floor)
    assert (one.golds, one.beyond_noise) == (1, None)
    assert gap_to_gold(math.nan, [0.1, 0.2]).beyond_noise is None


def test_distinct_by_hand():
    assert distinct("The cat saw the dog", 1) == 0.8
    assert distinct("a b a b a", 2) == 0.5
    assert distinct("très très bien", 1) == pytest.approx(2 / 3)
    assert distinct("e\u0301te\u0301 \u00e9t\u00e9", 1) == 0.5, "one word, however its accents are written"
    assert distinct("नहीं हाँ", 1) == 1, "vowel signs do not cut words"
    assert distinct("小镇小镇", 1) == 0.5
    assert distinct("😀 😀 😎", 1) == pytest.approx(2 / 3)
    assert distinct("one", 1) == 1
    assert math.isnan(distinct("one", 2))
    assert math.isnan(distinct(" \n", 1))


@pytest.mark.parametrize("word", ["nah", "镇", "لا", "été", "😀", "!", "नहीं"])
@pytest.mark.parametrize("times", [FEWEST_TOKENS, 17])
def test_one_token_over_and_over(word, times):
    assert repetition(" ".join([word] * times)) == pytest.approx(1 - 1 / (times - 1))
    assert collapse([" ".join([word] * times), "something else"]).repetitive == 0.5


def test_repetition_of_nothing_to_repeat():
    assert [repetition(text) for text in ("", "Oslo", "New York", "镇")] == [0, 0, 0, 0]


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_not_circular(text):
    assert repetition(text) < 0.15
    assert collapse([text, "something else"]).collapsed == 0


@pytest.mark.parametrize("text", CIRCLES)
def test_circles_are_found(text):
    assert collapse([text, "something else"]).repetitive == 0.5


def test_short_answers_may_repeat_a_word():
    assert collapse(["no, no", "New York, New York", "Duran Duran", "ha ha ha"]).collapsed == 0


def test_share_of_same_reply():
    assert share_of_same_reply(["Oslo", "oslo ", "Rome", "Paris"]) == 0.5
    assert share_of_same_reply(["Café", "Cafe\u0301", "CAFÉ", "Kaffee"]) == 0.75
    assert share_of_same_reply(["STRASSE", "straße"]) == 1
    assert share_of_same_reply(["你好", "你好", "你好", "مرحبا"]) == 0.75
    assert share_of_same_reply(["", " \n"]) == 1
    assert share_of_same_reply(["a", "b", "c"]) == pytest.approx(1 / 3)
    assert math.isnan(share_of_same_reply([]))


def test_collapse_counts_each_reply_once():
    texts = ["", " ", "the the the the the", "Oslo", "Rome", "Paris", "Bern", "Kyiv"]
    found = collapse(texts)
    assert (found.count, found.empty, found.repetitive, found.same) == (8, 2 / 8, 1 / 8, 2 / 8)
    assert found.collapsed == 3 / 8
    circles = collapse(["the the the the"] * 3 + ["Oslo"])
    assert (circles.repetitive, circles.same, circles.collapsed) == (0.75, 0.75, 0.75), "circular and the same, counted once"


def test_the_same_reply_counts_from_more_than_half_on():
    assert collapse(["I cannot say."] * 3 + ["Oslo", "Rome", "Bern"]).collapsed == 0
    assert collapse(["I cannot say."] * 4 + ["Oslo", "Rome", "Bern"]).collapsed == pytest.approx(4 / 7)
    assert collapse(["Oslo"]).collapsed == 0, "one reply is always the most common one"


def test_collapse_of_no_replies_is_not_zero():
    found = collapse([])
    assert found.count == 0
    assert all(math.isnan(share) for share in (found.empty, found.repetitive, found.same, found.collapsed))
