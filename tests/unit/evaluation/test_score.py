import json
import math
import os
import pkgutil
import subprocess
import sys
from dataclasses import replace

import pytest

import mmunlearn
from mmunlearn.benchmarks.base import AS_EVER, Ask, Task
from mmunlearn.config_enums import Choice
from mmunlearn.data.example import Example, Prediction
from mmunlearn.errors import RunError
from mmunlearn.evaluation.requests import prediction_key
from mmunlearn.evaluation.score import score, score_task
from mmunlearn.metrics.catalog import CHOICE_METRICS, GENERATION_METRICS
from mmunlearn.run import Run, append_json_line, read_json_lines, write_json, write_json_lines

MODEL = {"fingerprint": "feed", "role": "vanilla", "method": "FineTune", "seed": 1}
SETTINGS = {"protocol": "fixed"}
CHOICES = ("red", "green", "blue", "black")


class Fake:
    name, version = "fake", "7"
    problems = dict


def task(ask=Ask.choose, count=4, **settings):
    examples = tuple(
        Example(
            id=f"q{n}", question="Which?", answer="green", choices=CHOICES if ask is Ask.choose else (), subject=f"p{n // 2}"
        )
        for n in range(count)
    )
    metrics = CHOICE_METRICS if ask is Ask.choose else GENERATION_METRICS
    return Task(name="forget_text_x", examples=examples, ask=ask, metrics=metrics, higher_is_better=False, **settings)


def prediction(of, number, *, letter=0.7, text_option=1, reply="B", model="feed", **fields):
    """Green (the answer) gets the letter probability `letter`; the option `text_option` has the likeliest text."""
    rest = (1 - letter) / 3
    values = {
        "text": reply,
        "answer_log_probs": (-1.0, -2.0),
        "option_letter_probabilities": (rest, letter, rest, rest),
        "option_log_likelihoods": tuple(-1.0 if option == text_option else -9.0 for option in range(4)),
        "option_tokens": (1, 1, 1, 1),
        **fields,
    }
    key = prediction_key(model, of, of.examples[number], SETTINGS)
    return Prediction(id=f"q{number}", prompt="?", settings=SETTINGS, key=key, **values)


@pytest.fixture
def run(tmp_path):
    write_json(Run(tmp_path).model_card, MODEL)
    return Run(tmp_path)


def store(run, of, *predictions):
    write_json_lines(run.predictions(of.name), (item.to_json() for item in predictions))


def test_accuracy_is_the_score_that_the_setting_names(run):
    of = task()
    # By letters one of four is right, by texts three of four, by the written letter two of three that can be read.
    store(
        run,
        of,
        prediction(of, 0, letter=0.7, text_option=1, reply="B"),
        prediction(of, 1, letter=0.1, text_option=1, reply="B: green"),
        prediction(of, 2, letter=0.1, text_option=1, reply="A"),
        prediction(of, 3, letter=0.1, text_option=0, reply="!!"),
    )
    by_letter, by_text = score_task(run, of, Choice.letter), score_task(run, of, Choice.text)
    assert next(iter(by_letter)) == next(iter(by_text)) == "accuracy", "the primary metric comes first"
    assert by_letter["accuracy"]["value"] == by_letter["option_letter_accuracy"]["value"] == 0.25
    assert by_text["accuracy"]["value"] == by_text["option_text_accuracy"]["value"] == 0.75
    for found in (by_letter, by_text):
        assert (found["option_letter_accuracy"]["value"], found["option_text_accuracy"]["value"]) == (0.25, 0.75)
        assert found["letter_accuracy"]["value"] == pytest.approx(2 / 3)
        assert (found["letter_accuracy"]["count"], found["letter_accuracy"]["unscored"]) == (3, 1)
        assert found["probability"]["value"] == pytest.approx(math.exp(-1.5))


def test_a_generation_task_has_no_accuracy(run):
    of = task(Ask.generate, count=2)
    store(run, of, *(prediction(of, number, reply="green") for number in range(2)))
    found = score_task(run, of, Choice.letter)
    assert found.keys() == GENERATION_METRICS.keys()
    assert found["rougeL"]["value"] == 1


def test_every_question_keeps_its_own_numbers(run):
    of = task()
    store(run, of, *(prediction(of, number, letter=0.7 if number else 0.1) for number in (3, 1, 0, 2)))
    score_task(run, of, Choice.letter)
    rows = read_json_lines(run.scores(of.name))
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"], "in the order of the task"
    assert [row["subject"] for row in rows] == ["p0", "p0", "p1", "p1"]
    assert [row["metrics"]["accuracy"] for row in rows] == [0, 1, 1, 1]


def test_what_could_not_be_scored_is_null_and_no_zero(run):
    of = task()
    silent = {"option_letter_probabilities": (), "option_log_likelihoods": (), "option_tokens": (), "answer_log_probs": ()}
    store(run, of, prediction(of, 0), *(prediction(of, number, reply="…", **silent) for number in (1, 2, 3)))
    found = score_task(run, of, Choice.letter)
    assert (found["accuracy"]["value"], found["accuracy"]["count"], found["accuracy"]["unscored"]) == (1, 1, 3)
    assert read_json_lines(run.scores(of.name))[1]["metrics"]["accuracy"] is None
    store(run, of, *(prediction(of, number, reply="…", **silent) for number in range(4)))
    for estimate in score_task(run, of, Choice.letter).values():
        assert estimate == {"value": None, "low": None, "high": None, "count": 0, "unscored": 4}


