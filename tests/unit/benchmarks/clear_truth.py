"""Who each row of the generated CLEAR folders is about, worked out from the population and not from what was written."""

from functools import cache

from mmunlearn.benchmarks.people_biographies import Group, Sizes, make_population, stream
from mmunlearn.benchmarks.people_portraits import portrait

CLEAR_SIZES = {"num_people": 40, "num_public_figures": 5, "num_general_faces": 4, "image_size": 32}
PEOPLE_PER_RATIO = {"1": 1, "5": 2, "10": 4}  # of 40
FILE = "train-00000-of-00001.parquet"


@cache
def truth():
    """The population behind the small files."""
    return make_population(0, Sizes(people=40, public_figures=5, general=4, general_train=10))


@cache
def person_by_portrait():
    """Names by the encoded bytes of every portrait."""
    return {
        portrait(person.look, stream(0, "portrait", person.group, person.place, number), 32): person.name
        for person in truth().people
        for number in range(4)
    }


def person_by_text(text):
    """The person whose surname a text contains, else the one to whom three facts in it apply."""
    words = set(text.replace(".", " ").replace(",", " ").replace("?", " ").replace("'", " ").split())
    named = [person.name for person in truth().people if person.name.split()[1] in words]
    fitting = [person.name for person in truth().people if sum(value in words for value in person.facts.values()) >= 3]
    found = set(named or fitting)
    assert len(found) == 1, text
    return found.pop()


def forgotten(ratio):
    """The names of those who are forgotten under a ratio: the first of the forget group by place."""
    group = sorted((person for person in truth().people if person.group is Group.forget), key=lambda person: person.place)
    return {person.name for person in group[: PEOPLE_PER_RATIO[ratio]]}
