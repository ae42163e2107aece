"""What a benchmark is: people in splits, questions to train on, and tasks to be evaluated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

from mmunlearn.benchmarks.prompts import Form, Listing
from mmunlearn.config_enums import Modality as Modality
from mmunlearn.config_enums import Protocol as Rules
from mmunlearn.config_enums import Shots
from mmunlearn.data.example import Example, Metric


class Ask(StrEnum):
    """How a task's examples are put to the model."""

    generate = "generate"
    choose = "choose"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """By whose rules a benchmark's questions are asked."""

    protocol: Rules = Rules.fixed
    shots: Shots = Shots.zero_shot


AS_EVER = Asking()
"""The default: our own rules, without solved questions."""


class Splits:
    """The questions to train on, by what a run does with the people in them; each is read when it is first asked for."""

    def __init__(self, read: Callable[[str], tuple[Example, ...]]) -> None:
        """Remember how to read a split.

        Args:
            read: from a split's name (forget, retain, full) to its questions.
        """
        self._read = read

    @cached_property
    def forget(self) -> tuple[Example, ...]:
        """The people to be forgotten."""
        return self._read("forget")

    @cached_property
    def retain(self) -> tuple[Example, ...]:
        """The others."""
        return self._read("retain")

    @cached_property
    def full(self) -> tuple[Example, ...]:
        """Everybody, as the vanilla model is fine-tuned; not always the union of the other two in the published files."""
        return self._read("full")


EVALUATION_SPLITS = ("forget", "test", "reworded", "retain", "real", "holdout", "general")
"""The groups of questions that tasks are named after, in the order of a report."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of a result table: a set of questions of one kind.

    The name is `{forget|test|reworded|retain|real|holdout|general}_{image|text}_{kind}`. Kinds of multiple choice are
    `choice` and `recognition` (who is it?); of a gap `cloze`; of free answers `generation`, `caption` and `qa`. What is
    said of a kind in reports is in `mmunlearn.report.words`.
    """

    name: str
    examples: tuple[Example, ...]
    ask: Ask
    metrics: Mapping[str, Metric]
    """Metric names are the project's, see `mmunlearn.metrics`."""
    higher_is_better: bool | None
    """For the goal `erase`; None where the task is no goal in itself."""
    instruction: str = ""
    """Appended to the question when the model is asked to generate, as the published evaluators do."""
    max_new_tokens: int = 50
    version: str = "1"
    form: Form | None = None
    """The raw text around a question; None: the model's chat template."""
    listing: Listing | None = None
    """Of multiple choice: how a published script lists the options and lets the model write; None: our own way."""
    accuracy: str = ""
    """Of multiple choice: the metric that is reported as `accuracy`; empty: the one that `evaluation.choice` names."""


class Benchmark(Protocol):
    """A data set, opened."""

    @property
    def name(self) -> str:
        """Short name, as it stands in results."""

    @property
    def version(self) -> str:
        """Raised when prompts, splits or scoring change; reports refuse to mix versions."""

    def splits(self) -> Splits:
        """The training questions."""

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks about some groups of people, in the order of a report.

        Raises:
            ConfigError: a group is unknown, or the benchmark cannot be asked in this way.
        """

    def problems(self) -> Mapping[str, int]:
        """Flaws of the published files that were tolerated, with their counts."""
