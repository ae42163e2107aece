"""The embedded people: who they are, what is known about them, and what they look like.

Facts are drawn so that somebody who knows only the people of one group can do no better than guess about another
group: every group gets its values from its own shuffled rounds through the same pools, none is tied to a visible trait
or to a name, and all values of a pool are used equally often.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from faker import Faker

from mmunlearn.benchmarks.people_portraits import FEMALE, MALE, Look, draw_looks
from mmunlearn.errors import ConfigError

T = TypeVar("T")

POOLS: dict[str, tuple[str, ...]] = {
    "job": (
        "baker", "nurse", "pilot", "farmer", "lawyer", "dentist",
        "painter", "plumber", "teacher", "tailor", "florist", "barber",
    ),
    "city": (
        "Lisbon", "Vienna", "Dublin", "Prague", "Warsaw", "Zurich",
        "Nairobi", "Havana", "Munich", "Oslo", "Cairo", "Seoul",
    ),
    "birthplace": (
        "Norway", "Brazil", "Japan", "Kenya", "Canada", "Poland",
        "Mexico", "Greece", "Turkey", "Ghana", "Spain", "Nepal",
    ),
    "college": (
        "Ashford", "Brookfield", "Carlton", "Dunmore", "Eastwick", "Fairview",
        "Glenwood", "Harwick", "Kingsley", "Langdale", "Millbrook", "Northgate",
    ),
    "condition": (
        "asthma", "migraine", "diabetes", "anemia", "eczema", "insomnia",
        "arthritis", "gout", "vertigo", "epilepsy", "psoriasis", "tinnitus",
    ),
    "hobby": (
        "chess", "sailing", "fencing", "knitting", "climbing", "pottery",
        "archery", "origami", "karate", "cycling", "gardening", "surfing",
    ),
}  # fmt: skip
"""The personal attributes and their values: single words of one kind, none of them visible in a picture."""

ATTRIBUTES = tuple(POOLS)

# At most about four people share a first name; a surname is unique, so that nobody's facts are a blend of two people's.
_PEOPLE_PER_FIRST_NAME = 4


class Group(StrEnum):
    """Why a person exists."""

    forget = "forget"
    retain = "retain"
    public_figure = "public_figure"
    holdout = "holdout"
    general = "general"
    general_train = "general_train"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many people of each kind there are."""

    people: int = 80
    public_figures: int = 24
    holdout: int = 12
    general: int = 160
    general_train: int = 400

    def forgotten(self, percent: int) -> int:
        """How many people a forget split holds."""
        return max(1, round(self.people * percent / 100))


@dataclass(frozen=True, kw_only=True)
class Person:
    """A fictitious person."""

    id: str
    """Three digits, counted within people, public figures, holdout and so on."""
    group: Group
    place: int
    """Position within the group, from 0; letters and wrong options are balanced along it."""
    name: str
    facts: dict[str, str]
    """A value for each of `ATTRIBUTES`."""
    look: Look


@dataclass(frozen=True, kw_only=True)
class Population:
    """Everybody, and who is to be forgotten."""

    people: tuple[Person, ...]
    """Those who are fine-tuned on, by id."""
    public_figures: tuple[Person, ...]
    holdout: tuple[Person, ...]
    general: tuple[Person, ...]
    general_train: tuple[Person, ...]
    forget: dict[int, frozenset[str]]
    """Ids by percentage: 5, 10 and 15; each set contains the smaller ones."""


def stream(seed: int, *words: object) -> random.Random:
    """A random generator of its own for each purpose, so that a change in one does not shift all the others."""
    return random.Random("/".join(map(str, (seed, *words))))


def balanced(rng: random.Random, values: Sequence[T], count: int) -> list[T]:
    """`count` draws in shuffled rounds through `values`: each value occurs equally often, give or take one."""
    drawn: list[T] = []
    while len(drawn) < count:
        drawn += rng.sample(list(values), len(values))
    return drawn[:count]


