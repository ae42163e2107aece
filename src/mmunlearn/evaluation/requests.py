"""What is asked about one example: the texts that a model reads and the answers whose likelihood is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmunlearn.benchmarks.base import Ask, Benchmark, Task
from mmunlearn.benchmarks.prompts import LETTERS, listed_choice, with_instruction
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError
from mmunlearn.run import fingerprint

LETTER_TOKENS = 5
"""Enough for a letter with a space or a bracket before it; the first alphanumeric character is the reply."""


def chosen_tasks(benchmark: Benchmark, splits: Sequence[str], limit: int) -> tuple[Task, ...]:
    """The tasks of the chosen groups of people, each with `limit` questions (0: all).

    Raises:
        ConfigError: a group is unknown, or the benchmark has no question about any of them.
    """
    tasks = benchmark.tasks(splits)
    if not tasks:
        raise ConfigError(f"evaluation.splits: {benchmark.name} has no question about {', '.join(splits) or 'nobody'}.")
    return tuple(replace(task, examples=_spread(task.examples, limit)) if limit else task for task in tasks)


def _spread(examples: Sequence[Example], limit: int) -> tuple[Example, ...]:
    """So many examples, drawn by their ids alone: the first ones would be about one person, every k-th one of a kind."""
    drawn = sorted(examples, key=lambda example: fingerprint(example.id))[:limit]
    chosen = {example.id for example in drawn}
    return tuple(example for example in examples if example.id in chosen)


def question_to_generate(example: Example, task: Task) -> Example:
    """The example as it is put to a model that is to write; for multiple choice, with the options listed."""
    if task.ask is Ask.choose:
        return replace(example, question=listed_choice(example.question, example.choices, task.instruction))
    return replace(example, question=with_instruction(example.question, task.instruction))


def option_examples(example: Example) -> list[Example]:
    """The plain question with each option's text as its answer."""
    return [replace(example, answer=option) for option in example.choices]


def letter_examples(example: Example, task: Task) -> list[Example]:
    """The listed question for every cyclic order of the options; the answer is a placeholder letter.

    In order `shift`, letter number `i` stands for option `(i + shift) % k`.
    """
    options = example.choices
    return [
        replace(
            example,
            question=listed_choice(example.question, options[shift:] + options[:shift], task.instruction),
            answer=LETTERS[0],
        )
        for shift in range(len(options))
    ]


def prediction_key(model: str, task: Task, example: Example, settings: Mapping[str, Any]) -> str:
    """Identifies an answer by all that decides it, so that answers of another model or question are never taken for it."""
    image = example.image.key if example.image is not None else ""
    content = [example.id, example.question, example.answer, example.choices, image]
    return fingerprint([model, task.name, task.version, task.instruction, task.max_new_tokens, content, dict(settings)])
