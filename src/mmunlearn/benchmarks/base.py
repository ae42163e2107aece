"""What a benchmark is: people in splits, questions to train on, and tasks to be evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mmunlearn.data.example import Example, Metric


class Ask(StrEnum):
    """How a task's examples are put to the model."""

    generate = "generate"
    choose = "choose"
    likelihood = "likelihood"


class Modality(StrEnum):
    """With or without the picture."""

    image = "image"
    text = "text"
    both = "both"


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The questions to train on, by what a run does with the people in them."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    full: tuple[Example, ...]
    """Everybody, as the vanilla model is fine-tuned; not always the union of the other two in the published files."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of a result table: a set of questions of one kind.

    The name is `{forget|test|reworded|retain|real|holdout|general}_{image|text}_{choice|cloze|generation}`.
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


class Benchmark(Protocol):
    """A data set, opened."""

    @property
    def name(self) -> str:
        """Short name, as it stands in results."""

    @property
    def version(self) -> str:
        """Raised when prompts, splits or scoring change; reports refuse to mix versions."""

    def splits(self) -> Splits:
        """The training questions. Reads and checks the files on the first call."""

    def tasks(self) -> tuple[Task, ...]:
        """The evaluation tasks, in the order of a report."""

    def problems(self) -> Mapping[str, int]:
        """Flaws of the published files that were tolerated, with their counts."""
