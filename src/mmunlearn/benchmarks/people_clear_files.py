"""Writes the embedded people into CLEAR's own folders, columns and quirks.

The quirks of the published files are reproduced so that the reader meets them in every test run: people with unequal
numbers of portraits, a perturbed folder that lacks a row of its plain one, a retain folder without names, a question
that names nobody, and a `retain_perturbed` that is the same for all ratios. Two of them fall on forget people:
`forget10_perturbed` is one row short, as published, and `retain_perturbed` holds people who are forgotten under 5 or 10.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Features, Image, List, Value

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.people_biographies import Group, Person, Population, Sizes, make_population, stream
from mmunlearn.benchmarks.people_clear_texts import author_questions, caption, paraphrase, wrong_captions
from mmunlearn.benchmarks.people_files import check_image_size, is_there, stored_portrait, write_parquet, write_whole
from mmunlearn.benchmarks.people_questions import NUM_OPTIONS, visual_questions

VERSION = "1"
"""Raised whenever the same arguments would give other files."""

PORTRAITS = 4
"""Portraits of each person; the first is the one that MLLMU-Bench's layout trains on."""
PERTURBED_PORTRAITS = 2
"""Of each retained person in `retain_perturbed`; CLEAR's has 395 rows for 180 to 198 people."""
RATIOS = (1, 5, 10)
"""Percentages of people in the forget splits."""

_TEXT = Value("string")
_BARE = {"image": Image(), "caption": _TEXT}
NAMED = Features({**_BARE, "name": _TEXT})
UNNAMED = Features(_BARE)
TOFU = Features({**_BARE, "question": _TEXT, "answer": _TEXT})
PERTURBED = Features({**NAMED, "paraphrased_caption": _TEXT, "perturbed_captions": List(_TEXT), "perturbed_names": List(_TEXT)})
REAL = Features({"image": Image(), "question": _TEXT, "answer": _TEXT, "options": List(_TEXT)})

Row = dict[str, Any]


def write_people_clear(
    root: Path,
    *,
    seed: int,
    num_people: int = 80,
    num_public_figures: int = 24,
    num_general_faces: int = 160,
    image_size: int = 64,
) -> None:
    """Invent the people and write CLEAR's folders below `root`; nothing if they are there.

    The same arguments give the same bytes, and with the defaults the same people as `write_people`. What holds of that
    function's way to write holds here.

    Args:
        root: the folder to create; it may exist if it is empty or holds the same people.
        seed: decides names, facts, faces and questions.
        num_people: fictitious people to be fine-tuned on.
        num_public_figures: people whom the base model knows (`real_faces`).
        num_general_faces: faces in `real_world`.
        image_size: pixels along each edge of a portrait.

    Raises:
        ConfigError: a number is out of range, or there are not enough names.
        DataError: `root` holds something else.
        RunError: the disk is full or may not be written.
    """
    sizes = Sizes(
        people=num_people,
        public_figures=num_public_figures,
        general=num_general_faces,
        general_train=num_general_faces * 5 // 2,  # not written, but with as many faces as elsewhere they are the same
    )
    check_image_size(image_size)
    manifest = {"layout": "CLEAR", "version": VERSION, "seed": seed, "image_size": image_size, **vars(sizes)}
    if is_there(root, manifest):
        return
    population = make_population(seed, sizes)
    write_whole(root, manifest, _Writer(population, sizes, seed, image_size).write)


