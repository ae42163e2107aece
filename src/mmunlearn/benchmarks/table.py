"""A user's own people: a folder of portraits, and a table with one question a row."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import AS_EVER, EVALUATION_SPLITS, Ask, Asking, Modality, Splits, Task
from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT
from mmunlearn.benchmarks.stand_ins import MOST, Mix, StandIns, StandInUse, make_stand_ins
from mmunlearn.benchmarks.table_images import Portraits
from mmunlearn.benchmarks.table_rows import Findings, Kind, Row, plain_name, read_text, table_rows
from mmunlearn.data.example import Example, LazyImage, Metric
from mmunlearn.errors import ConfigError, DataError, NoQuestionsError, did_you_mean
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS

EVERYBODY = "*"
"""As `forget`: ask about everybody, as `mmunlearn probe` does. Nothing can be trained on it."""

_KINDS: dict[Kind, tuple[Ask, Mapping[str, Metric]]] = {
    Kind.choice: (Ask.choose, CHOICE_METRICS),
    Kind.cloze: (Ask.generate, CLOZE_METRICS),
    Kind.generation: (Ask.generate, GENERATION_METRICS),
}
_HIGHER_IS_BETTER = {"forget": False, "reworded": False, "retain": True, "holdout": None}
TEMPLATE = """\
subject,image,kind,question,answer,options
Ada Example,ada.png,choice,What is the profession of this person?,baker,baker|judge|sailor|tailor
Ada Example,,cloze,Ada Example was born in the year ____.,1971,
Bo Sample,,generation,Who is Bo Sample?,Bo Sample is a judge from Lind.,
"""
"""A table to begin with, shown where there is none yet."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Own people: a CSV or JSONL file with one question a row, and pictures in a folder."""

    name: str = "table"
    """Stands in results and begins every example's id."""
    root: str = ""
    """The folder of the pictures, and of the table unless that has a path of its own; empty: the table's folder."""
    table: str = ""
    """A CSV (UTF-8; comma, semicolon or tab) or JSONL file with the columns subject, question and answer, and, if wanted,
    image, kind (choice, cloze, generation), options, reworded, gender and age."""
    forget: Any = ""
    """Who is to be forgotten: a list of subjects, or a text file with one a line. `*`: everybody, to ask but not to train."""
    modality: Modality = Modality.both
    """Train on questions with the image, without it, or on both."""
    seed: int = 0
    """Decides the order in which options are listed, and the stand-ins."""
    stand_ins: int = 0
    """So many fictitious people stand in for people to keep, or for people whom no model has seen; 0: none."""
    stand_ins_as: StandInUse = StandInUse.retain
    """retain (to be kept), holdout (never trained on), or both: as many of each."""

    def __post_init__(self) -> None:
        """Check what the types leave open; nothing is read yet.

        Raises:
            ConfigError: `forget` is neither a list nor a text, or there are too many stand-ins.
        """
        if isinstance(self.forget, Mapping):
            raise ConfigError("data.forget: expected a list of people or a text file with one a line, not a section.")
        several = isinstance(self.forget, list | tuple)
        forget = tuple(map(str, self.forget)) if several else "" if self.forget is None else str(self.forget)
        object.__setattr__(self, "forget", forget)
        object.__setattr__(self, "modality", Modality(self.modality))
        object.__setattr__(self, "stand_ins_as", StandInUse(self.stand_ins_as))
        if not 0 <= self.stand_ins <= MOST:
            raise ConfigError(f"data.stand_ins={self.stand_ins}: must be between 0 (none) and {MOST}.")

    @property
    def version(self) -> str:
        """Raised when prompts, splits or scoring change; says whether there are stand-ins, so that reports never mix them."""
        return f"1 with {self.stand_ins} stand-ins as {self.stand_ins_as}" if self.stand_ins else "1"

    def splits(self) -> Splits:
        """The questions to train on, those that are `reworded` left out. Reading one raises DataError; see `tasks`."""
        return Splits(lambda split: self._opened.training(split))

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks that have questions: about `forget`, `reworded` (of the forget people), `retain`, `holdout`.

        Only stand-ins are in `holdout`.

        Args:
            splits: the groups of people; the other groups have nothing here.
            asking: only our own rules without solved questions.

        Raises:
            ConfigError: a group is unknown, no table is named, or the questions cannot be asked in this way.
            DataError: the table, its pictures or the forget list have problems, or nobody is to be forgotten.
        """
        if asking != AS_EVER:
            raise ConfigError(
                f"evaluation.protocol={asking.protocol} evaluation.shots={asking.shots}: there for published benchmarks only. "
                "Ask about your own people with evaluation.protocol=fixed evaluation.shots=zero_shot."
            )
        for split in splits:
            if split not in EVALUATION_SPLITS:
                raise ConfigError(f"evaluation.splits: {split!r} is unknown. {did_you_mean(split, EVALUATION_SPLITS)}")
        wanted = [split for split in EVALUATION_SPLITS if split in splits and split in _HIGHER_IS_BETTER]
        return tuple(task for split in wanted for task in self._opened.tasks(split))

    def problems(self) -> Mapping[str, int]:
        """What was odd but tolerated, with counts."""
        return dict(sorted(self._opened.findings.tolerated.items()))

    @cached_property
    def _opened(self) -> "_Opened":
        return _Opened(self)


class _Opened:
    """The table, read and checked as a whole."""

    def __init__(self, settings: Table) -> None:
        self.settings = settings
        self.findings = Findings()
        path = self._table_file()
        root = Path(settings.root).expanduser() if settings.root else path.parent
        rows = table_rows(path, self.findings)
        damaged = bool(self.findings.problems)
        portraits = Portraits(root, self.findings)
        self.rows = tuple((row, portraits.find(row.image, row.where)) for row in rows)
        self.subjects = tuple(dict.fromkeys(row.subject for row in rows))
        self.forget = self._forget_people(damaged)
        self.findings.raise_any()
        self.stand_ins = self._stand_ins(rows)
        self.rows += self.stand_ins.rows
        self._count_oddities()

    def _table_file(self) -> Path:
        if not self.settings.table:
            raise ConfigError(
                "data.table is empty. Name a CSV or JSONL file with columns subject, question and answer. To begin with, save "
                f"this as people.csv:\n\n{TEMPLATE}"
            )
        if self.settings.root and not Path(self.settings.root).expanduser().is_dir():
            raise DataError(f"{self.settings.root}: no such folder. Set data.root to the folder of your pictures.")
        if found := self._file(self.settings.table):
            return found
        folder = Path(self.settings.root or Path(self.settings.table).parent).expanduser()
        near = [each.name for each in folder.glob("*") if each.suffix in (".csv", ".tsv", ".jsonl")]
        hint = did_you_mean(Path(self.settings.table).name, near) if near else "There is no .csv or .jsonl file either."
        raise DataError(f"{self.settings.table}: no such file, neither here nor in {folder}. {hint} See data.table.")

    def _file(self, name: str) -> Path | None:
        """A file in the folder of the people, else where the program was started."""
        places = [Path(self.settings.root).expanduser() / name] if self.settings.root else []
        return next((path for path in (*places, Path(name).expanduser()) if path.is_file()), None)

    # Whom to forget ---------------------------------------------------------------------------------------------------

    def _forget_people(self, damaged: bool) -> frozenset[str] | None:
        """The people to be forgotten; None if nobody was named. Problems are noted."""
        forget = self.settings.forget
        if forget == EVERYBODY:
            return frozenset(self.subjects)
        named = self._named() if forget != "" else None
        if named is None:
            return None
        if not named:
            self.findings.add("data.forget", "names nobody. Write at least one subject of the table.")
        elif not damaged:  # people whose rows could not be read are not to be called unknown
            for where, name in named.items():
                if name not in self.subjects:
                    self.findings.add(where, f"{name!r} is not in the table. {_suggestion(name, self.subjects)}")
            kept = self.settings.stand_ins and StandInUse.retain in self.settings.stand_ins_as.parts
            if set(self.subjects) <= set(named.values()) and not kept:
                self.findings.add(
                    "data.forget",
                    "names everybody, so nobody would be kept. Leave somebody out, or let fictitious people stand in: "
                    "data.stand_ins=20.",
                )
        return frozenset(named.values())

    def _named(self) -> dict[str, str] | None:
        """Where each name stands, and the name; None if the list cannot be read, which is noted."""
        forget = self.settings.forget
        if isinstance(forget, tuple):
            names = ((f"data.forget, entry {number}", plain_name(name)) for number, name in enumerate(forget, 1))
            return {where: name for where, name in names if name}
        path = self._file(forget)
        if path is None:
            self.findings.add(
                "data.forget", f"there is no file {forget!r}. For a person write a list: 'data.forget=[{forget}]'."
            )
            return None
        text = read_text(path, self.findings)
        if text is None:
            return None
        lines = ((f"{path}, line {number}", plain_name(line)) for number, line in enumerate(text.splitlines(), 1))
        return {where: name for where, name in lines if name}

    def _forgotten(self) -> frozenset[str]:
        if self.forget is None:
            raise DataError(
                "data.forget: nobody is to be forgotten. Name people, such as 'data.forget=[Ada Example]', or a text file with "
                f"one a line; data.forget={EVERYBODY} asks about everybody."
            )
        return self.forget

    def _count_oddities(self) -> None:
        tolerated = self.findings.tolerated
        if self.forget is None:
            return
        tolerated["reworded question about somebody who is kept, never asked"] = sum(
            row.reworded and row.subject not in self.forget for row, _ in self.rows
        )
        sides = {image.key: set[bool]() for _, image in self.rows if image is not None}
        for row, image in self.rows:
            if image is not None:
                sides[image.key].add(row.subject in self.forget)
        tolerated["picture both of somebody to be forgotten and of somebody who is kept"] = sum(
            len(each) == 2 for each in sides.values()
        )
        self.findings.tolerated = +tolerated  # without those that are 0

    def _stand_ins(self, rows: Sequence[Row]) -> StandIns:
        """Fictitious people with the genders and ages of the table's, as far as it tells."""
        settings = self.settings
        if not settings.stand_ins:
            return StandIns(rows=(), groups={})
        genders = {row.subject: row.gender for row in rows if row.gender}
        ages = {row.subject: row.age for row in rows if row.age is not None}
        mix = Mix(genders=tuple(genders.values()), ages=tuple(ages.values()))
        made = make_stand_ins(settings.stand_ins, settings.stand_ins_as, mix, names=self.subjects, seed=settings.seed)
        for group in settings.stand_ins_as.parts:
            self.findings.tolerated[f"fictitious person who stands in as {group}, nobody real"] = settings.stand_ins
        return made

    # Questions --------------------------------------------------------------------------------------------------------

    def training(self, split: str) -> tuple[Example, ...]:
        """The questions of a split to train on, of the chosen modality."""
        if split != "full" and self.settings.forget == EVERYBODY:
            raise DataError(f"data.forget={EVERYBODY} is for asking only. Name the people who are to be forgotten.")
        wanted = {Modality.image: (IMAGE,), Modality.text: (TEXT,), Modality.both: (IMAGE, TEXT)}[self.settings.modality]
        chosen = tuple(
            self._example(row, image, "")
            for row, image in self.rows
            if not row.reworded and _modality(image) in wanted and self._is_trained(row, split)
        )
        if not chosen:
            raise NoQuestionsError(
                f"{self.settings.table}: has no question to train on for {split} and data.modality={self.settings.modality}. "
                "Rows marked reworded are never trained on."
            )
        return chosen

    def tasks(self, split: str) -> list[Task]:
        """The tasks about one group of people that have questions."""
        made = []
        for modality in (IMAGE, TEXT):
            for kind in Kind:
                examples = tuple(
                    self._example(row, image, kind)
                    for row, image in self.rows
                    if row.kind is kind and _modality(image) == modality and self._is_asked(row, split)
                )
                if examples:
                    made.append(_task(split, modality, kind, examples))
        return made

    @property
    def _keeps_real_people(self) -> bool:
        return self.forget is not None and not set(self.subjects) <= self.forget

    def _is_trained(self, row: Row, split: str) -> bool:
        if split == "full":
            return self._stand_in_group(row) != StandInUse.holdout
        return self._is_in(row, split)

    def _stand_in_group(self, row: Row) -> str:
        """Retain or holdout for a stand-in; empty for a real person."""
        return self.stand_ins.groups.get(row.subject, "")

    def _is_in(self, row: Row, split: str) -> bool:
        """Whether somebody belongs to a group of people; nobody real is in holdout, no stand-in in forget."""
        if group := self._stand_in_group(row):
            return group == split
        if split == StandInUse.holdout:
            return False
        return (row.subject in self._forgotten()) == (split == "forget")

    def _is_asked(self, row: Row, split: str) -> bool:
        """Whether a row is in the tasks of a group; where real people are kept, stand-ins are only trained on beside them."""
        if self._stand_in_group(row) == split == StandInUse.retain and self._keeps_real_people:
            return False
        family = "forget" if split == "reworded" else split
        return row.reworded == (split == "reworded") and self._is_in(row, family)

    def _example(self, row: Row, image: LazyImage | None, task: str) -> Example:
        """A row as it is trained on (no task) or asked; the id says nothing of the row's place or of who is forgotten."""
        key = image.key if image is not None else ""
        content = _digest(row.subject, row.question, row.answer, key, row.kind, *sorted(row.options), str(row.reworded))
        parts = self.settings.name, row.subject, _modality(image), task, content[:16]
        order = sorted(row.options, key=lambda option: _digest(str(self.settings.seed), content, option))
        return Example(
            id="/".join(filter(None, parts)),
            question=row.question,
            answer=row.answer,
            image=image,
            choices=tuple(order) if task else (),
            subject=row.subject,
        )


def _modality(image: LazyImage | None) -> str:
    return TEXT if image is None else IMAGE


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def _suggestion(name: str, subjects: Sequence[str]) -> str:
    """The nearest names; a table of thousands is not listed."""
    hint = did_you_mean(name, subjects)
    return hint if hint.startswith("Did you mean") else "Write the name as in the column subject."


def _task(split: str, modality: str, kind: Kind, examples: tuple[Example, ...]) -> Task:
    free = prompts.IMAGE_GENERATION_INSTRUCTION if modality == IMAGE else prompts.TEXT_GENERATION_INSTRUCTION
    instructions = {Kind.choice: prompts.CHOICE_INSTRUCTION, Kind.cloze: prompts.CLOZE_INSTRUCTION, Kind.generation: free}
    ask, metrics = _KINDS[kind]
    return Task(
        name=f"{split}_{modality}_{kind}",
        examples=examples,
        ask=ask,
        metrics=metrics,
        higher_is_better=_HIGHER_IS_BETTER[split],
        instruction=instructions[kind],
    )
