"""What lies outside an evaluation's scores: the expected answers, from the benchmark, and the ratings of a judge."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import yaml
from omegaconf import DictConfig, OmegaConf

from mmunlearn.benchmarks.base import EVALUATION_SPLITS, Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.errors import UserError
from mmunlearn.judge.ratings import JudgedBy, Rating, judge_name, read_ratings
from mmunlearn.metrics.cards import CARDS
from mmunlearn.metrics.statistics import Estimate, clustered_interval
from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.report.compared import Number
from mmunlearn.report.words import FORGET_FAMILIES, parse_task
from mmunlearn.run import Run


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The expected answers of the questions about forget people and the holdout."""

    by_id: dict[str, str]
    missing: str
    """Why there are none; empty if there are."""


def expected_answers(collected: Collected, benchmark: Benchmark | None) -> Answers:
    """Read the answers from the benchmark that the evaluations recorded; a benchmark that cannot be opened is no error.

    They are needed to pair questions and to compress answers, and are never shown. Nothing is read where no such questions
    were asked.

    Args:
        collected: the report's data.
        benchmark: if it is open already.
    """
    families = {parse_task(task).family for task in collected.task_names()} & {*FORGET_FAMILIES, "holdout"}
    if "forget" not in families:
        return Answers(by_id={}, missing="no task asked about the forget people")
    try:
        opened = benchmark or _recorded(collected)
        if opened is None:
            return Answers(by_id={}, missing="no evaluation recorded which benchmark it asked")
        tasks = opened.tasks([split for split in EVALUATION_SPLITS if split in families])
    except UserError as error:
        return Answers(by_id={}, missing=f"the benchmark could not be opened: {error}")
    return Answers(by_id={example.id: example.answer for task in tasks for example in task.examples}, missing="")


def _recorded(collected: Collected) -> Benchmark | None:
    """The benchmark of the first evaluation that recorded one."""
    for model in collected.evaluations:
        config = OmegaConf.create(yaml.safe_load(model.record.config) or {})
        if isinstance(config, DictConfig) and OmegaConf.select(config, "data._target_"):
            return open_benchmark(config.data)
    return None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The ratings of a report."""

    numbers: tuple[Number, ...] = ()
    """The mean rating of each model's free answers, for every task that was judged; `of` names the judge."""
    notes: tuple[str, ...] = ()
    """What a reader must know of them."""


def judged(collected: Collected) -> Judged:
    """The ratings of the answers that the scores are about.

    Where several judges rated a model's answers, the one with most of them counts. Ratings of answers that have since been
    replaced do not, and are named.
    """
    found = {
        (model.label, task): (model, read_ratings(Run(model.path), task, model.scores.get(task, {})))
        for model in collected.evaluations
        for task in model.tasks
    }
    by_judge: dict[str, list[str]] = {}
    for (label, _), (_, rated) in found.items():
        if rated.lines:
            by_judge.setdefault(judge_name(rated.judge), []).append(label)
    names = _short_names([rated.judge for _, rated in found.values() if rated.lines])
    numbers = [
        Number(evaluation=model, task=task, metric="judge_factuality", of=names[judge_name(rated.judge)], estimate=estimate)
        for (_, task), (model, rated) in found.items()
        if (estimate := _mean_rating(model, task, rated.lines)) is not None
    ]
    replaced = [f"{label}, {task}: {rated.replaced}" for (label, task), (_, rated) in found.items() if rated.replaced]
    return Judged(numbers=tuple(numbers), notes=tuple([*_different(by_judge, names), *_stale(replaced)]))


def _mean_rating(model: Evaluation, task: str, ratings: Mapping[str, Rating]) -> Estimate | None:
    """Clustered by person; None if nothing was rated."""
    if not ratings:
        return None
    values = [math.nan if line["score"] is None else float(line["score"]) for line in ratings.values()]
    scores = model.scores[task]
    return clustered_interval(values, [scores[id_].subject for id_ in ratings], bounds=CARDS["judge_factuality"].range)


def _short_names(judges: Iterable[JudgedBy]) -> dict[str, str]:
    """By full name: the model's name alone, where that tells the judges apart."""
    models = {judge_name(judge): str(judge.get("model", "?")) for judge in judges}
    counts = Counter(models.values())
    return {full: short if counts[short] == 1 else full for full, short in models.items()}


def _different(by_judge: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> list[str]:
    """A word on ratings that do not compare."""
    if len(by_judge) < 2:
        return []
    listing = "; ".join(f"{names[judge]}: {', '.join(dict.fromkeys(labels))}" for judge, labels in by_judge.items())
    return [f"Not all ratings are by the same judge ({listing}). Ratings of different judges do not compare."]


def _stale(replaced: Sequence[str]) -> list[str]:
    """A word on ratings that count no more."""
    if not replaced:
        return []
    return [
        f"Left out: ratings of answers that have been replaced since, or of which that cannot be told ({'; '.join(replaced)}). "
        "`mmunlearn judge` rates what changed, and asks nothing twice."
    ]
