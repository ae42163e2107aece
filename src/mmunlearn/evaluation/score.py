"""From stored predictions to numbers with intervals. Needs no model and imports no torch: run it anywhere, any time."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmunlearn.benchmarks.base import Ask, Asking, Benchmark, Task
from mmunlearn.config_enums import Choice, Protocol
from mmunlearn.data.example import Example, Prediction
from mmunlearn.errors import RunError
from mmunlearn.evaluation.requests import prediction_key
from mmunlearn.evaluation.ties import is_near_choice, is_near_tie
from mmunlearn.metrics.cards import bounds_of
from mmunlearn.metrics.statistics import clustered_interval
from mmunlearn.run import Run, fingerprint, read_json_lines, write_json, write_json_lines

SCHEMA = 1


def score(run: Run, benchmark: Benchmark, tasks: Sequence[Task], *, asking: Asking, choice: Choice) -> dict[str, Any]:
    """Score every task of an evaluation; writes `scores/<task>.jsonl` and `results.json`.

    Args:
        run: where the predictions are.
        benchmark: for its name and version.
        tasks: what was asked.
        asking: named in the results, so that reports mix neither protocols nor few-shot with zero-shot.
        choice: which choice score is `accuracy`; without effect under the published rules.

    Returns:
        The content of `results.json`.

    Raises:
        RunError: a question has no prediction, or it is not known which model was asked.
    """
    if not run.model_card.is_file():
        raise RunError(f"{run.root} holds no predictions (model.json is missing). Run `mmunlearn predict run.dir={run.root}`.")
    answers = {task.name: own_predictions(run, task) for task in tasks}
    decides = None if asking.protocol is Protocol.official else choice  # the published rules read the reply
    results = {
        "schema": SCHEMA,
        "benchmark": {
            "name": benchmark.name,
            "version": benchmark.version,
            "protocol": str(asking.protocol),
            "shots": str(asking.shots),
            "choice": str(choice),
            "questions": questions_fingerprint(tasks),
        },
        "model": json.loads(run.model_card.read_text()),
        "tasks": {task.name: _score_answers(run, task, answers[task.name], choice) for task in tasks},
        "problems": dict(benchmark.problems()),
        "near_ties": {task.name: _near_ties(task, answers[task.name], decides) for task in tasks},
    }
    write_json(run.results, results)
    return results


def questions_fingerprint(tasks: Sequence[Task]) -> str:
    """Identifies what was asked, so that numbers about other people or questions are not compared."""
    return fingerprint(
        [[task.name, [(*_asked(e), e.shown_first()) if e.shots else _asked(e) for e in task.examples]] for task in tasks]
    )


def _asked(e: Example) -> tuple[Any, ...]:
    return e.id, e.question, e.answer, e.choices, e.image.key if e.image else "", *([e.compared()] if e.perturbed else [])


def score_task(run: Run, task: Task, choice: Choice) -> dict[str, Any]:
    """Score one task; returns its metrics, each with interval and counts.

    Raises:
        RunError: a question has no prediction.
    """
    return _score_answers(run, task, own_predictions(run, task), choice)


def _score_answers(run: Run, task: Task, predictions: Mapping[str, Prediction], choice: Choice) -> dict[str, Any]:
    missing = [example.id for example in task.examples if example.id not in predictions]
    if missing:
        raise RunError(
            f"{run.predictions(task.name)}: {len(missing)} of {len(task.examples)} questions have no answer, "
            f"the first is {missing[0]}. Run `mmunlearn predict run.dir={run.root}`; it goes on where it stopped."
        )
    rows = [(example, _metrics(task, predictions[example.id], example, choice)) for example in task.examples]
    write_json_lines(
        run.scores(task.name),
        (
            {"id": example.id, "subject": example.subject, "metrics": {name: _null(value) for name, value in metrics.items()}}
            for example, metrics in rows
        ),
    )
    subjects = [example.subject for example, _ in rows]
    return {name: _estimate(name, [metrics[name] for _, metrics in rows], subjects) for name in (rows[0][1] if rows else ())}


def _near_ties(task: Task, predictions: Mapping[str, Prediction], choice: Choice | None) -> list[str]:
    """The questions whose reply, or whose option that counts, hangs on a near-tie."""

    def hangs(example: Example) -> bool:
        prediction = predictions[example.id]
        if is_near_tie(prediction):
            return True
        # The likelihoods of captions that are compared are those of no options.
        return choice is not None and bool(example.choices) and is_near_choice(prediction, choice)

    return [example.id for example in task.examples if hangs(example)]


def own_predictions(run: Run, task: Task) -> dict[str, Prediction]:
    """The stored answers by example id, without those of another model or to another question."""
    model = json.loads(run.model_card.read_text())["fingerprint"]
    examples = {example.id: example for example in task.examples}
    stored = map(Prediction.from_json, read_json_lines(run.predictions(task.name)))
    return {
        answer.id: answer
        for answer in stored
        if answer.id in examples and answer.key == prediction_key(model, task, examples[answer.id], answer.settings)
    }


def _metrics(task: Task, prediction: Prediction, example: Any, choice: Choice) -> dict[str, float]:
    values = {name: metric(prediction, example) for name, metric in task.metrics.items()}
    if task.ask is Ask.choose:
        return {"accuracy": values[task.accuracy or f"option_{choice}_accuracy"], **values}
    return values


def _estimate(name: str, values: Sequence[float], subjects: Sequence[str]) -> Mapping[str, Any]:
    found = clustered_interval(values, subjects, bounds=bounds_of(name))
    return {
        "value": _null(found.value),
        "low": _null(found.low),
        "high": _null(found.high),
        "count": found.count,
        "unscored": found.unscored,
    }


def _null(value: float) -> float | None:
    """NaN does not exist in JSON."""
    return None if math.isnan(value) else value
