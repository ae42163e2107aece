"""The folders of CLEAR: which of them hold whom, and what has been read of them so far."""

from collections.abc import Sequence
from pathlib import Path

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import Modality
from mmunlearn.benchmarks.clear_rows import (
    CaptionRow,
    OptionsColumns,
    OptionsRow,
    TofuRow,
    caption_rows,
    drawn,
    options_rows,
    tofu_rows,
)
from mmunlearn.benchmarks.clear_subjects import Roster, plain, read_roster, subjects
from mmunlearn.benchmarks.mllmu_files import ImageCache, Source, columns_of
from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT, Problems
from mmunlearn.data.example import Example
from mmunlearn.errors import DataError, NoQuestionsError

_EVERYBODY = ("data", "default", "full")  # the config `default` is published in a folder called `data`
_NAMES = OptionsColumns(question="", answer="name", wrong="perturbed_names")


class Opened:
    """What has been read so far; each folder is read once, on first use."""

    def __init__(self, *, name: str, root: str, repository: str, forget_ratio: int, seed: int) -> None:
        """Read nothing yet.

        Args:
            name: begins every example's id.
            root: as set by the user; empty: `data/CLEAR` if it exists, else the hub.
            repository: on the hub.
            forget_ratio: percentage of people to be forgotten.
            seed: decides how each caption is asked for and where the right option stands.
        """
        self.name = name
        self.seed = seed
        self.problems = Problems()
        self.images = ImageCache()
        offline = "copy the repository to this machine and set data.root=/path/to/CLEAR"
        self.source = Source("root", root, Path("data/CLEAR"), repository, "dataset", offline)
        self.folders = {"forget": f"forget{forget_ratio:02}", "retain": f"retain{100 - forget_ratio}", "full": "full"}
        self._rows: dict[str, tuple[tuple[TofuRow, str], ...]] = {}
        self._rosters: dict[str, Roster] = {}
        self._faces: dict[str, tuple[tuple[OptionsRow, str], ...]] = {}
        self._captions: dict[str, tuple[CaptionRow, ...]] = {}
        self._options: dict[tuple[str, OptionsColumns], tuple[OptionsRow, ...]] = {}

    def files(self, folder: str) -> tuple[Path, ...]:
        """The files of a folder that must be there.

        Raises:
            DataError: it is not.
        """
        if files := self.source.find(folder):
            return files
        raise self.source.missing(folder)

    def mixed(self, split: str) -> str:
        """The folder that a split is trained on."""
        return f"{self.folders[split]}+tofu"

    def perturbed(self, split: str) -> str:
        """The folder with wrong names and captions for a split; there is one for the retain splits of all ratios."""
        return f"{self.folders[split]}_perturbed" if split == "forget" else "retain_perturbed"

    # Whom the rows are about ------------------------------------------------------------------------------------------

    def rows(self, split: str) -> tuple[tuple[TofuRow, str], ...]:
        """The training rows of a split, each with its person."""
        if split not in self._rows:
            folder = self.mixed(split)
            found = tofu_rows(self.files(folder), self.images)
            people = subjects(found, self.roster(split))
            for row, person in zip(found, people, strict=True):
                if not person:
                    what = "picture" if row.image is not None else "question"
                    self.problems.add(f"{what} of which it is not known whom it is about ({folder})")
            self._rows[split] = tuple(zip(found, people, strict=True))
        return self._rows[split]

    def roster(self, split: str) -> Roster:
        """Who is shown where, from the smallest folder with names that has all people of a split."""
        for folder in dict.fromkeys(((self.folders[split],) if split != "full" else ()) + _EVERYBODY):
            if folder not in self._rosters:
                files = self.source.find(folder)
                if not files or "name" not in columns_of(files):
                    continue
                self._rosters[folder] = read_roster(files)
            return self._rosters[folder]
        self.problems.add(f"no folder with names of the people ({self.folders[split]})")
        return Roster(())

    # Training ---------------------------------------------------------------------------------------------------------

    def training(self, split: str, modality: Modality) -> tuple[Example, ...]:
        """A split's examples of one modality."""
        wanted = {Modality.image: (IMAGE,), Modality.text: (TEXT,), Modality.both: (IMAGE, TEXT)}[modality]
        chosen = tuple(
            self.example(split, row, person) for row, person in self.rows(split)
            if (IMAGE if row.image is not None else TEXT) in wanted
        )  # fmt: skip
        if not chosen:
            raise NoQuestionsError(
                f"{self.mixed(split)}: has no {modality.value} questions to train on. Use another data.modality."
            )
        return chosen

    def example(self, split: str, row: TofuRow, person: str, task: str = "") -> Example:
        """A row as it is trained on and asked: the caption of a picture, or the answer to a question.

        Args:
            split: whose row it is.
            row: of the split's folder.
            person: whom it is about.
            task: the kind of the task that asks it; empty in training.
        """
        if row.image is None:
            kind, question, answer = TEXT, row.question, row.answer
        else:
            kind, question, answer = IMAGE, self.caption_question(row.image.key, row.caption), row.caption
        identity = self.id(self.mixed(split), kind, task, row.number)
        return Example(id=identity, question=question, answer=answer, image=row.image, subject=person)

    def caption_question(self, key: str, caption: str) -> str:
        """How the caption of a picture is asked for; seed and content alone decide."""
        return prompts.CAPTION_QUESTIONS[drawn(len(prompts.CAPTION_QUESTIONS), self.seed, "caption", key, caption)]

    def id(self, folder: str, kind: str, task: str, number: int) -> str:
        """Says where an example comes from."""
        return "/".join(filter(None, (self.name, folder, kind, task, str(number))))

    # Evaluation -------------------------------------------------------------------------------------------------------

    def options(self, folder: str, columns: OptionsColumns) -> tuple[OptionsRow, ...]:
        """The multiple-choice questions of a folder."""
        if (folder, columns) not in self._options:
            found = options_rows(self.files(folder), columns, self.images, seed=self.seed, problems=self.problems)
            self._options[folder, columns] = tuple(found)
        return self._options[folder, columns]

    def faces(self, split: str) -> tuple[tuple[OptionsRow, str], ...]:
        """The pictures of a split's people with wrong names, each with its person.

        Raises:
            DataError: none of the people is there.
        """
        if split not in self._faces:
            folder, members = self.perturbed(split), self._members(split)
            rows = self.options(folder, _NAMES)
            own = tuple((row, members[plain(row.answer)]) for row in rows if plain(row.answer) in members)
            if not own:
                known = "" if members else " No names are known: the folder data/ of the benchmark has them."
                raise DataError(
                    f"{folder}: holds none of the people of {self.mixed(split)}.{known} Are both of one version? See data.root."
                )
            for _ in range(len(rows) - len(own)):
                self.problems.add(f"picture of somebody who is not in {self.folders[split]}, left out ({folder})")
            self._faces[split] = own
        return self._faces[split]

    def captions(self, split: str) -> tuple[CaptionRow, ...]:
        """The captions with wrong ones that a split's folder has, whoever they are about."""
        folder = self.perturbed(split)
        if folder not in self._captions:
            self._captions[folder] = tuple(caption_rows(self.files(folder), self.images, self.problems))
        return self._captions[folder]

    def captioned(self, split: str) -> Sequence[tuple[CaptionRow, str]]:
        """Those captions that are about a split's people, each with its person; see `faces` for the others."""
        members = self._members(split)
        return [(row, members[plain(row.name)]) for row in self.captions(split) if plain(row.name) in members]

    def _members(self, split: str) -> dict[str, str]:
        """The people of a split, by their plainly written names."""
        return {plain(person): person for _, person in self.rows(split) if person}
