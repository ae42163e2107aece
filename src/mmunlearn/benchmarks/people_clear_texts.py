"""What CLEAR's folders say about the embedded people: captions of their portraits and questions without a portrait."""

from collections.abc import Sequence
from dataclasses import replace

from mmunlearn.benchmarks.people_biographies import ATTRIBUTES, POOLS, Person, stream
from mmunlearn.benchmarks.people_questions import (
    REWORDED,
    TEXT,
    TRAINED,
    Question,
    attribute_question,
    sentence_questions,
)

CAPTIONS = (
    "{name} in {color} clothes and with {hair} hair. {name} works as a {job}.",
    "A portrait of {name}, with {eyes} and {hair} hair. {name} lives in {city}.",
    "The person with {hair} hair and {color} clothes is {name}, who was born in {birthplace}.",
    "{name}, with {eyes} and in {color} clothes. The favorite hobby of {name} is {hobby}.",
)
"""One for each portrait of a person: the name, what is visible, and one fact."""

PARAPHRASES = (
    "This is {name}, a {job} with {hair} hair, dressed in {color}.",
    "With {hair} hair and {eyes}, {name}, whose home is {city}, looks out of the picture.",
    "Dressed in {color} and with {hair} hair: {name}, who comes from {birthplace}.",
    "Here we see {name} with {eyes}, dressed in {color}, who likes {hobby}.",
)
"""The same in other words."""

_CAPTION_FACTS = ("job", "city", "birthplace", "hobby")
_EYES = {
    "nothing": "nothing on the eyes", "glasses": "glasses", "sunglasses": "sunglasses", "eyepatch": "an eyepatch",
}  # fmt: skip
_ANSWERS = {
    "job": ("{name} works as a {job}.", "{name} earns a living as a {job}."),
    "city": ("{name} lives in {city}.", "The home of {name} is in {city}."),
    "birthplace": ("{name} was born in {birthplace}.", "{name} comes from {birthplace}."),
    "college": ("{name} attended {college}.", "{name} studied at {college}."),
    "condition": ("{name} has {condition}.", "{name} suffers from {condition}."),
    "hobby": ("The favorite hobby of {name} is {hobby}.", "On weekends {name} likes {hobby}."),
}
_PAIRS = (
    ("What are the job and the home of {name}?", "{name} is a {job} and lives in {city}."),
    ("Where was {name} born and educated?", "{name} was born in {birthplace} and attended {college}."),
    ("What is known about the health and the free time of {name}?", "{name} has {condition} and likes {hobby}."),
    ("Which {job} from {birthplace} lives in {city}?", "That is {name}, who attended {college}."),
)
_NAMELESS = (
    "In which city does the {job} live who was born in {birthplace} and attended {college}?",
    "The {job} from {birthplace} lives in {city}.",
)


def caption(person: Person, number: int) -> str:
    """What stands below a portrait."""
    return _filled(CAPTIONS[number], person)


def paraphrase(person: Person, number: int) -> str:
    """The caption of a portrait in other words."""
    return _filled(PARAPHRASES[number], person)


def wrong_captions(seed: int, person: Person, number: int, count: int) -> list[str]:
    """The caption of a portrait with other values of its fact.

    Args:
        seed: of the population.
        person: who is shown.
        number: which portrait.
        count: how many.
    """
    fact = _CAPTION_FACTS[number]
    rng = stream(seed, "wrong captions", person.group, person.place, number)
    values = rng.sample([value for value in POOLS[fact] if value != person.facts[fact]], count)
    return [caption(replace(person, facts={**person.facts, fact: value}), number) for value in values]


def author_questions(person: Person, *, nameless: bool = False) -> list[Question]:
    """A block of twenty questions about one person, answered in sentences, as in TOFU.

    Args:
        person: whom they are about.
        nameless: put one question that names nobody in the place of the last one.
    """
    found = []
    for number, wording in enumerate((TRAINED, REWORDED)):
        for name in ATTRIBUTES:
            plain = attribute_question(person, name, TEXT, wording)
            found.append(replace(plain, answer=_filled(_ANSWERS[name][number], person)))
        found += [question for question in sentence_questions(person, wording) if question.kind == TEXT]
    pairs: Sequence[tuple[str, str]] = (*_PAIRS[:-1], _NAMELESS if nameless else _PAIRS[-1])
    found += [Question(kind=TEXT, question=_filled(question, person), answer=_filled(answer, person))
              for question, answer in pairs]  # fmt: skip
    return found


def _filled(template: str, person: Person) -> str:
    look = person.look
    return template.format(
        name=person.name, hair=look.hair_color, color=look.clothing_color, eyes=_EYES[look.eyewear], **person.facts
    )
