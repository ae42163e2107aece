"""What is asked about one example: the texts that a model reads and the answers whose likelihood is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mmunlearn.benchmarks.base import AS_EVER, Ask, Asking, Benchmark, Task
from mmunlearn.benchmarks.prompts import LETTERS, LISTING, listed_choice, with_instruction
from mmunlearn.config_enums import Choice, Protocol
from mmunlearn.data.example import Example, drawn
from mmunlearn.errors import ConfigError
from mmunlearn.run import fingerprint

LETTER_TOKENS = 5
"""Enough for a letter with a space or a bracket before it; the first alphanumeric character is the reply."""


def chosen_tasks(benchmark: Benchmark, splits: Sequence[str], limit: int, asking: Asking = AS_EVER) -> tuple[Task, ...]:
    """The tasks of the chosen groups of people, each with `limit` questions (0: all).

    Raises:
        ConfigError: a group is unknown, or the benchmark has no question about any of them or cannot ask in this way.
    """
    tasks = benchmark.tasks(splits, asking)
    if not tasks:
        raise ConfigError(f"evaluation.splits: {benchmark.name} has no question about {', '.join(splits) or 'nobody'}.")
    return tuple(replace(task, examples=drawn(task.examples, limit)) for task in tasks)


def check_choice(asking: Asking, choice: Choice) -> None:
    """Make sure that no choice score is asked for that the rules do not know.

    Raises:
        ConfigError: the published rules count the letter that the model writes.
    """
    if asking.protocol is Protocol.official and choice is Choice.text:
        raise ConfigError(
            "evaluation.choice: text, but the published rules (evaluation.protocol=official) count the letter that the model "
            "writes. Leave evaluation.choice out."
        )


def reply_limit(task: Task) -> int:
    """Tokens that a reply may have; published scripts let the model write on behind its letter."""
    if task.ask is Ask.choose and task.form is None and task.listing is None:
        return LETTER_TOKENS
    return task.max_new_tokens


def question_to_generate(example: Example, task: Task) -> Example:
    """The example as it is put to a model that is to write; for multiple choice, with the options listed."""
    if task.ask is Ask.choose:
        return _listed(example, example.choices, task)
    question = with_instruction(example.question, task.instruction)
    instruction = "" if task.form is not None and not task.form.shots_instructed else task.instruction
    shots = [replace(shot, question=with_instruction(shot.question, instruction)) for shot in example.shots]
    return _written(replace(example, question=question, shots=tuple(shots)), task)


def _listed(example: Example, options: Sequence[str], task: Task) -> Example:
    """The question with its options listed in an order; the solved ones before it are answered by their letters."""
    listing = task.listing or LISTING
    question = listed_choice(example.question, options, task.instruction, listing)
    instruction = "" if task.form is not None and not task.form.shots_instructed else task.instruction
    shots = [
        replace(
            shot,
            question=listed_choice(shot.question, shot.choices, instruction, listing),
            answer=LETTERS[shot.choices.index(shot.answer)],
        )
        for shot in example.shots
    ]
    return _written(replace(example, question=question, shots=tuple(shots)), task)


def _written(example: Example, task: Task) -> Example:
    """The whole text where a task has a form of its own; otherwise the chat template is left to write it."""
    if task.form is None:
        return example
    return replace(example, question=task.form.write(example.question, example.shots), verbatim=True)


def option_examples(example: Example, task: Task) -> list[Example]:
    """The plain question with each option's text as its answer."""
    return [_written(replace(example, answer=option), task) for option in example.choices]


def compared_examples(example: Example, task: Task) -> list[Example]:
    """The question with each answer that is compared with the expected one (`Example.compared`); none where there are none.

    The prompt is the one that the model is asked with when it writes.
    """
    request = question_to_generate(example, task)
    return [replace(request, answer=answer) for answer in example.compared()]


def letter_examples(example: Example, task: Task) -> list[Example]:
    """The listed question for every cyclic order of the options; the answer is a placeholder letter.

    In order `shift`, letter number `i` stands for option `(i + shift) % k`.
    """
    options = example.choices
    return [
        replace(_listed(example, options[shift:] + options[:shift], task), answer=LETTERS[0]) for shift in range(len(options))
    ]


def prediction_key(model: str, task: Task, example: Example, settings: Mapping[str, Any]) -> str:
    """Identifies an answer by all that decides it, so that answers of another model or question are never taken for it."""
    image = example.image.key if example.image is not None else ""
    content: list[Any] = [example.id, example.question, example.answer, example.choices, image]
    content += [example.shown_first()] if example.shots else []
    content += [asdict(task.form)] if task.form is not None else []
    content += [asdict(task.listing)] if task.listing is not None else []
    content += [example.compared(), bool(example.paraphrase)] if example.compared() else []
    return fingerprint([model, task.name, task.version, task.instruction, task.max_new_tokens, content, dict(settings)])
