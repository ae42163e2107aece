"""What lies outside an evaluation's scores: the expected answers, from the benchmark, and the ratings of a judge."""

from dataclasses import dataclass

import yaml
from omegaconf import DictConfig, OmegaConf

from mmunlearn.benchmarks.base import EVALUATION_SPLITS, Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.errors import UserError
from mmunlearn.judge.ratings import read_ratings
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


def judged(collected: Collected) -> list[Number]:
    """The mean rating of each model's free answers by a judge, for every task that was judged."""
    return [
        Number(evaluation=model, task=task, metric="judge_factuality", estimate=estimate)
        for model in collected.evaluations
        for task in model.tasks
        if (estimate := _judged(model, task)) is not None
    ]


def _judged(model: Evaluation, task: str) -> Estimate | None:
    scores = model.scores.get(task, {})
    ratings = {id_: line["score"] for id_, line in read_ratings(Run(model.path), task).items() if id_ in scores}
    if not ratings:
        return None
    values = [float("nan") if rating is None else float(rating) for rating in ratings.values()]
    return clustered_interval(values, [scores[id_].subject for id_ in ratings], bounds=(1.0, 10.0))
