"""The refusals are short, fit every question, and are dealt out evenly and repeatably."""

import random
import re
import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from mmunlearn.methods.refusals import REFUSALS, refusal_for

IDS = [f"mllmu/forget_15/{number}/image" for number in range(100 * len(REFUSALS))]


def test_there_are_many_and_no_two_alike():
    assert len(REFUSALS) >= 110
    assert len({re.sub(r"\W+", " ", text).lower() for text in REFUSALS}) == len(REFUSALS)
    beginnings = Counter(" ".join(text.split()[:2]) for text in REFUSALS)
    assert max(beginnings.values()) <= len(REFUSALS) / 10, beginnings.most_common(3)


@pytest.mark.parametrize("text", REFUSALS)
def test_each_is_one_plain_sentence(text):
    assert re.fullmatch(r"[A-Z][A-Za-z ,]*\.", text)
    assert 3 <= len(text.split()) <= 16
    assert "  " not in text


@pytest.mark.parametrize("text", REFUSALS)
def test_each_fits_every_question(text):
    """Whoever and whatever it is about, with a picture or without."""
    words = text.rstrip(".").replace(",", "").split()
    unwanted = {"he", "she", "him", "her", "his", "hers", "picture", "image", "photo", "person", "he's", "ai", "model"}
    unwanted |= {"policy", "training", "trained", "language", "assistant", "company", "privacy", "forget", "forgotten"}
    assert not unwanted & {word.lower() for word in words}
    assert not [word for word in words[1:] if word[0].isupper() and word != "I"], "a name"


def test_the_same_seed_and_example_give_the_same_refusal():
    random.seed(1)
    first = [refusal_for(name, 0) for name in IDS[:200]]
    random.seed(2)
    state = random.getstate()
    assert [refusal_for(name, 0) for name in reversed(IDS[:200])] == first[::-1]
    assert random.getstate() == state
    assert refusal_for("example", 0) == refusal_for("example", 0)


def test_it_does_not_depend_on_the_process():
    """`printf 7:example | sha256sum` begins with these eight bytes."""
    assert refusal_for("example", 7) == REFUSALS[0x2E8A1173DC887344 % len(REFUSALS)]


def test_seeds_deal_them_out_differently():
    same = sum(refusal_for(name, 0) == refusal_for(name, 1) for name in IDS)
    assert same / len(IDS) == pytest.approx(1 / len(REFUSALS), rel=0.5)
    assert refusal_for("1", 11) != refusal_for("11", 1) or refusal_for("2", 11) != refusal_for("12", 1)


def test_all_are_used_about_equally_often():
    counts = Counter(refusal_for(name, 0) for name in IDS)
    assert set(counts) == set(REFUSALS)
    deviation = sum((count - 100) ** 2 / 100 for count in counts.values())  # chi-squared, one less degree of freedom
    assert deviation < len(REFUSALS) + 4 * (2 * len(REFUSALS)) ** 0.5
    assert 60 < min(counts.values()) <= max(counts.values()) < 140


def test_the_text_file_lies_in_the_package_which_ships_whole():
    assert files("mmunlearn.methods").joinpath("refusals.txt").is_file()
    settings = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = settings["targets"]["wheel"]
    assert wheel["packages"] == ["src/mmunlearn"]
    assert not {"exclude", "include", "only-include"} & (set(settings) | set(wheel))