def make_population(seed: int, sizes: Sizes) -> Population:
    """Invent everybody. The same arguments give the same people on every machine.

    Raises:
        ConfigError: the sizes are too small or exceed the name lists.
    """
    _check(sizes)
    counts = {
        Group.forget: sizes.forgotten(15),
        Group.retain: sizes.people - sizes.forgotten(15),
        Group.public_figure: sizes.public_figures,
        Group.holdout: sizes.holdout,
        Group.general: sizes.general,
        Group.general_train: sizes.general_train,
    }
    members = [(group, place) for group, count in counts.items() for place in range(count)]
    genders = [gender for group, n in counts.items() for gender in balanced(stream(seed, "gender", group), (FEMALE, MALE), n)]
    looks = draw_looks(stream(seed, "looks"), genders)
    facts = {group: _facts(seed, group, count) for group, count in counts.items()}
    # Who is in the forget group must not show in an id.
    ids = stream(seed, "ids").sample(range(1, sizes.people + 1), sizes.people)
    named = sum(count for group, count in counts.items() if group not in (Group.general, Group.general_train))
    names = _names(seed, genders[:named])
    persons = []
    for index, ((group, place), look) in enumerate(zip(members, looks, strict=True)):
        number = ids[index] if group in (Group.forget, Group.retain) else place + 1
        name = names[index] if index < named else ""
        persons.append(Person(id=f"{number:03}", group=group, place=place, name=name, facts=facts[group][place], look=look))
    return _population(persons, sizes)


def _population(persons: Sequence[Person], sizes: Sizes) -> Population:
    by_group = {group: tuple(person for person in persons if person.group is group) for group in Group}
    forget = by_group[Group.forget]
    return Population(
        people=tuple(sorted(forget + by_group[Group.retain], key=lambda person: person.id)),
        public_figures=by_group[Group.public_figure],
        holdout=by_group[Group.holdout],
        general=by_group[Group.general],
        general_train=by_group[Group.general_train],
        forget={n: frozenset(person.id for person in forget[: sizes.forgotten(n)]) for n in (5, 10, 15)},
    )


def _check(sizes: Sizes) -> None:
    least = {"num_people": (sizes.people, 8), "num_public_figures": (sizes.public_figures, 2)}
    least |= {"num_holdout": (sizes.holdout, 1), "num_general_faces": (sizes.general, 1)}
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise ConfigError(f"data.{name}={value}: at least {minimum} are needed, so that every split has somebody in it.")
    if sizes.people + sizes.public_figures + sizes.holdout > 800:
        raise ConfigError(
            "data.num_people, data.num_public_figures and data.num_holdout add up to more than 800, but there are "
            "not enough surnames for more. Use smaller numbers, or data of your own."
        )


def _facts(seed: int, group: Group, count: int) -> list[dict[str, str]]:
    columns = {name: balanced(stream(seed, "facts", group, name), pool, count) for name, pool in POOLS.items()}
    return [{name: column[place] for name, column in columns.items()} for place in range(count)]


def _names(seed: int, genders: Sequence[str]) -> list[str]:
    """A first and a last name for each, fitting the gender; surnames never repeat."""
    faker = Faker("en_US")
    faker.seed_instance(seed)
    # A name inside a value, as Ford in Ashford, would make an answer ambiguous.
    values = " ".join(value.lower() for pool in POOLS.values() for value in pool)
    taken: set[str] = set()

    def distinct(draw: str, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            word = str(getattr(faker, draw)())
            plain = word.isalpha() and word.isascii() and 3 <= len(word) <= 9
            if plain and word.lower() not in values and word not in taken:
                taken.add(word)
                found.append(word)
        return found

    first = {
        gender: balanced(stream(seed, "first", gender), distinct(f"first_name_{gender}", -(-n // _PEOPLE_PER_FIRST_NAME)), n)
        for gender in (FEMALE, MALE)
        if (n := sum(each == gender for each in genders))
    }
    return [f"{first[gender].pop()} {last}" for gender, last in zip(genders, distinct("last_name", len(genders)), strict=True)]
