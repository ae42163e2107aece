"""CLEAR (arXiv 2410.18057): the fictitious authors of TOFU with portraits and captions.

Deviations from the published scripts: recognition asks a question and lists the options with letters, the place of the
right one depends on seed and content alone, and texts are asked without a picture placeholder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import AS_EVER, EVALUATION_SPLITS, Ask, Asking, Modality, Splits, Task
from mmunlearn.benchmarks.clear_rows import OptionsColumns, OptionsRow, TofuRow, drawn, options_rows, tofu_rows
from mmunlearn.benchmarks.clear_subjects import Roster, plain, read_roster, subjects
from mmunlearn.benchmarks.mllmu_files import ImageCache, Source, columns_of
from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT, Problems
from mmunlearn.config import Protocol, Shots
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError, DataError, NoQuestionsError, did_you_mean
from mmunlearn.metrics.catalog import CHOICE_METRICS, GENERATION_METRICS

RATIOS = (1, 5, 10)
"""Percentages of people in the published forget splits."""
MAX_NEW_TOKENS = 300
"""Captions are long; the published evaluation allows as many."""

_EVERYBODY = ("data", "default", "full")  # the config `default` is published in a folder called `data`
_PERTURBED = OptionsColumns(question="", answer="name", wrong="perturbed_names")
# The column `question` of real_faces is left aside: all pictures of people are asked about in the same words.
_FACES = OptionsColumns(question="", answer="answer", wrong="options")
_WORLD = OptionsColumns(question="question", answer="answer", wrong="options")
_HIGHER_IS_BETTER = {"forget": False, "retain": True, "real": True, "general": True}


@dataclass(frozen=True, kw_only=True)
class CLEAR:
    """CLEAR as published, or other people in its layout."""

    name: str = "clear"
    """Stands in results and begins every example's id."""
    root: str = ""
    """Folder with `full+tofu/`, `forget05+tofu/`, …; empty: `data/CLEAR` if it exists, else the hub."""
    repository: str = "therem/CLEAR"
    """The data set on the hub."""
    forget_ratio: str = "05"
    """Percentage of people to be forgotten: 1, 5 or 10; 05 is the same as 5."""
    modality: Modality = Modality.both
    """Train on captions of pictures, on questions without a picture, or on both."""
    seed: int = 0
    """Decides how each caption is asked for and where the right option stands."""

    def __post_init__(self) -> None:
        """Check what the types leave open.

        Raises:
            ConfigError: the ratio is not one.
        """
        ratio = str(self.forget_ratio).strip().rstrip("%")
        if not ratio.isdecimal() or int(ratio) not in RATIOS:
            raise ConfigError(f"data.forget_ratio={self.forget_ratio}: must be the percentage of a split: 1, 5 or 10.")
        # A configuration delivers a number and a plain string; the fields are what their types say.
        object.__setattr__(self, "forget_ratio", f"{int(ratio):02}")
        object.__setattr__(self, "modality", Modality(self.modality))

    @property
    def version(self) -> str:
        """Raised when prompts, splits or scoring change."""
        return "1"

    def splits(self) -> Splits:
        """The training questions of the forget people, of the retain people, and of everybody (`full+tofu`).

        Reading one raises DataError if its folder is missing or damaged.
        """
        return Splits(lambda split: self._opened.training(split, self.modality))

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks about some groups, in the order of a report.

        `forget` and `retain` have recognition, caption and qa; `real` has recognition (`real_faces`); `general` has a
        choice (`real_world`). The other groups have nothing here.

        Args:
            splits: the groups of people; only their folders are read.
            asking: our own rules without solved questions are all that there is for CLEAR.

        Raises:
            ConfigError: a group is unknown, or the questions cannot be asked in this way.
            DataError: a folder of the published benchmark is missing or damaged.
        """
        if asking.shots is Shots.few_shot:
            raise ConfigError(
                "evaluation.shots=few_shot: CLEAR's published evaluation has none. Ask with evaluation.shots=zero_shot."
            )
        if asking.protocol is not Protocol.fixed:
            raise ConfigError(
                f"evaluation.protocol={asking.protocol}: there for MLLMU-Bench, not yet for CLEAR. Ask with "
                "evaluation.protocol=fixed."
            )
        for split in splits:
            if split not in EVALUATION_SPLITS:
                raise ConfigError(f"evaluation.splits: {split!r} is unknown. {did_you_mean(split, EVALUATION_SPLITS)}")
        return tuple(task for split in EVALUATION_SPLITS if split in splits for task in self._opened.tasks(split))

    def problems(self) -> Mapping[str, int]:
        """Flaws that were tolerated in the folders read so far, with their counts."""
        return dict(sorted(self._opened.problems.counts.items()))

    @cached_property
    def _opened(self) -> "_Opened":
        return _Opened(self)


class _Opened:
    """What has been read so far; each folder is read once, on first use."""

    def __init__(self, settings: CLEAR) -> None:
        self.settings = settings
        self.problems = Problems()
        self.images = ImageCache()
        offline = "copy the repository to this machine and set data.root=/path/to/CLEAR"
        self.source = Source("root", settings.root, Path("data/CLEAR"), settings.repository, "dataset", offline)
        forget = int(settings.forget_ratio)
        self.folders = {"forget": f"forget{forget:02}", "retain": f"retain{100 - forget}", "full": "full"}
        self._rows: dict[str, tuple[tuple[TofuRow, str], ...]] = {}
        self._rosters: dict[str, Roster] = {}
        self._tasks: dict[str, tuple[Task, ...]] = {}

    def files(self, folder: str) -> tuple[Path, ...]:
        """The files of a folder that must be there."""
        if files := self.source.find(folder):
            return files
        raise self.source.missing(folder)

    # Whom the rows are about ------------------------------------------------------------------------------------------

    def rows(self, split: str) -> tuple[tuple[TofuRow, str], ...]:
        """The training rows of a split, each with its person."""
        if split not in self._rows:
            folder = f"{self.folders[split]}+tofu"
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
        folder = f"{self.folders[split]}+tofu"
        wanted = {Modality.image: (IMAGE,), Modality.text: (TEXT,), Modality.both: (IMAGE, TEXT)}[modality]
        chosen = tuple(
            self.example(folder, row, person, "") for row, person in self.rows(split)
            if (IMAGE if row.image is not None else TEXT) in wanted
        )  # fmt: skip
        if not chosen:
            raise NoQuestionsError(f"{folder}: has no {modality.value} questions to train on. Use another data.modality.")
        return chosen

    def example(self, folder: str, row: TofuRow, person: str, task: str) -> Example:
        """A row as it is trained on and asked: the caption of a picture, or the answer to a question."""
        if row.image is None:
            kind, question, answer = TEXT, row.question, row.answer
        else:
            kind, answer = IMAGE, row.caption
            number = drawn(len(prompts.CAPTION_QUESTIONS), self.settings.seed, "caption", row.image.key, row.caption)
            question = prompts.CAPTION_QUESTIONS[number]
        return Example(
            id=self.id(folder, kind, task, row.number), question=question, answer=answer, image=row.image, subject=person
        )

    def id(self, folder: str, kind: str, task: str, number: int) -> str:
        """Says where an example comes from."""
        return "/".join(filter(None, (self.settings.name, folder, kind, task, str(number))))

    # Evaluation -------------------------------------------------------------------------------------------------------

    def tasks(self, split: str) -> tuple[Task, ...]:
        """The tasks about one group of people; none for a group that CLEAR does not have."""
        if split not in self._tasks:
            made: tuple[Task, ...] = ()
            if split in ("forget", "retain"):
                made = (self.recognition(split), *self.free_answers(split))
            elif split == "real":
                made = (self.real_faces(),)
            elif split == "general":
                made = (self.real_world(),)
            self._tasks[split] = made
        return self._tasks[split]

    def recognition(self, split: str) -> Task:
        """Who is it? Only the people of the split are asked about.

        There is one `retain_perturbed` for all ratios, so it may hold people who are forgotten under this one.
        """
        folder = f"{self.folders[split]}_perturbed" if split == "forget" else "retain_perturbed"
        rows = self.options(folder, _PERTURBED)
        members = {plain(person): person for _, person in self.rows(split) if person}
        own = [(row, members[plain(row.answer)]) for row in rows if plain(row.answer) in members]
        if not own:
            known = "" if members else " No names are known: the folder data/ of the benchmark has them."
            raise DataError(
                f"{folder}: holds none of the people of {self.folders[split]}+tofu.{known} "
                "Are both of one version? See data.root."
            )  # fmt: skip
        for _ in range(len(rows) - len(own)):
            self.problems.add(f"picture of somebody who is not in {self.folders[split]}, left out ({folder})")
        return self.choice(split, "recognition", folder, own)

    def free_answers(self, split: str) -> list[Task]:
        """Captions and questions, as they are trained on."""
        folder = f"{self.folders[split]}+tofu"
        made = []
        for kind, task in ((IMAGE, "caption"), (TEXT, "qa")):
            rows = [(row, person) for row, person in self.rows(split) if (row.image is not None) == (kind == IMAGE)]
            if rows:
                made.append(
                    Task(
                        name=f"{split}_{kind}_{task}",
                        examples=tuple(self.example(folder, row, person, task) for row, person in rows),
                        ask=Ask.generate,
                        metrics=GENERATION_METRICS,
                        higher_is_better=_HIGHER_IS_BETTER[split],
                        max_new_tokens=MAX_NEW_TOKENS,
                    )
                )
        return made

    def real_faces(self) -> Task:
        """Who is it? About well-known people."""
        rows = self.options("real_faces", _FACES)
        # A real person of the same name must never be taken for a fictitious one.
        return self.choice("real", "recognition", "real_faces", [(row, f"real-{row.answer}") for row in rows])

    def real_world(self) -> Task:
        """Questions about pictures of other things; each picture is a unit of its own."""
        rows = self.options("real_world", _WORLD)
        return self.choice("general", "choice", "real_world", [(row, f"general-{row.image.key}") for row in rows])

    def options(self, folder: str, columns: OptionsColumns) -> list[OptionsRow]:
        """The multiple-choice questions of a folder."""
        return options_rows(self.files(folder), columns, self.images, seed=self.settings.seed, problems=self.problems)

    def choice(self, split: str, kind: str, folder: str, rows: Sequence[tuple[OptionsRow, str]]) -> Task:
        """A task of multiple choice from rows and the people they are about."""
        return Task(
            name=f"{split}_{IMAGE}_{kind}",
            examples=tuple(
                Example(
                    id=self.id(folder, IMAGE, kind, row.number),
                    question=row.question or prompts.RECOGNITION_QUESTION,
                    answer=row.answer,
                    image=row.image,
                    choices=row.options,
                    subject=person,
                )
                for row, person in rows
            ),
            ask=Ask.choose,
            metrics=CHOICE_METRICS,
            higher_is_better=_HIGHER_IS_BETTER[split],
            instruction=prompts.CHOICE_INSTRUCTION,
        )