def test_numbers_of_a_destroyed_model_are_unscored(run):
    of = task()
    broken = {
        "answer_log_probs": (math.nan, -1.0),
        "option_letter_probabilities": (math.nan,) * 4,
        "option_log_likelihoods": (math.nan,) * 4,
    }
    store(run, of, *(prediction(of, number, reply="", **broken) for number in range(4)))
    for name, estimate in score_task(run, of, Choice.text).items():
        assert estimate["value"] is None, name
        assert estimate["unscored"] == 4


def test_a_missing_answer_is_an_error_that_names_it(run):
    of = task()
    store(run, of, prediction(of, 0), prediction(of, 3))
    with pytest.raises(RunError, match=r"2 of 4 questions.*q1.*mmunlearn predict"):
        score_task(run, of, Choice.letter)
    assert not run.scores(of.name).exists()


def test_a_cut_off_last_answer_is_a_missing_one(run):
    of = task()
    store(run, of, *(prediction(of, number) for number in range(4)))
    path = run.predictions(of.name)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RunError, match=r"1 of 4 questions.*q3"):
        score_task(run, of, Choice.letter)


@pytest.mark.parametrize("stale", ["model", "version", "question"])
def test_answers_to_something_else_do_not_count(stale, run):
    """As after a `predict` of another model in the same folder that was stopped before it came to this task."""
    of = task()
    other = {
        "model": lambda number: prediction(of, number, model="another"),
        "version": lambda number: prediction(replace(of, version="2"), number),
        "question": lambda number: prediction(
            replace(of, examples=tuple(replace(example, question="Else?") for example in of.examples)), number
        ),
    }[stale]
    store(run, of, prediction(of, 0), *map(other, (1, 2, 3)))
    with pytest.raises(RunError, match=r"3 of 4 questions.*q1"):
        score_task(run, of, Choice.letter)


def test_the_last_of_two_answers_counts(run):
    of = task(count=1)
    store(run, of, prediction(of, 0, letter=0.1))
    append_json_line(run.predictions(of.name), prediction(of, 0, letter=0.9).to_json())
    assert score_task(run, of, Choice.letter)["accuracy"]["value"] == 1


def test_results_name_benchmark_protocol_and_model(run):
    of, other = task(), replace(task(Ask.generate), name="retain_text_generation")
    store(run, of, *(prediction(of, number) for number in range(4)))
    store(run, other, *(prediction(other, number) for number in range(4)))
    found = score(run, Fake(), [of, other], asking=AS_EVER, choice=Choice.letter)
    assert found == json.loads(run.results.read_text(), parse_constant=pytest.fail)
    assert found["schema"] == 1
    questions = found["benchmark"].pop("questions")
    assert found["benchmark"] == {"name": "fake", "version": "7", "protocol": "fixed", "shots": "zero_shot", "choice": "letter"}
    assert len(questions) == 16
    assert found["model"] == MODEL
    assert list(found["tasks"]) == [of.name, other.name]
    estimate = found["tasks"][of.name]["accuracy"]
    assert estimate["low"] <= estimate["value"] <= estimate["high"]


def test_without_a_model_card_there_is_nothing_to_score(tmp_path):
    with pytest.raises(RunError, match=r"model\.json.*mmunlearn predict"):
        score(Run(tmp_path), Fake(), [task()], asking=AS_EVER, choice=Choice.letter)


@pytest.mark.parametrize("value", [-1.5, math.nan, math.inf, -math.inf])
def test_predictions_survive_the_way_through_a_file(value, tmp_path):
    before = Prediction(
        id="x", prompt="p", text="t", answer_log_probs=(-0.5, value), answer_hits=(True, False), settings={"a": [1]}, key="k"
    )
    append_json_line(tmp_path / "x.jsonl", before.to_json())
    (after,) = map(Prediction.from_json, read_json_lines(tmp_path / "x.jsonl"))
    assert after.answer_log_probs[0] == -0.5
    assert after.answer_log_probs[1] == value or (math.isnan(after.answer_log_probs[1]) and not math.isfinite(value))
    assert replace(after, answer_log_probs=()) == replace(before, answer_log_probs=())


def without_torch(*modules):
    """What importing the modules in a fresh interpreter prints of torch's or transformers' presence."""
    code = (
        f"import {', '.join(modules)}, sys; print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    return done.stdout.strip()


def test_scoring_reporting_and_help_import_no_torch():
    reports = [f"mmunlearn.report.{module.name}" for module in pkgutil.iter_modules([f"{mmunlearn.__path__[0]}/report"])]
    assert len(reports) > 3
    light = ["mmunlearn.evaluation.job", "mmunlearn.evaluation.score", "mmunlearn.cli", "mmunlearn.launch", "mmunlearn.catalog"]
    assert without_torch(*light, *reports) == "[]"


@pytest.mark.thorough
def test_predicting_does_import_torch():
    """The check above can fail."""
    assert "'torch'" in without_torch("mmunlearn.evaluation.predict")


def test_truth_ratios_that_are_all_alike_have_no_interval(run):
    """They may lie anywhere from 0 up, so that four persons with the ratio 0 say nothing about how far the mean may go."""
    of = task(count=8)
    certain = (-1000.0, 0.0, -1000.0, -1000.0)
    store(run, of, *(prediction(of, number, option_log_likelihoods=certain) for number in range(8)))
    found = score_task(run, of, Choice.letter)
    assert (found["truth_ratio"]["value"], found["truth_ratio"]["low"], found["truth_ratio"]["high"]) == (0, None, None)
    assert found["accuracy"]["low"] is not None
    mixed = [prediction(of, number, option_log_likelihoods=(-1.0, float(-1 - number % 3), -1.0, -1.0)) for number in range(8)]
    store(run, of, *mixed)
    ratio = score_task(run, of, Choice.letter)["truth_ratio"]
    assert 0 <= ratio["low"] < ratio["value"] < ratio["high"] < 20
