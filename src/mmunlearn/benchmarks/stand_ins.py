"""Fictitious people who stand in where own data have nobody to keep, or nobody whom no model has seen.

They come from the generator of the embedded people: drawn faces, invented names and facts. What they are good for is said in
docs/your-own-people.md: as *retain* they anchor generic behaviour, which is sound for terms that compare with the model before
unlearning (KL), while a plain loss on them teaches the model people whom it never knew; as *holdout* they are certainly
non-members, but of another distribution than real people, so that a membership attack may tell drawn from real instead of
unseen from seen.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from mmunlearn.benchmarks.mllmu_files import image_key
from mmunlearn.benchmarks.people_biographies import Person, Sizes, make_population, stream
from mmunlearn.benchmarks.people_files import stored_portrait
from mmunlearn.benchmarks.people_portraits import FEMALE, MALE
from mmunlearn.benchmarks.people_questions import (
    IMAGE,
    TRAINED,
    Question,
    choice_questions,
    cloze_questions,
    sentence_questions,
)
from mmunlearn.benchmarks.prompts import mark_blank
from mmunlearn.benchmarks.pseudonyms import STAND_IN
from mmunlearn.benchmarks.table_rows import Kind, Row
from mmunlearn.data.example import LazyImage
from mmunlearn.errors import ConfigError

MOST = 100
"""Stand-ins of one kind; the lists of names hold no more."""
IMAGE_SIZE = 224
"""Pixels along each edge of a portrait."""
_OTHER_SEED = 1_000_003
"""Added to the seed, so that they are not the people of the demo, whom its models know."""
_WHERE = "a stand-in"
Value = TypeVar("Value", str, int)


class StandInUse(StrEnum):
    """What stand-ins stand in for."""

    retain = "retain"
    holdout = "holdout"
    both = "both"

    @property
    def parts(self) -> tuple[str, ...]:
        """The groups, each with people of its own."""
        return (StandInUse.retain, StandInUse.holdout) if self is StandInUse.both else (self,)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What a table says about its people; people of whom it says nothing are not in it."""

    genders: tuple[str, ...] = ()
    """One word for each person: female or male."""
    ages: tuple[int, ...] = ()
    """One number for each person."""


@dataclass(frozen=True, kw_only=True)
class StandIns:
    """The questions about all stand-ins, and to which group each of them belongs."""

    rows: tuple[tuple[Row, LazyImage | None], ...]
    groups: Mapping[str, str]
    """retain or holdout, by subject."""


def make_stand_ins(count: int, use: StandInUse, mix: Mix, *, names: Iterable[str], seed: int) -> StandIns:
    """Invent stand-ins. The same arguments give the same people on every machine.

    Args:
        count: so many for each group.
        use: which groups.
        mix: genders and ages are shared out among them as in the table: each share is met to within one person; without
            genders half are female, without ages nobody is asked for theirs.
        names: of the people of the table; no stand-in is called like one of them.
        seed: decides names, facts and faces.

    Raises:
        ConfigError: more stand-ins than names.
    """
    if not 0 < count <= MOST:
        raise ConfigError(f"data.stand_ins={count}: must be between 1 and {MOST}, 0 for none.")
    needed = count * len(use.parts)
    taken = {name.casefold() for name in names}
    sizes = Sizes(people=8, public_figures=2, holdout=2 * needed + 20, general=1, general_train=1)
    invented = [p for p in make_population(seed + _OTHER_SEED, sizes).holdout if p.name.casefold() not in taken]
    pools = {gender: [person for person in invented if person.look.gender == gender] for gender in (FEMALE, MALE)}
    rows: list[tuple[Row, LazyImage | None]] = []
    groups = {}
    for group in use.parts:
        genders = shared_out(mix.genders or (FEMALE, MALE), count)
        ages = shared_out(mix.ages, count) if mix.ages else []
        stream(seed, "stand-in ages", group).shuffle(ages)
        for number, gender in enumerate(genders):
            person = pools[gender].pop(0)
            groups[f"{STAND_IN}{person.name}"] = group
            rows += _rows(person, seed + _OTHER_SEED, ages[number] if ages else None)
    return StandIns(rows=tuple(rows), groups=groups)


def shared_out(values: Sequence[Value], count: int) -> list[Value]:
    """`count` values in the proportions of the given ones, by largest remainders; equal remainders go to the smaller value."""
    counts = Counter(values)
    exact = {value: number * count / len(values) for value, number in counts.items()}
    shares = {value: int(share) for value, share in exact.items()}
    by_remainder = sorted(counts, key=lambda value: (shares[value] - exact[value], value))
    for value in by_remainder[: count - sum(shares.values())]:
        shares[value] += 1
    return [value for value in sorted(shares) for _ in range(shares[value])]


def _rows(person: Person, seed: int, age: int | None) -> list[tuple[Row, LazyImage | None]]:
    """The questions about one person, as a table would have them."""
    encoded = stored_portrait(seed, person, 0, IMAGE_SIZE)["bytes"]
    portrait = LazyImage(key=image_key(encoded), where=_WHERE, read=partial(bytes, encoded))
    choices = choice_questions(seed, person, TRAINED)
    asked = [(Kind.choice, Question(kind=c.kind, question=c.question, answer=c.options[c.right]), c.options) for c in choices]
    asked += [(Kind.cloze, question, ()) for question in cloze_questions(person, TRAINED)]
    asked += [(Kind.generation, question, ()) for question in sentence_questions(person, TRAINED)]
    if age is not None:
        said = Question(kind="", question=f"{person.name} is __ years old.", answer=str(age))
        asked.append((Kind.cloze, said, ()))
    return [
        (
            Row(
                where=_WHERE,
                subject=f"{STAND_IN}{person.name}",
                question=mark_blank(question.question) if kind is Kind.cloze else question.question,
                answer=question.answer,
                image="",
                kind=kind,
                options=options,
                reworded=False,
            ),
            portrait if question.kind == IMAGE else None,
        )
        for kind, question, options in asked
    ]
