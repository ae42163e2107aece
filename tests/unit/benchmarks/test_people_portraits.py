import io
import random
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from PIL import Image

from mmunlearn.benchmarks import people_portraits as portraits
from mmunlearn.benchmarks.people_portraits import FEMALE, MALE, Look, _drawn, draw_looks, portrait

PLAIN = Look(
    gender=MALE, hair_style="FRO", hair_color="red", skin="tan", eyewear="nothing", facial_hair="nothing",
    clothing="HOODIE", clothing_color="blue",
)  # fmt: skip


def pixels(look, number=0, size=64):
    with Image.open(io.BytesIO(portrait(look, random.Random(number), size))) as image:
        assert (image.mode, image.size) == ("RGB", (size, size))
        return np.asarray(image).astype(float)


def difference(first, second):
    return np.abs(pixels(first) - pixels(second)).mean()


@pytest.mark.parametrize("size", [16, 64, 100])
def test_square_rgb_without_transparent_parts(size):
    assert pixels(PLAIN, size=size).shape == (size, size, 3)


def test_same_bytes_for_the_same_random_numbers():
    first = portrait(PLAIN, random.Random(1), 64)
    _drawn.cache_clear()  # what was drawn before is kept
    assert portrait(PLAIN, random.Random(1), 64) == first
    assert portrait(PLAIN, random.Random(1), 64) != portrait(PLAIN, random.Random(2), 64)


@pytest.mark.parametrize("gender", [FEMALE, MALE])
def test_every_hair_style_shows_its_colour_and_differs_from_the_others(gender):
    looks = [replace(PLAIN, gender=gender, hair_style=style) for style in portraits.HAIR_STYLES[gender]]
    assert all(difference(look, replace(look, hair_color="white")) > 1 for look in looks)
    assert all(difference(first, second) > 1 for first, second in combinations(looks, 2))


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("hair_color", portraits.HAIR_COLORS), ("skin", portraits.SKIN_COLORS), ("eyewear", portraits.EYEWEAR),
        ("facial_hair", portraits.FACIAL_HAIR), ("clothing_color", portraits.CLOTHING_COLORS),
    ],
)  # fmt: skip
def test_every_value_of_a_trait_is_visible(trait, values):
    looks = [replace(PLAIN, **{trait: value}) for value in values]
    assert all(difference(first, second) > 0.3 for first, second in combinations(looks, 2))


def test_everybody_looks_different():
    looks = draw_looks(random.Random(0), [FEMALE, MALE] * 66)
    closest = min(first.distance(second) for first, second in combinations(looks, 2))
    assert closest >= 3
    assert all(look.facial_hair == "nothing" for look in looks if look.gender == FEMALE)


def test_portraits_of_one_person_are_closer_than_those_of_others():
    looks = draw_looks(random.Random(0), [FEMALE, MALE] * 6)
    # Colour counts of the middle of the picture ignore framing: a crude stand-in for recognising somebody.
    counts = {
        (person, number): np.histogramdd(pixels(look, number).reshape(-1, 3), bins=4, range=[(0, 256)] * 3)[0].ravel()
        for person, look in enumerate(looks)
        for number in (1, 2)
    }
    right = 0
    for person in range(len(looks)):
        distances = [np.abs(counts[person, 1] - counts[other, 2]).sum() for other in range(len(looks))]
        right += int(np.argmin(distances)) == person
    assert right >= 9
    assert all(counts[a, 1].tolist() != counts[b, 1].tolist() for a, b in pairwise(range(len(looks))))
