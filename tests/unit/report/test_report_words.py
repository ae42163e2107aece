"""The names of tasks: every kind has a metric, a table and a title, those of CLEAR too."""

from pathlib import Path

import pytest

from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS
from mmunlearn.metrics.statistics import clustered_interval
from mmunlearn.report import verdict, words
from mmunlearn.report.collect import Collected, Evaluation, QuestionScores, Record
from mmunlearn.report.condition import usefulness
from mmunlearn.report.narrative import narrative
from mmunlearn.report.tables import summaries, terminal_table

CLEAR_TASKS = {
    "forget_image_recognition": "accuracy", "forget_image_caption": "rougeL", "forget_text_qa": "rougeL",
    "retain_image_recognition": "accuracy", "retain_image_caption": "rougeL", "retain_text_qa": "rougeL",
    "real_image_recognition": "accuracy", "general_image_choice": "accuracy",
}  # fmt: skip
CHANCE = {task: 0.25 for task, metric in CLEAR_TASKS.items() if metric == "accuracy"}


def model(role, share):
    """A model that reaches a share on every task, give or take a little from person to person."""
    scores = {
        task: {
            f"{person}-{number}": QuestionScores(subject=f"p{person}", metrics={metric: share + 0.01 * (person % 3 - 1)})
            for person in range(12)
            for number in range(4)
        }
        for task, metric in CLEAR_TASKS.items()
    }
    tasks = {
        task: {metric: clustered_interval([q.metrics[metric] for q in own.values()], [q.subject for q in own.values()])}
        for (task, own), metric in zip(scores.items(), CLEAR_TASKS.values(), strict=True)
    }
    record = Record(config="", environment={}, goal="erase")
    return Evaluation(
        path=Path("none"), label=role, role=role, method="m", seed=0, fingerprint="f", tasks=tasks, scores=scores, record=record
    )  # fmt: skip


@pytest.fixture(scope="module")
def study():
    models = (model("vanilla", 0.9), model("gold", 0.3), model("unlearned", 0.3))
    return Collected(
        benchmark="clear", version="1", protocol="fixed", evaluations=models, trainings=(), chance=CHANCE, notes=()
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "metric"), words.PRIMARY.items())
def test_every_kind_has_a_metric_that_tasks_are_scored_by(kind, metric):
    scored = {"accuracy"} | CHOICE_METRICS.keys() | CLOZE_METRICS.keys() | GENERATION_METRICS.keys()
    assert metric in scored
    assert metric in words.METRIC_CARDS
    task = f"forget_image_{kind}"
    assert words.primary_metric(task) == metric
    assert kind in words.kinds_of(metric)
    assert words.has_options(task) == (metric == "accuracy")


def test_task_titles():
    assert words.task_title("forget_image_recognition") == "Forget, image, recognition"
    assert words.task_title("retain_text_qa") == "Retain, text, questions and answers"
    assert words.task_title("real_image_recognition") == "Real people, image, recognition"


def test_headlines_of_clear_are_recognition_and_questions(study):
    assert verdict.headline_tasks(study, ["forget", "retain", "real", "general"]) == (
        "forget_image_recognition", "forget_text_qa", "retain_image_recognition", "retain_text_qa",
        "real_image_recognition", "general_image_choice",
    )  # fmt: skip


def test_tables_show_every_task_of_clear_once(study):
    tables = summaries(study)
    assert [table.title for table in tables] == ["Multiple choice", "Captions", "Questions and answers"]
    shown = [column.task for table in tables for column in table.columns]
    assert sorted(shown) == sorted(CLEAR_TASKS)
    assert [column.chance for column in tables[0].columns] == [0.25] * 4
    assert [column.chance for table in tables[1:] for column in table.columns] == [None] * 4
    assert terminal_table(study).row_count == len(study.evaluations)


OFFICIAL_CLEAR = {
    "forget_image_recognition": ("accuracy", "truth_ratio"),
    "forget_image_generation": ("rougeL_recall", "rougeL", "truth_ratio"),
    "forget_image_caption": ("rougeL_recall", "rougeL", "truth_ratio"), "forget_text_qa": ("rougeL", "rougeL_recall"),
    "retain_image_generation": ("rougeL_recall", "rougeL", "truth_ratio"),
}  # fmt: skip
"""Tasks of CLEAR under the published rules, with metrics in the order of the results."""


def test_every_kind_of_clears_own_evaluation_has_a_table_by_its_own_metric():
    def measured(at, role):
        tasks = {
            task: {metric: clustered_interval([0.1 * (at + place)] * 2, ["a", "b"]) for place, metric in enumerate(metrics)}
            for task, metrics in OFFICIAL_CLEAR.items()
        }
        record = Record(config="", environment={}, goal="erase")
        return Evaluation(
            path=Path("none"), label=role, role=role, method="m", seed=0, fingerprint="f", tasks=tasks, scores={}, record=record
        )  # fmt: skip

    models = (measured(1, "vanilla"), measured(2, "gold"))
    study = Collected(
        benchmark="clear", version="3", protocol="official", evaluations=models, trainings=(), chance={}, notes=()
    )  # fmt: skip
    tables = {(table.title, table.metric): [column.task for column in table.columns] for table in summaries(study)}
    assert tables == {
        ("Multiple choice", "accuracy"): ["forget_image_recognition"],
        ("Free answers", "rougeL_recall"): ["forget_image_generation", "retain_image_generation"],
        ("Captions", "rougeL_recall"): ["forget_image_caption"],
        ("Questions and answers", "rougeL"): ["forget_text_qa"],
        ("Truth ratio", "truth_ratio"): ["forget_image_recognition"],
        ("Truth ratio of free answers", "truth_ratio"): ["forget_image_generation", "retain_image_generation"],
        ("Truth ratio of captions", "truth_ratio"): ["forget_image_caption"],
    }
    assert {gate.task: gate.metric for gate in verdict.gates(study)} == {
        task: metrics[0] for task, metrics in OFFICIAL_CLEAR.items() if task.startswith("forget")
    }
    components = usefulness(study)[0].components
    assert components == {"Retain, image, generation: ROUGE-L recall": pytest.approx(0.1)}


def test_verdict_and_words_on_clear(study):
    assert {gate.task: gate.state for gate in verdict.gates(study)} == {
        task: verdict.MEMORISED for task in CLEAR_TASKS if task.startswith("forget")
    }
    found = narrative(study)
    assert "the 12 forget people (image, recognition)" in found.known
    assert "Guessing gets 0.25." in found.known
    assert "text 0.30" in found.methods[0]
