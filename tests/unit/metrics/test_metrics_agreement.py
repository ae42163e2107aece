"""Pairs of questions about one fact, and how often both are right: against brute force and numpy's correlation."""

import math
import random

import numpy as np
import pytest

from mmunlearn.metrics.agreement import cross_modal, pair_facts, phi
from mmunlearn.metrics.statistics import clustered_interval


def test_questions_are_paired_by_person_and_answer_not_by_number():
    image = {"i0": ("a", "Oslo"), "i1": ("a", "a nurse"), "i2": ("b", "Oslo")}
    text = {"t0": ("a", "A Nurse."), "t1": ("b", "Rome"), "t2": ("a", "oslo")}
    pairs = pair_facts(image, text)
    assert set(pairs.ids) == {("i0", "t2"), ("i1", "t0")}
    assert pairs.unpaired == 2


def test_an_answer_that_occurs_twice_on_a_side_is_left_out():
    once, twice = {"i": ("a", "Oslo")}, {"t0": ("a", "Oslo"), "t1": ("a", "Oslo")}
    assert pair_facts(once, twice).ids == ()
    assert pair_facts(twice, {"x": ("a", "Oslo")}).ids == ()
    assert pair_facts(once, {**twice, "t1": ("b", "Oslo")}).ids == (("i", "t0"),)


def test_nobody_and_nothing_are_no_facts():
    assert pair_facts({"i": ("", "Oslo"), "j": ("a", "?!")}, {"t": ("", "Oslo"), "u": ("a", "!")}).ids == ()


def test_shares_against_counting():
    generator = random.Random(0)
    people = [f"p{n // 3}" for n in range(90)]
    image = [generator.choice([0.0, 1.0]) for _ in people]
    text = [generator.choice([0.0, 1.0, 1.0]) for _ in people]
    found = cross_modal(image, text, people)
    table = list(zip(image, text, strict=True))
    assert found.both_right.value == pytest.approx(table.count((1, 1)) / 90)
    assert found.image_only.value == pytest.approx(table.count((1, 0)) / 90)
    assert found.text_only.value == pytest.approx(table.count((0, 1)) / 90)
    assert found.both_wrong.value == pytest.approx(table.count((0, 0)) / 90)
    assert found.agreement.value == pytest.approx(found.both_right.value + found.both_wrong.value)
    assert found.phi == pytest.approx(np.corrcoef(image, text)[0, 1])
    assert found.agreement == clustered_interval([float(a == b) for a, b in table], people)


def test_which_modality_is_which():
    found = cross_modal([1, 1], [0, 0], ["a", "b"])
    assert (found.image_only.value, found.text_only.value) == (1, 0)


def test_a_tie_is_not_right_and_a_nan_is_unscored():
    found = cross_modal([0.5, 1.0, math.nan], [1.0, 1.0, 1.0], ["a", "b", "c"])
    assert found.text_only.value == pytest.approx(0.5)
    assert (found.agreement.count, found.agreement.unscored) == (2, 1)
    with pytest.raises(ValueError, match="zip"):
        cross_modal([1.0], [1.0, 1.0], ["a", "b"])


def test_phi_of_a_constant_side_is_not_a_number():
    assert math.isnan(phi([(True, True), (True, False)]))
    assert math.isnan(phi([]))
    assert phi([(True, True), (False, False)]) == 1
    assert phi([(True, False), (False, True)]) == -1
