"""Any benchmark with other people to be forgotten: those that are named, whichever side it had put them on."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from mmunlearn.benchmarks.base import AS_EVER, EVALUATION_SPLITS, Asking, Benchmark, Splits, Task
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import TARGET
from mmunlearn.config_check import checked
from mmunlearn.data.example import Example
from mmunlearn.data.subjects import normal_name
from mmunlearn.errors import ConfigError, DataError, did_you_mean

SIDES = ("forget", "retain")
OF_FORGET_PEOPLE = ("test", "reworded")
"""Groups of questions that a benchmark has about its own forget people only."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A benchmark split anew, by person.

    - to train on: `forget` are the questions about the people named, `retain` those about everybody else but `earlier`, of all
      that the other benchmark has in its forget and retain splits;
    - to evaluate: its forget and retain tasks are pooled and split in the same way. Its questions about its own forget people
      in other pictures or words (`test`, `reworded`) are kept where they are about the people named; it has none about others.

    A task of which nothing is left is left out.
    """

    of: Any = None
    """The section of the other benchmark: `_target_` and its fields."""
    forget: list[str] = field(default_factory=list)
    """Whom to forget, as its subjects are called."""
    earlier: list[str] = field(default_factory=list)
    """People who were to be forgotten earlier: neither forgotten again nor kept."""

    def __post_init__(self) -> None:
        """Check the settings; nothing is read yet.

        Raises:
            ConfigError: no benchmark is named, nobody is, or somebody is named twice.
        """
        if not isinstance(self.of, Mapping) or TARGET not in self.of:
            raise ConfigError(
                f"data.of: name the benchmark that is to be split anew, a section with {TARGET} and its settings."
            )
        if not self.forget:
            raise ConfigError("data.forget: nobody is to be forgotten. Name people: 'data.forget=[ID,ID]'.")
        names = [normal_name(name) for name in (*self.forget, *self.earlier)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"data.forget, data.earlier: {twice[0]!r} is named more than once.")

    @property
    def name(self) -> str:
        """Its numbers do not compare with those of the benchmark as it is."""
        return f"{self._other.name}, chosen people"

    @property
    def version(self) -> str:
        """Of the other benchmark."""
        return self._other.version

    def splits(self) -> Splits:
        """The training questions.

        Raises:
            DataError: nobody of that name is in the benchmark.
        """
        return Splits(self._split)

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks, in the order of a report.

        Raises:
            ConfigError: see the other benchmark.
            DataError: nobody of that name is in the benchmark.
        """
        asked = [*SIDES, *(split for split in splits if split not in SIDES)] if set(splits) & set(SIDES) else list(splits)
        own = self._other.tasks(tuple(asked), asking)
        pools: dict[str, list[Example]] = {}
        for task in own:
            side, _, kind = task.name.partition("_")
            if side in SIDES:
                pools.setdefault(kind, []).extend(task.examples)
        found = []
        for task in own:
            side, _, kind = task.name.partition("_")
            if side not in splits:
                continue
            examples = self._about(task.examples, side) if side in OF_FORGET_PEOPLE else list(task.examples)
            if side in SIDES:
                examples = self._about(pools[kind], side)
            if examples:
                found.append(replace(task, examples=tuple(examples)))
        return tuple(found)

    def problems(self) -> Mapping[str, int]:
        """Of the other benchmark."""
        return self._other.problems()

    @cached_property
    def _other(self) -> Benchmark:
        return open_benchmark(checked(OmegaConf.create({"data": dict(self.of)})).data)

    @cached_property
    def _everybody(self) -> tuple[Example, ...]:
        splits = self._other.splits()
        return tuple({example.id: example for example in (*splits.forget, *splits.retain)}.values())

    def _split(self, split: str) -> tuple[Example, ...]:
        check_known((*self.forget, *self.earlier), self._everybody)
        return self._everybody if split == "full" else tuple(self._about(self._everybody, split))

    def _about(self, examples: Iterable[Example], side: str) -> list[Example]:
        """The questions about the people of one side."""
        wanted: Callable[[str], bool] = self._is_retained if side == "retain" else self._is_forgotten
        return [example for example in examples if wanted(normal_name(example.subject))]

    def _is_forgotten(self, name: str) -> bool:
        return name in self._names(self.forget)

    def _is_retained(self, name: str) -> bool:
        return name not in self._names(self.forget) | self._names(self.earlier)

    @staticmethod
    def _names(people: Collection[str]) -> frozenset[str]:
        return frozenset(map(normal_name, people))


def check_known(people: Iterable[str], examples: Iterable[Example]) -> None:
    """Make sure that there are training questions about everybody named.

    Raises:
        DataError: there are none about somebody.
    """
    known = {normal_name(example.subject): example.subject for example in examples}
    for person in people:
        if normal_name(person) not in known:
            raise DataError(f"data.forget: nobody is called {person!r}. {did_you_mean(person, list(known.values()))}")
