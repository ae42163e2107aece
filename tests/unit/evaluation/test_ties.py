"""Near-ties in results, and intervals of metrics that are no shares."""

import json
import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from mmunlearn.benchmarks.base import AS_EVER, Ask, Task
from mmunlearn.config_enums import Choice, Protocol
from mmunlearn.data.example import Example, Prediction
from mmunlearn.evaluation.job import near_ties_line, problems_line
from mmunlearn.evaluation.requests import prediction_key
from mmunlearn.evaluation.score import score, score_task
from mmunlearn.evaluation.ties import NEAR_TIE, is_near_choice, is_near_tie
from mmunlearn.metrics.truth_ratio import truth_ratio
from mmunlearn.run import Run, write_json, write_json_lines


class Fake:
    name, version = "fake", "1"
    flaws: ClassVar = {}

    @classmethod
    def problems(cls):
        return cls.flaws


def task(values, **metrics):
    """Questions about a person each; each metric of a question is the number in its prediction's text."""
    examples = tuple(Example(id=f"q{n}", question="?", answer="!", subject=f"p{n}") for n in range(len(values)))
    metrics = metrics or {"rougeL": lambda prediction, example: float(prediction.text)}
    return Task(name="forget_text_qa", examples=examples, ask=Ask.generate, metrics=metrics, higher_is_better=False)


def stored(folder, of, values, dtype="float32"):
    run, settings = Run(folder), {"dtype": dtype}
    write_json(run.model_card, {"fingerprint": "feed", "role": "vanilla", "method": "none", "seed": 0})
    lines = [
        Prediction(
            id=example.id,
            prompt="?",
            text=str(value),
            smallest_gap=gap,
            settings=settings,
            key=prediction_key("feed", of, example, settings),
        ).to_json()
        for example, (value, gap) in zip(of.examples, values, strict=True)
    ]
    write_json_lines(run.predictions(of.name), lines)
    return run


def test_results_list_the_replies_that_hang_by_a_hair(tmp_path):
    values = [(0.5, 2.0), (0.5, 9.9e-5), (0.5, None), (0.5, 1e-4), (0.5, 0.0)]
    of = task(values)
    found = score(stored(tmp_path, of, values), Fake, [of], asking=AS_EVER, choice=Choice.letter)
    assert found["near_ties"] == {"forget_text_qa": ["q1", "q4"]}
    assert json.loads(Run(tmp_path).results.read_text())["near_ties"] == found["near_ties"]
    assert near_ties_line(found).startswith("Near-ties: forget_text_qa 2.")


def test_results_and_a_line_tell_what_was_tolerated_in_the_files(tmp_path):
    of = task([(0.5, 2.0)])
    run = stored(tmp_path, of, [(0.5, 2.0)])
    found = score(run, Fake, [of], asking=AS_EVER, choice=Choice.letter)
    assert (found["problems"], problems_line(Fake)) == ({}, "")

    class Odd(Fake):
        flaws: ClassVar = {"row without answer": 2, "image twice": 1200, "b": 1, "c": 1}

    found = score(run, Odd, [of], asking=AS_EVER, choice=Choice.letter)
    assert json.loads(run.results.read_text())["problems"] == found["problems"] == Odd.flaws
    line = problems_line(Odd)
    assert line.startswith("fake, tolerated and counted: image twice: 1,200; row without answer: 2; b: 1; and 1 more kind.")


def test_without_near_ties_nothing_is_said(tmp_path):
    values = [(0.5, 2.0)]
    of = task(values)
    found = score(stored(tmp_path, of, values), Fake, [of], asking=AS_EVER, choice=Choice.letter)
    assert found["near_ties"] == {"forget_text_qa": []}
    assert near_ties_line(found) == ""


@pytest.mark.parametrize(("dtype", "counted"), [("float32", 1), ("float16", 2), ("bfloat16", 3), ("float64", 1)])
def test_half_formats_round_more(dtype, counted, tmp_path):
    values = [(0.5, 5e-5), (0.5, 0.01), (0.5, 0.1), (0.5, 0.2)]
    of = task(values)
    found = score(stored(tmp_path, of, values, dtype), Fake, [of], asking=AS_EVER, choice=Choice.letter)
    assert len(found["near_ties"]["forget_text_qa"]) == counted


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_limit_is_the_step_between_numbers_from_16_to_32(dtype):
    number = torch.tensor(20.0, dtype=getattr(torch, dtype))
    above = torch.nextafter(number, torch.tensor(math.inf, dtype=number.dtype))
    assert float(above - number) == NEAR_TIE[dtype]


