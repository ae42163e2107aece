"""Portraits with questions and answers before and after: only for reports that may show the subjects."""

import base64
import io
import math
from collections import defaultdict
from dataclasses import dataclass

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.config_enums import Choice
from mmunlearn.data.example import Example, ImageRef, Prediction
from mmunlearn.metrics.probability import first_place, mean_option_log_probs
from mmunlearn.metrics.text import LETTERS, first_letter
from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.report.tables import number
from mmunlearn.report.words import FAMILY_NAMES, kinds_of
from mmunlearn.run import Run, read_json_lines

PEOPLE = {"forget": 6, "retain": 3}
"""How many people of each family are shown, the first of the benchmark's."""
PORTRAIT_SIZE = 160
"""Pixels of the longer side."""
REPLY_LENGTH = 240
"""Longer replies are cut to this many characters, with an ellipsis."""
_KINDS = (*kinds_of("rougeL"), *kinds_of("cloze_accuracy"), *kinds_of("accuracy"))


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one model said."""

    model: str
    text: str
    picked: str
    """The option with the most probable text or letter, where that decides; empty where what it wrote does."""
    verdict: str
    """right, wrong, a score, or “not scored”."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question to all models."""

    question: str
    choices: tuple[str, ...]
    answer: str
    metric: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person of the gallery."""

    name: str
    family: str
    portrait: str
    """A data URI; empty without a picture."""
    asked: tuple[Asked, ...]


def gallery(collected: Collected, benchmark: Benchmark) -> tuple[Person, ...]:
    """The first forget and retain people with one question of each kind and every model's reply.

    Questions that no evaluated model was asked are left out.
    """
    tasks = {task.name: task for task in benchmark.tasks()}
    people = []
    for family, limit in PEOPLE.items():
        names = [name for kind in _KINDS if (name := f"{family}_image_{kind}") in tasks]
        replies = {name: {model.label: _predictions(model, name) for model in collected.evaluations} for name in names}
        by_person: dict[str, list[tuple[str, Example]]] = defaultdict(list)
        for name in names:
            known = {id_ for answers in replies[name].values() for id_ in answers}
            seen: set[str] = set()
            for example in tasks[name].examples:
                if example.id in known and example.subject not in seen:
                    seen.add(example.subject)
                    by_person[example.subject].append((name, example))
        for subject in list(by_person)[:limit]:
            questions = by_person[subject]
            asked = [_asked(collected, name, example, replies[name]) for name, example in questions]
            image = next((example.image for _, example in questions if example.image is not None), None)
            people.append(
                Person(
                    name=subject,
                    family=FAMILY_NAMES[family],
                    portrait=_data_uri(image) if image is not None else "",
                    asked=tuple(asked),
                )
            )
    return tuple(people)


def _asked(collected: Collected, task: str, example: Example, replies: dict[str, dict[str, Prediction]]) -> Asked:
    metric = collected.primary_metric(task)
    return Asked(
        question=example.question,
        choices=tuple(f"{letter}: {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False)),
        answer=example.answer,
        metric=metric,
        replies=tuple(
            Reply(
                model=model.label,
                text=_shown(replies[model.label][example.id].text, example),
                picked=_picked(replies[model.label][example.id], example, collected.choice),
                verdict=_verdict(model, task, example.id, metric),
            )
            for model in collected.evaluations
            if example.id in replies[model.label]
        ),
    )


def _predictions(model: Evaluation, task: str) -> dict[str, Prediction]:
    """By question id; empty if they were not kept."""
    return {line["id"]: Prediction.from_json(line) for line in read_json_lines(Run(model.path).predictions(task))}


def _picked(prediction: Prediction, example: Example, choice: str) -> str:
    if choice == Choice.text:
        return " or ".join(first_place(mean_option_log_probs(prediction), example))
    if choice == Choice.letter:
        return " or ".join(first_place(prediction.option_letter_probabilities, example))
    return ""


def _shown(text: str, example: Example) -> str:
    """The reply, with the option that its letter names, cut to a readable length."""
    text = text.strip()
    if len(text) > REPLY_LENGTH:
        text = text[:REPLY_LENGTH].rstrip() + " …"
    option = first_letter(text, len(example.choices)) if example.choices and len(text) < 4 else None
    return text if option is None else f"{text} ({example.choices[option]})"


def _verdict(model: Evaluation, task: str, id_: str, metric: str) -> str:
    scores = model.scores.get(task, {}).get(id_)
    value = scores.metrics.get(metric, math.nan) if scores else math.nan
    if math.isnan(value):
        return "not scored"
    if metric.startswith("rougeL"):  # a share, also where it happens to be 0 or 1
        return number(value)
    return {1.0: "right", 0.0: "wrong"}.get(value, number(value))


def _data_uri(image: ImageRef) -> str:
    picture = image.open()
    picture.thumbnail((PORTRAIT_SIZE, PORTRAIT_SIZE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
