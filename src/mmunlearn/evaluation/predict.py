"""Put the questions of tasks to a model and keep all that it said, one line an answer, so that any stop loses little."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmunlearn.benchmarks.base import Task
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.requests import prediction_key
from mmunlearn.models.families import FAMILIES
from mmunlearn.progress import progress
from mmunlearn.run import Run, append_json_line, read_json_lines, write_json_lines

GROUP_BATCHES = 4
"""Batches between two writes: a killed evaluation loses at most so many."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The questions of one task, as they are put to one model in one way."""

    task: Task
    run: Run
    """Where `predictions/<task>.jsonl` lies."""
    model: str
    """Fingerprint of the model."""
    settings: Mapping[str, Any]
    """What decides the answers besides; stored with each and part of its key."""

    def key(self, example: Example) -> str:
        """Identifies the answer to one of the questions."""
        return prediction_key(self.model, self.task, example, self.settings)


def check_family(tasks: Sequence[Task], model_type: str) -> None:
    """Make sure that raw prompts are put only to models that they are written for.

    Raises:
        ConfigError: they are not written for models of this type.
    """
    known = [name for name, each in FAMILIES.items() if each.published_prompts]
    if model_type not in known and any(task.form is not None for task in tasks):
        raise ConfigError(
            f"evaluation.protocol=official: the published prompts are there for models of type {', '.join(known)}, not for "
            f"{model_type!r}. Ask with evaluation.protocol=fixed."
        )


def predict_all(asker: Asker, everything: Sequence[Asked]) -> int:
    """Answer the questions of several tasks that are not answered yet, under one bar that knows the time left.

    Returns:
        The number of questions that had been answered before.
    """
    still_open = [open_questions(asked) for asked in everything]
    total = sum(len(asked.task.examples) for asked in everything)
    done = total - sum(map(len, still_open))
    with progress(desc="questions", unit="question", total=total, initial=done, smoothing=0.0) as bar:
        for asked, examples in zip(everything, still_open, strict=True):
            if not examples:
                continue
            bar.set_postfix_str(asked.task.name, refresh=False)
            answer(asker, asked, examples, asked.run.predictions(asked.task.name), bar.update)
    return done


def open_questions(asked: Asked) -> list[Example]:
    """The questions without an answer, after the task's file was put in order.

    What a run of several processes has left is merged into it. Stale answers go, and so does a line cut off by a kill;
    answers to questions that are not asked now (`evaluation.limit`) stay.
    """
    merge_parts(asked.run, asked.task.name)
    keys = {example.id: asked.key(example) for example in asked.task.examples}
    path = asked.run.predictions(asked.task.name)
    kept = [record for record in read_json_lines(path) if keys.get(record["id"], record["key"]) == record["key"]]
    write_json_lines(path, kept)
    done = {record["id"] for record in kept}
    return [example for example in asked.task.examples if example.id not in done]


def answer(asker: Asker, asked: Asked, examples: Sequence[Example], path: Path, tell: Callable[[int], Any]) -> None:
    """Answer some questions of a task and append each answer to a file as soon as it is there.

    Args:
        asker: the model.
        asked: the task that the questions belong to.
        examples: the questions.
        path: the file.
        tell: called with the number of new lines in it.
    """
    examples = asker.ordered(examples, asked.task)
    group = asker.batch_size * GROUP_BATCHES
    for start in range(0, len(examples), group):
        own = examples[start : start + group]
        for example, prediction in zip(own, asker.predictions(own, asked.task), strict=True):
            complete = replace(prediction, settings=dict(asked.settings), key=asked.key(example))
            append_json_line(path, complete.to_json())
            tell(1)


def merge_parts(run: Run, task: str) -> None:
    """Move the answers that single processes wrote into the task's file; each answer stays once.

    The task's file is replaced before the parts are deleted: a kill in between loses nothing, and the next merge drops
    what is there twice.
    """
    parts = run.prediction_parts(task)
    if not parts:
        return
    path = run.predictions(task)
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for file in (path, *parts):
        for record in read_json_lines(file):
            kept.setdefault((record["id"], record["key"]), record)
    write_json_lines(path, kept.values())
    for part in parts:
        part.unlink(missing_ok=True)