def test_settings_of_earlier_versions_say_nothing_of_the_format():
    assert is_near_tie(Prediction(id="x", prompt="", text="", smallest_gap=5e-5))
    assert not is_near_tie(Prediction(id="x", prompt="", text="", smallest_gap=1e-3))


def test_a_metric_that_is_no_share_is_not_cut_at_1(tmp_path):
    """All ratios happen to lie below 1, but a ratio may be 100: the interval must not end at 1."""
    values = [(number, None) for number in (0.99, 0.0, 0.98, 0.97)]
    of = task(values, truth_ratio=lambda prediction, example: float(prediction.text), rougeL=lambda p, e: float(p.text))
    found = score_task(stored(tmp_path, of, values), of, Choice.letter)
    assert found["rougeL"]["high"] == 1
    assert found["truth_ratio"]["high"] > 1.2
    assert found["truth_ratio"]["low"] == 0


def test_equal_ratios_have_no_interval(tmp_path):
    """A ratio has no upper end that a bound could rest on."""
    values = [(0.0, None)] * 4
    of = task(values, truth_ratio=lambda prediction, example: float(prediction.text))
    found = score_task(stored(tmp_path, of, values), of, Choice.letter)
    assert found["truth_ratio"]["value"] == 0
    assert (found["truth_ratio"]["low"], found["truth_ratio"]["high"]) == (None, None)


def test_the_real_truth_ratio_stays_in_its_range():
    example = Example(id="x", question="?", answer="a", choices=("a", "b"))
    lost = Prediction(id="x", prompt="", text="", option_log_likelihoods=(-900.0, -0.1), option_tokens=(1, 1))
    assert truth_ratio(lost, example) <= 100


def chosen(letters=(), sums=(), tokens=(), dtype="float32"):
    return Prediction(
        id="x", prompt="", text="", option_letter_probabilities=letters, option_log_likelihoods=sums, option_tokens=tokens,
        settings={"dtype": dtype},
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "near"), [("float32", False), ("bfloat16", True)])
def test_letters_that_lie_close_together(dtype, near):
    prediction = chosen(letters=(0.25, 0.26, 0.24, 0.25), dtype=dtype)  # log 0.26 - log 0.25 = 0.04
    assert is_near_choice(prediction, Choice.letter) is near
    assert not is_near_choice(prediction, Choice.text)  # which was not recorded


def test_texts_are_compared_a_token():
    """-4 over two tokens and -6.00015 over three: -2 against -2.00005."""
    close = chosen(letters=(0.9, 0.1), sums=(-4.0, -6.00015), tokens=(2, 3))
    assert is_near_choice(close, Choice.text)
    assert not is_near_choice(close, Choice.letter)
    assert not is_near_choice(chosen(sums=(-4.0, -4.00015), tokens=(1, 1)), Choice.text)


@pytest.mark.parametrize("odd", [chosen(), chosen(letters=(1.0,)), chosen(letters=(0.0, 0.0)), chosen(letters=(1.0, 0.0))])
def test_what_cannot_be_compared_is_no_near_choice(odd):
    assert not is_near_choice(odd, Choice.letter)
    assert not is_near_choice(odd, Choice.text)


def test_the_published_rules_know_no_score_of_options(tmp_path):
    of = task([(0.5, 2.0)])
    run = stored(tmp_path, of, [(0.5, 2.0)])
    line = json.loads(run.predictions(of.name).read_text())
    write_json_lines(run.predictions(of.name), [line | {"option_letter_probabilities": [0.5, 0.5]}])
    fixed = score(run, Fake, [of], asking=AS_EVER, choice=Choice.letter)
    assert fixed["near_ties"] == {of.name: []}, "likelihoods that are compared, of no options"
    of = replace(of, examples=tuple(replace(example, choices=("!", "?")) for example in of.examples))
    key = prediction_key("feed", of, of.examples[0], line["settings"])
    write_json_lines(run.predictions(of.name), [line | {"option_letter_probabilities": [0.5, 0.5], "key": key}])
    fixed = score(run, Fake, [of], asking=AS_EVER, choice=Choice.letter)
    assert fixed["near_ties"] == {of.name: ["q0"]}
    official = score(run, Fake, [of], asking=replace(AS_EVER, protocol=Protocol.official), choice=Choice.letter)
    assert official["near_ties"] == {of.name: []}
