"""MLLMU-Bench (arXiv 2410.22108): fictitious people with portraits, profiles and questions in both modalities.

Reads the published files and those of the embedded people, which have the same layout plus folders of their own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from mmunlearn.benchmarks import mllmu_official as published
from mmunlearn.benchmarks import mllmu_rows as rows
from mmunlearn.benchmarks import mllmu_shots as shots
from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import AS_EVER, EVALUATION_SPLITS, Ask, Asking, Modality, Splits, Task
from mmunlearn.benchmarks.mllmu_files import ImageCache, Source, columns_of, read_rows
from mmunlearn.config_enums import Protocol, Shots
from mmunlearn.data.example import Example, Metric
from mmunlearn.errors import ConfigError, DataError, NoQuestionsError, did_you_mean
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS

_OFFLINE = (
    "copy both repositories to this machine and set "
    "data.root=/path/to/MLLMU-Bench data.train_root=/path/to/baseline_train_split"
)
_OURS = ("reworded", "holdout", "general")  # not part of the published files, so they may be absent
_OF_FORGET_PEOPLE = ("test", "reworded")  # folders that hold everybody; only the forget people are asked about
_HIGHER_IS_BETTER = {
    "forget": False, "test": False, "reworded": False, "retain": True, "real": True, "holdout": None, "general": True,
}  # fmt: skip
_TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")
_FALLBACK_COLUMNS = ("question", "answer", "Generation_Task")
_KINDS = (
    ("choice", Ask.choose, CHOICE_METRICS, rows.choice_examples),
    ("cloze", Ask.generate, CLOZE_METRICS, rows.cloze_examples),
    ("generation", Ask.generate, GENERATION_METRICS, rows.generation_examples),
)


@dataclass(frozen=True, kw_only=True)
class MLLMUBench:
    """MLLMU-Bench as published, or other people in its layout."""

    name: str = "mllmu"
    """Stands in results and begins every example's id."""
    root: str = ""
    """Folder with `Full_Set/`, `forget_5/`, …; empty: `data/MLLMU-Bench` if it exists, else the hub."""
    train_root: str = ""
    """Folder with the train splits; empty: `data/MLLMMU-Bench` if it exists, else below `root`, else the hub."""
    repository: str = "MLLMMU/MLLMU-Bench"
    """The data set on the hub."""
    train_repository: str = "MLLMMU/baseline_train_split"
    """The train splits on the hub, a repository of the type model."""
    forget_ratio: str = "15"
    """Percentage of people to be forgotten: 5, 10 or 15; 05 is the same as 5."""
    modality: Modality = Modality.both
    """Train on questions with the image, without it, or on both."""
    seed: int = 0
    """Decides which portrait of Test_Set is shown."""

    def __post_init__(self) -> None:
        """Check what the types leave open.

        Raises:
            ConfigError: the ratio is not one.
        """
        ratio = str(self.forget_ratio).strip().rstrip("%")
        if not ratio.isdecimal() or not 0 < int(ratio) < 100:
            raise ConfigError(f"data.forget_ratio={self.forget_ratio}: must be a percentage of the people: 5, 10 or 15.")
        # A configuration delivers a number, a plain string and a list; the fields are what their types say.
        object.__setattr__(self, "forget_ratio", str(int(ratio)))
        object.__setattr__(self, "modality", Modality(self.modality))

    @property
    def version(self) -> str:
        """Raised when prompts, splits or scoring change."""
        return "1"

    def splits(self) -> Splits:
        """The training questions of the forget people, of the retain people, and of everybody (`ft_Data`).

        Reading one raises DataError if its folder is missing or damaged.
        """
        return Splits(lambda split: self._opened.split(split, self.modality))

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks that have questions, in the order of a report.

        Args:
            splits: the groups of people; only their folders are read, and with few_shot those that shots come from.
            asking: under the published rules there are only the published groups, see `mllmu_official`.

        Raises:
            ConfigError: a group is unknown, or has too few people for shots.
            DataError: a folder of the published benchmark is missing or damaged.
        """
        for split in splits:
            if split not in EVALUATION_SPLITS:
                raise ConfigError(f"evaluation.splits: {split!r} is unknown. {did_you_mean(split, EVALUATION_SPLITS)}")
        return tuple(task for split in EVALUATION_SPLITS if split in splits for task in self._opened.tasks(split, asking))

    def training(self, folder: str, modality: Modality = Modality.both) -> tuple[Example, ...]:
        """The training questions of one folder, such as `ft_Data`, `retain_90` or `public_figures`.

        Args:
            folder: looked for among the train splits first, then in the benchmark itself.
            modality: which questions; by default all.

        Raises:
            DataError: the folder is nowhere, is damaged, or has no questions of that modality.
        """
        return self._opened.training(folder, modality)

    def problems(self) -> Mapping[str, int]:
        """Flaws that were tolerated in the folders read so far, with their counts."""
        return dict(sorted(self._opened.problems.counts.items()))

    @cached_property
    def _opened(self) -> "_Opened":
        return _Opened(self)


class _Opened:
    """What has been read so far; each folder is read once, on first use."""

    def __init__(self, settings: MLLMUBench) -> None:
        self.settings = settings
        self.problems = rows.Problems()
        self.images = ImageCache()
        dataset = Path("data/MLLMU-Bench"), settings.repository, "dataset"
        train = Path("data/MLLMMU-Bench"), settings.train_repository, "model"
        self.dataset = Source("root", settings.root, *dataset, _OFFLINE)
        self.train = Source("train_root", settings.train_root, *train, _OFFLINE)
        for source in (self.dataset, self.train):
            source.local()  # a folder that was named must be there, also where only the other one is read
        forget = int(settings.forget_ratio)
        self.forget_folder, self.retain_folder = f"forget_{forget}", f"retain_{100 - forget}"
        self._training: dict[str, tuple[Example, ...]] = {}
        self._profiles_of: dict[str, list[rows.Profile]] = {}
        self._tasks: dict[tuple[str, Asking], tuple[Task, ...]] = {}
        self._people: dict[tuple[str, str], rows.People] = {}

    # Training ---------------------------------------------------------------------------------------------------------

    def split(self, split: str, modality: Modality) -> tuple[Example, ...]:
        folder = {"forget": self.forget_folder, "retain": self.retain_folder, "full": "ft_Data"}[split]
        chosen = self.training(folder, modality)
        if split != "full":
            rows.check_apart(*(self._people.get(("trained", each)) for each in (self.forget_folder, self.retain_folder)))
            self._check_same_people(folder)
        return chosen

    def _check_same_people(self, folder: str) -> None:
        """The people who are trained on should be those who are asked about; on the hub both are of one version."""
        trained = self._people["trained", folder]
        if self.dataset.local() is None or ("compared", folder) in self._people:
            return
        files = self.dataset.find(folder)
        if not files or files[0].parent == Path(trained.where):
            return
        asked = self._people["compared", folder] = rows.People(str(files[0].parent), _ids(files))
        if not trained.ids & asked.ids:
            raise DataError(
                f"{trained.where}: holds none of the people of {asked.where}. Are both of one version? Set data.root and "
                "data.train_root to copies of the same one."
            )
        for _ in trained.ids ^ asked.ids:
            self.problems.add(f"person in one of two folders, so trained on or asked about but not both ({folder})")

    def training(self, folder: str, modality: Modality) -> tuple[Example, ...]:
        if folder not in self._training:
            self._training[folder] = tuple(self._read_training(folder))
        everything = self._training[folder]
        if modality is Modality.both:
            return everything
        if modality is Modality.image:
            chosen = tuple(example for example in everything if example.image is not None)
        else:
            chosen = tuple(example for example in everything if example.image is None) or self._text_questions(folder)
        if not chosen:
            raise NoQuestionsError(f"{folder}: has no {modality.value} questions to train on. Use another data.modality.")
        return chosen

    def _read_training(self, folder: str) -> list[Example]:
        files = self._training_files(folder)
        metadata = "metadata" in columns_of(files)
        if not metadata:
            self.problems.add(f"folder without metadata, trained on question and Generation_Task instead ({folder})")
        required = ("metadata",) if metadata else _FALLBACK_COLUMNS
        build = rows.metadata_examples if metadata else rows.fallback_examples
        profiles = self._profiles(folder, files, ("image", *required))
        self._people["trained", folder] = rows.People(str(files[0].parent), frozenset(each.person for each in profiles))
        return [example for profile in profiles for example in build(profile)]

    def _text_questions(self, folder: str) -> tuple[Example, ...]:
        """The free text questions of a folder whose `metadata` has image questions only, as in the published files."""
        files = self.dataset.find("Full_Set" if folder == "ft_Data" else folder)
        if not files or not columns_of(files).issuperset(_FALLBACK_COLUMNS):
            return ()
        self.problems.add(f"no training questions in text, trained on those of the evaluation instead ({folder})")
        profiles = self._profiles(folder, files, ("image", *_FALLBACK_COLUMNS))
        return tuple(example for profile in profiles for example in rows.text_examples(profile))

    def _training_files(self, folder: str) -> tuple[Path, ...]:
        """From the train splits, else from the benchmark; the other way round for what is published there.

        A benchmark on disk is also preferred to train splits that would have to be downloaded.
        """
        download = self.train.local() is None and self.dataset.local() is not None
        sources = (self.dataset, self.train) if download or folder == "ft_Data" else (self.train, self.dataset)
        for source in sources:
            if files := source.find(folder):
                return files
        raise sources[0].missing(folder)

    # Evaluation -------------------------------------------------------------------------------------------------------

    def tasks(self, split: str, asking: Asking) -> tuple[Task, ...]:
        if (split, asking) not in self._tasks:
            made = self._split_tasks(split, official=asking.protocol is Protocol.official)
            if asking.shots is Shots.few_shot:
                made = self._with_shots(split, asking, made)
            self._tasks[split, asking] = tuple(made)
        return self._tasks[split, asking]

    def _with_shots(self, split: str, asking: Asking, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with solved questions before each question; see `mllmu_shots`."""
        official = asking.protocol is Protocol.official
        if not tasks or (official and split not in published.SHOT_SPLITS):
            return list(tasks)
        # Test_Set holds the forget people, and the published script shows them in shots with their usual portraits.
        source = {"test": "forget"}.get(split, split) if official else shots.other_split(split)
        without = Asking(protocol=asking.protocol)
        shown = {task.name.removeprefix(f"{source}_"): task.examples for task in self.tasks(source, without)}
        seed, people = self.settings.seed, [rows.subject(p.folder, p.person) for p in self._evaluated(split)]
        found = []
        for task in tasks:
            kind = task.name.rpartition("_")[2]
            others = shown.get(task.name.removeprefix(f"{split}_"), ())
            if not official:
                examples = shots.with_other_people(task.examples, others, seed=seed, split=split)
            elif number := published.SHOT_PEOPLE[kind]:
                chosen = shots.evaluated_people(people, number, seed=seed, split=split, kind=kind)
                examples = shots.with_evaluated_people(task.examples, others, chosen)
            else:
                examples = task.examples
            if examples:
                found.append(replace(task, examples=examples))
        return found

    def _split_tasks(self, split: str, *, official: bool) -> list[Task]:
        if official and split not in published.SPLITS:
            return []
        profiles = self._evaluated(split)
        found = []
        for kind in (rows.IMAGE, rows.TEXT):
            if kind == rows.TEXT and split in ("test", "general"):
                continue  # the same text questions as in `forget`; faces without a name
            for name, ask, metrics, build in _KINDS:
                if split == "general" and name != "choice":
                    continue
                if official and name == "cloze":
                    build = partial(rows.cloze_examples, mark=published.mark_every_pair)
                examples = tuple(example for profile in profiles for example in build(profile, kind))
                if examples:
                    task = _task(split, kind, name, ask, metrics, examples)
                    found.append(_as_published(task, kind, name) if official else task)
        if not found and split not in _OURS:
            raise DataError(
                f"{profiles[0].where}: neither this profile nor the {len(profiles) - 1} others have a question about {split}. "
                "Download the folder again or point data.root to another copy."
            )
        return found

    def _evaluated(self, split: str) -> list[rows.Profile]:
        if split not in self._profiles_of:
            self._profiles_of[split] = self._read_evaluated(split)
        return self._profiles_of[split]

    def _read_evaluated(self, split: str) -> list[rows.Profile]:
        folder = {
            "forget": self.forget_folder, "retain": self.retain_folder, "test": "Test_Set", "reworded": "Reworded_Set",
            "real": "Retain_Set", "holdout": "Holdout_Set", "general": "General_Set",
        }[split]  # fmt: skip
        if split in _OURS and self.dataset.local() is None:
            return []  # the hub does not have them, so it need not be asked
        files = self.dataset.find(folder)
        if not files:
            if split in _OURS:
                return []
            raise self.dataset.missing(folder)
        only = self._forget_people() if split in _OF_FORGET_PEOPLE else None
        image = "images" if split == "test" else "image"
        profiles = self._profiles(folder, files, (image, *_TASK_COLUMNS), ("biography",), only)
        for profile in profiles:
            rows.check_biography(profile)
        self._people["asked", split] = rows.People(str(files[0].parent), frozenset(each.person for each in profiles))
        rows.check_apart(*(self._people.get(("asked", each)) for each in ("forget", "retain")))
        if only is not None:
            self._check_found(folder, only, profiles)
        return profiles

    def _forget_people(self) -> frozenset[str]:
        files = self.dataset.find(self.forget_folder)
        if not files:
            raise self.dataset.missing(self.forget_folder)
        return _ids(files)

    def _check_found(self, folder: str, wanted: frozenset[str], profiles: Sequence[rows.Profile]) -> None:
        absent = wanted - {profile.person for profile in profiles}
        if absent == wanted:
            raise DataError(
                f"{folder}: holds none of the people of {self.forget_folder}. Are both of one version? See data.root."
            )
        for _ in absent:
            self.problems.add(f"forget person without a row ({folder})")

    def _profiles(
        self,
        folder: str,
        files: Sequence[Path],
        required: Sequence[str],
        optional: Sequence[str] = (),
        only: frozenset[str] | None = None,
    ) -> list[rows.Profile]:
        """The rows of a folder, each person once, with their pictures.

        Args:
            folder: becomes part of the ids.
            files: its files.
            required: columns; the first is the picture or the list of pictures.
            optional: columns read where they exist.
            only: leave out everybody else.
        """
        found: dict[str, rows.Profile] = {}
        for where, row in read_rows(files, ("ID", *required), optional):
            person = rows.person_id(row["ID"], where)
            if person != row["ID"]:
                self.problems.add(f"ID without its zeros or with blanks ({folder})")
            if only is not None and person not in only:
                continue
            if person in found:
                raise DataError(f"{where}: ID {person!r} is already in {found[person].where}. Remove one of the two rows.")
            cell = row.pop(required[0])
            image = self.images.add(self._shown(cell, folder, person, where), f"{where} (ID {person})")
            found[person] = rows.Profile(
                benchmark=self.settings.name, folder=folder, person=person, where=f"{where} (ID {person})",
                row=row, image=image, problems=self.problems,
            )  # fmt: skip
        return list(found.values())

    def _shown(self, cell: object, folder: str, person: str, where: str) -> object:
        """One picture of a list, chosen by seed and person alone; a single picture as it is."""
        if not isinstance(cell, list):
            return cell
        if not cell:
            raise DataError(f"{where}: column 'images' is an empty list. Restore the row from its source or remove it.")
        digest = hashlib.sha256(f"{self.settings.seed}/{folder}/{person}".encode()).digest()
        return cell[int.from_bytes(digest[:8], "big") % len(cell)]


def _ids(files: Sequence[Path]) -> frozenset[str]:
    return frozenset(rows.person_id(row["ID"], where) for where, row in read_rows(files, ("ID",)))


def _as_published(task: Task, kind: str, name: str) -> Task:
    """The same questions in the published raw text, counted as published."""
    accuracy = published.ACCURACY if task.ask is Ask.choose else ""
    return replace(task, metrics=published.METRICS[name], form=published.FORMS[name, kind], accuracy=accuracy)


def _task(split: str, kind: str, name: str, ask: Ask, metrics: Mapping[str, Metric], examples: tuple[Example, ...]) -> Task:
    generation = prompts.IMAGE_GENERATION_INSTRUCTION if kind == rows.IMAGE else prompts.TEXT_GENERATION_INSTRUCTION
    instructions = {"choice": prompts.CHOICE_INSTRUCTION, "cloze": prompts.CLOZE_INSTRUCTION, "generation": generation}
    return Task(
        name=f"{split}_{kind}_{name}",
        examples=examples,
        ask=ask,
        metrics=metrics,
        higher_is_better=_HIGHER_IS_BETTER[split],
        instruction=instructions[name],
    )
