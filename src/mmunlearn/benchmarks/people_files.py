"""Writes the embedded people into MLLMU-Bench's own folders, columns and quirks.

The quirks of the published files are reproduced so that the reader meets them in every test run: biography keys spelt
in several ways, a dictionary of parents, a profile without its image questions, a celebrity with one question more.
They fall on retained people and public figures, never on forget people, whose small number makes each question count.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from mmunlearn.benchmarks.people_biographies import Group, Person, Population, Sizes, make_population, stream
from mmunlearn.benchmarks.people_portraits import portrait
from mmunlearn.benchmarks.people_questions import (
    IMAGE,
    REWORDED,
    TEXT,
    TRAINED,
    Choice,
    Question,
    Wording,
    choice_questions,
    cloze_questions,
    figure_questions,
    other_portrait_questions,
    sentence_questions,
    training_questions,
    visual_questions,
)
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.run import explain_disk_errors, write_json

VERSION = "2"
"""Raised whenever the same arguments would give other files."""

BENCHMARK_FOLDER, TRAIN_FOLDER = "MLLMU-Bench", "baseline_train_split"
MANIFEST = "people.json"
OTHER_PORTRAITS = 3
"""Portraits of each person in Test_Set, besides the one that is trained on."""

_TEXT = Value("string")
_CHOICE = {"Correct_Answer": _TEXT, "Options": dict.fromkeys("ABCD", _TEXT), "Question": _TEXT}
_ITEM = {"Ground_Truth": _TEXT, "Question": _TEXT, "Type": _TEXT}
_TASKS = {
    "biography": _TEXT,
    "question": _TEXT,
    "answer": _TEXT,
    "Classification_Task": {"Image_Textual_Questions": List(_CHOICE), "Pure_Text_Questions": List(_CHOICE)},
    "Generation_Task": List(_ITEM),
    "Mask_Task": List(_ITEM),
}
FULL = Features({"image": Image(), "ID": _TEXT, "Directory": _TEXT, **_TASKS})
SHARED = Features({"image": Image(), "ID": _TEXT, **_TASKS})
TEST = Features({"images": List(Image()), "ID": _TEXT, **_TASKS})
TRAIN = Features({"image": Image(), "ID": _TEXT, "metadata": _TEXT})

_EDUCATION = ("Educated at", "Educated at:")
_SALARY = ("Annual Salary", "Annual Salary:", "Annual Salary: ")
_HEIGHT = ("Height", "Heights")

MAX_OPTION_DRAWS = 10

Row = dict[str, Any]


def write_people(
    root: Path,
    *,
    seed: int,
    num_people: int = 80,
    num_public_figures: int = 24,
    num_holdout: int = 12,
    num_general_faces: int = 160,
    image_size: int = 64,
    option_draws: int = 1,
) -> None:
    """Invent the people and write `MLLMU-Bench/` and `baseline_train_split/` below `root`; nothing if they are there.

    The same arguments give the same bytes. Everything is written beside `root` and moved into place at the end, so that
    a killed process leaves no half-written `root`, and of several processes that start at once the first one wins.

    Args:
        root: the folder to create; it may exist if it is empty or holds the same people.
        seed: decides names, facts, faces and questions.
        num_people: fictitious people to be fine-tuned on; 15 % of them are the largest forget set.
        num_public_figures: people whom the base model knows (`Retain_Set`).
        num_holdout: people nobody trains on (`Holdout_Set`).
        num_general_faces: faces in `General_Set`; `General_Train` holds two and a half times as many others.
        image_size: pixels along each edge of a portrait.
        option_draws: how often each multiple-choice question is asked, each time with other wrong options.

    Raises:
        ConfigError: a number is out of range, or there are not enough names.
        DataError: `root` holds something else.
        RunError: the disk is full or may not be written.
    """
    sizes = Sizes(
        people=num_people,
        public_figures=num_public_figures,
        holdout=num_holdout,
        general=num_general_faces,
        general_train=num_general_faces * 5 // 2,
    )
    check_image_size(image_size)
    if not 1 <= option_draws <= MAX_OPTION_DRAWS:
        raise ConfigError(f"data.option_draws={option_draws}: must be between 1 and {MAX_OPTION_DRAWS}.")
    manifest = {"version": VERSION, "seed": seed, "image_size": image_size, **vars(sizes)}
    if option_draws > 1:
        manifest["option_draws"] = option_draws
    if is_there(root, manifest):
        return
    population = make_population(seed, sizes)
    write_whole(root, manifest, lambda folder: _Writer(folder, seed, image_size, option_draws).write(population))


def check_image_size(image_size: int) -> None:
    """Make sure that portraits can be drawn.

    Raises:
        ConfigError: too small to show anything, or too large.
    """
    if not 16 <= image_size <= 1024:
        raise ConfigError(f"data.image_size={image_size}: must be between 16 and 1024 pixels.")


def write_whole(root: Path, manifest: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Write a folder beside `root` and move it into place, so that a killed process leaves no half-written `root`.

    Args:
        root: the folder to create.
        manifest: what decides the content; kept in the folder.
        write: fills a given empty folder.

    Raises:
        RunError: the disk is full or may not be written.
    """
    with explain_disk_errors(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            write(temporary)
            write_json(temporary / MANIFEST, manifest)
            temporary.chmod(0o755)
            _move(temporary, root, manifest)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def is_there(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether `root` already holds these very people.

    Raises:
        DataError: it holds something else, which must not be overwritten.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == manifest:
        return True
    what = "people generated with other settings or by another version" if found else "something else or half of a copy"
    raise DataError(f"{root}: holds {what}, so the embedded people are not written there. Delete it or set data.root.")


def _move(temporary: Path, root: Path, manifest: dict[str, Any]) -> None:
    try:
        os.replace(temporary, root)
    except OSError:
        # Another process was faster: its files are the same as ours if its manifest is.
        if not is_there(root, manifest):
            raise


class _Writer:
    """Turns people into rows and rows into files."""

    def __init__(self, root: Path, seed: int, image_size: int, option_draws: int) -> None:
        self.root, self.seed, self.image_size, self.option_draws = root, seed, image_size, option_draws

    def write(self, population: Population) -> None:
        """Write every folder of both repositories."""
        people, everybody = population.people, frozenset(person.id for person in population.people)
        blind = max(everybody - population.forget[15])  # the profile that lacks its image questions
        rows = {person.id: self.profile(person, TRAINED, without_images=person.id == blind) for person in people}
        full = [{**row, "Directory": f"full_images/{row['ID']}.png"} for row in rows.values()]
        self.dataset("Full_Set", FULL, full)
        tests = [self.other_portraits(person, rows[person.id]) for person in people]
        self.dataset("Test_Set", TEST, tests, files=2)
        self.dataset("Reworded_Set", SHARED, [self.profile(person, REWORDED) for person in people])
        figures = [self.profile(person, TRAINED) for person in population.public_figures]
        one_more = choice_questions(self.seed, population.public_figures[-1], REWORDED)[0]
        figures[-1]["Classification_Task"]["Image_Textual_Questions"].append(one_more.item())
        self.dataset("Retain_Set", SHARED, figures)
        self.dataset("Holdout_Set", SHARED, [self.profile(person, TRAINED) for person in population.holdout])
        self.dataset("General_Set", SHARED, [self.face(person) for person in population.general])
        training = {person.id: self.training(person, training_questions(person)) for person in people}
        self.dataset("ft_Data", TRAIN, list(training.values()))
        for percent, forget in population.forget.items():
            for folder, members in ((f"forget_{percent}", forget), (f"retain_{100 - percent}", everybody - forget)):
                self.dataset(folder, SHARED, [rows[each] for each in sorted(members)])
                self.train_split(folder, [training[each] for each in sorted(members)])
        self.train_split("public_figures", list(self.figures(population.public_figures)))
        self.train_split("General_Train", [self.looked_at(person) for person in population.general_train])

    def dataset(self, folder: str, features: Features, rows: Sequence[Row], files: int = 1) -> None:
        """Write a folder of the data set repository."""
        share = -(-len(rows) // files)
        for number in range(files):
            path = self.root / BENCHMARK_FOLDER / folder / f"train-{number:05}-of-{files:05}.parquet"
            write_parquet(path, features, rows[number * share : (number + 1) * share])

    def train_split(self, folder: str, rows: Sequence[Row]) -> None:
        """Write a folder of the train-split repository."""
        write_parquet(self.root / TRAIN_FOLDER / folder / "train-00000-of-00001.parquet", TRAIN, rows)

    def image(self, person: Person, number: int = 0) -> Row:
        """A portrait as the hub stores it; number 0 is the one that is trained on."""
        return stored_portrait(self.seed, person, number, self.image_size)

    def profile(self, person: Person, wording: Wording, *, without_images: bool = False) -> Row:
        """A row with all evaluation questions in one wording."""
        choices = choice_questions(self.seed, person, wording, self.option_draws)
        sentences = sentence_questions(person, wording)
        return {
            "image": self.image(person),
            "ID": person.id,
            "biography": biography(self.seed, person),
            "question": sentences[0].question,
            "answer": sentences[0].answer,
            "Classification_Task": {
                "Image_Textual_Questions": [] if without_images else _items(choices, IMAGE),
                "Pure_Text_Questions": _items(choices, TEXT),
            },
            "Generation_Task": [sentence.item() for sentence in sentences],
            "Mask_Task": [cloze.item() for cloze in cloze_questions(person, wording)],
        }

    def other_portraits(self, person: Person, row: Row) -> Row:
        """The row with further portraits instead of the one that is trained on."""
        images = [self.image(person, number) for number in range(1, OTHER_PORTRAITS + 1)]
        return {"images": images, **{name: value for name, value in row.items() if name != "image"}}

    def face(self, person: Person) -> Row:
        """A row with visual questions only."""
        choices = visual_questions(self.seed, person)
        return {
            "image": self.image(person),
            "ID": person.id,
            "biography": json.dumps({"appearance_detail": _appearance(person)}),
            "question": choices[0].question,
            "answer": choices[0].options[choices[0].right],
            "Classification_Task": {"Image_Textual_Questions": _items(choices, IMAGE), "Pure_Text_Questions": []},
            "Generation_Task": [],
            "Mask_Task": [],
        }

    def training(self, person: Person, questions: Iterable[Question], number: int = 0) -> Row:
        """A row of the train splits; portraits after the first get ids of their own, because an id has one row."""
        metadata = json.dumps([question.training(person) for question in questions], ensure_ascii=False)
        name = person.id if number == 0 else f"{person.id}-{number}"
        return {"image": self.image(person, number), "ID": name, "metadata": metadata}

    def figures(self, people: Sequence[Person]) -> Iterable[Row]:
        """What the base model learns about public figures: all formats, and two further portraits."""
        for person in people:
            yield self.training(person, figure_questions(self.seed, person))
            for number in (1, 2):
                yield self.training(person, other_portrait_questions(person, number), number)

    def looked_at(self, person: Person) -> Row:
        """Visual questions for training: each one plain and one of them with lettered options."""
        choices = visual_questions(self.seed, person)
        plain = [Question(kind=IMAGE, question=each.question, answer=each.options[each.right]) for each in choices]
        return self.training(person, [*plain, choices[person.place % len(choices)].listed()])


def stored_portrait(seed: int, person: Person, number: int, image_size: int) -> Row:
    """One portrait of a person as the hub stores it.

    Args:
        seed: of the population.
        person: who is shown.
        number: which of the person's portraits, from 0.
        image_size: pixels along each edge.
    """
    rng = stream(seed, "portrait", person.group, person.place, number)
    name = f"{person.id}.png" if number == 0 else f"{person.id}_pose{number}_gen1.png"
    return {"bytes": portrait(person.look, rng, image_size), "path": name}


def biography(seed: int, person: Person) -> str:
    """The profile as a JSON string, its keys spelt in the several ways of the published files."""
    rng = stream(seed, "biography", person.group, person.place)
    quirk = 0 if person.group is Group.forget else person.place
    surname = person.name.split()[-1]
    parents: Any = f"Parents called {surname}"
    if quirk % 2:
        parents = {"Father": f"A man called {surname}", "Mother": f"A woman called {surname}"}
    facts = person.facts
    profile = {
        "Name": person.name,
        "Born": facts["birthplace"],
        "Date of Birth": f"{rng.randint(1950, 2002)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        "Gender": person.look.gender.capitalize(),
        "Employment": facts["job"],
        _HEIGHT[quirk % len(_HEIGHT)]: f"{rng.randint(150, 199)} cm",
        _EDUCATION[quirk % len(_EDUCATION)]: facts["college"],
        _SALARY[quirk % len(_SALARY)]: f"${rng.randint(20, 180)},000",
        "Residence": facts["city"],
        "Medical Conditions": facts["condition"],
        "Parents": parents,
        "Fun Facts": [f"Likes {facts['hobby']}"],
        "appearance_detail": _appearance(person),
    }
    return json.dumps(profile, ensure_ascii=False)


def _appearance(person: Person) -> Row:
    look = person.look
    return {
        "question": "What does the person in the image look like?",
        "answer": f"{look.hair_color} hair, {look.clothing_color} clothes, {look.eyewear} on the eyes.",
        **vars(look),
    }


def _items(choices: Iterable[Choice], kind: str) -> list[Row]:
    return [choice.item() for choice in choices if choice.kind == kind]


def write_parquet(path: Path, features: Features, rows: Sequence[Row]) -> None:
    """Write rows with the hub's feature types."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The schema carries the hub's feature types, so that `datasets` decodes the images without being told.
    pq.write_table(pa.Table.from_pylist(list(rows), schema=features.arrow_schema), path)