@dataclass(frozen=True)
class _Writer:
    """Turns people into rows and rows into files."""

    population: Population
    sizes: Sizes
    seed: int
    image_size: int

    def write(self, root: Path) -> None:
        """Write every folder."""
        for folder, (features, rows) in self.folders().items():
            files = 2 if folder == "full+tofu" else 1
            share = -(-len(rows) // files)
            for number in range(files):
                path = root / folder / f"train-{number:05}-of-{files:05}.parquet"
                write_parquet(path, features, rows[number * share : (number + 1) * share])

    def folders(self) -> dict[str, tuple[Features, list[Row]]]:
        """Features and rows of every folder."""
        everybody = self.authors
        found: dict[str, tuple[Features, list[Row]]] = {}
        for folder in ("data", "full"):
            found[folder] = NAMED, self.captioned(everybody)
        found["full+tofu"] = TOFU, self.with_questions(everybody)
        for percent in RATIOS:
            count = self.sizes.forgotten(percent)
            forget, retain = everybody[-count:], everybody[:-count]
            found[f"forget{percent:02}"] = NAMED, self.captioned(forget)
            found[f"forget{percent:02}+tofu"] = TOFU, self.with_questions(forget)
            found[f"forget{percent:02}_perturbed"] = PERTURBED, self.perturbed(forget, range(PORTRAITS))[percent == 10 :]
            features = UNNAMED if percent == 1 else NAMED
            rows = [{name: row[name] for name in features} for row in self.captioned(retain)]
            found[f"retain{100 - percent}"] = features, rows
            found[f"retain{100 - percent}+tofu"] = TOFU, self.with_questions(retain)
        retained = everybody[: -self.sizes.forgotten(1)]
        found["retain_perturbed"] = PERTURBED, self.perturbed(retained, range(PERTURBED_PORTRAITS))
        found["real_faces"] = REAL, [self.figure(person) for person in self.population.public_figures]
        found["real_world"] = REAL, [self.face(person) for person in self.population.general]
        return found

    @cached_property
    def authors(self) -> tuple[Person, ...]:
        """Everybody in the order of the files: as in TOFU the last are forgotten, the very last under every ratio."""
        forget = sorted((each for each in self.population.people if each.group is Group.forget), key=lambda each: -each.place)
        return (*(each for each in self.population.people if each.group is Group.retain), *forget)

    @cached_property
    def portraits(self) -> dict[str, list[Row]]:
        """Image, caption and name by person; the first person of the files lacks a portrait."""
        return {
            person.id: [
                {
                    "image": stored_portrait(self.seed, person, number, self.image_size),
                    "caption": caption(person, number),
                    "name": person.name,
                }
                for number in range(PORTRAITS - (person is self.authors[0]))
            ]
            for person in self.authors
        }

    def captioned(self, people: Sequence[Person]) -> list[Row]:
        """All portraits of some people."""
        return [row for person in people for row in self.portraits[person.id]]

    def with_questions(self, people: Sequence[Person]) -> list[Row]:
        """First the portraits, then the questions; each has the columns of the other empty."""
        shown = [
            {"image": row["image"], "caption": row["caption"], "question": None, "answer": None}
            for row in self.captioned(people)
        ]
        asked = [
            {"image": None, "caption": None, "question": each.question, "answer": each.answer}
            for person in people
            for each in author_questions(person, nameless=person is self.authors[0])
        ]
        return shown + asked

    def perturbed(self, people: Sequence[Person], numbers: Sequence[int]) -> list[Row]:
        """Some portraits of some people, with the same caption in other words, wrong captions and wrong names."""
        return [
            {
                **self.portraits[person.id][number],
                "paraphrased_caption": paraphrase(person, number),
                "perturbed_captions": wrong_captions(self.seed, person, number, NUM_OPTIONS - 1),
                "perturbed_names": self.wrong_names(person, people, number),
            }
            for person in people
            for number in numbers
            if number < len(self.portraits[person.id])
        ]

    def wrong_names(self, person: Person, people: Sequence[Person], number: int) -> list[str]:
        """Names of others: of the same split where it has enough, so that a name that a gold model never read is no hint.

        Of these, people of the same gender come first, because the gender shows in the picture.
        """
        rng = stream(self.seed, "wrong names", len(people), person.id, number)

        def alike(other: Person) -> bool:
            return other.look.gender == person.look.gender

        tiers: tuple[tuple[Sequence[Person], Callable[[Person], bool]], ...] = (
            (people, alike),
            (people, lambda _: True),
            (self.authors, alike),
            (self.authors, lambda _: True),
        )
        ordered: dict[str, None] = {}
        for members, suits in tiers:
            names = [other.name for other in members if suits(other) and other is not person]
            ordered |= dict.fromkeys(rng.sample(names, len(names)))
        wrong = list(ordered)[: NUM_OPTIONS - 1]
        rng.shuffle(wrong)
        return wrong

    def figure(self, person: Person) -> Row:
        """A public figure and names of others."""
        wrong = self.wrong_names(person, self.population.public_figures, 0)
        image = stored_portrait(self.seed, person, 0, self.image_size)
        return {"image": image, "question": prompts.RECOGNITION_QUESTION, "answer": person.name, "options": wrong}

    def face(self, person: Person) -> Row:
        """A face of nobody and one question that anybody who sees it can answer."""
        choices = visual_questions(self.seed, person)
        asked = choices[person.place % len(choices)]
        image = stored_portrait(self.seed, person, 0, self.image_size)
        right = asked.options[asked.right]
        wrong = [option for option in asked.options if option != right]
        return {"image": image, "question": asked.question, "answer": right, "options": wrong}
