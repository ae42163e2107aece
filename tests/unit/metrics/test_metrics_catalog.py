"""The names are those that results files and reports rely on."""

import math

import pytest

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS, PERTURBED_METRICS, SUMMARIES

OF_EVERY_ANSWER = {"probability", "exact_memorisation", "extraction_strength"}


def test_names():
    choice = {"option_letter_accuracy", "option_text_accuracy", "letter_accuracy", "truth_ratio"}
    assert set(CHOICE_METRICS) == choice | OF_EVERY_ANSWER
    assert set(CLOZE_METRICS) == {"cloze_accuracy"} | OF_EVERY_ANSWER
    assert set(GENERATION_METRICS) == {"rouge1", "rouge2", "rougeL", "bleu"} | OF_EVERY_ANSWER
    assert set(PERTURBED_METRICS) == {*GENERATION_METRICS, "option_probability", "truth_ratio"}


def test_the_primary_metric_comes_first():
    assert [next(iter(metrics)) for metrics in (CHOICE_METRICS, CLOZE_METRICS, PERTURBED_METRICS)] == [
        "option_letter_accuracy", "cloze_accuracy", "rougeL",
    ]  # fmt: skip


def test_every_metric_is_explained():
    assert set(SUMMARIES) == {*CHOICE_METRICS, *CLOZE_METRICS, *PERTURBED_METRICS}


def test_every_metric_scores_a_perfect_prediction_with_one():
    choice = Example(id="q", question="?", answer="a fine old city", choices=("a fine old city", "a village"))
    free = Example(id="q", question="?", answer="a fine old city")
    perfect = {
        "answer_log_probs": (0.0, 0.0),
        "answer_hits": (True, True),
        "option_log_likelihoods": (-1.0, -3.0),
        "option_tokens": (1, 1),
        "option_letter_probabilities": (0.9, 0.1),
    }
    letter = Prediction(id="q", prompt="", text="A", **perfect)
    words = Prediction(id="q", prompt="", text="a fine old city", **perfect)
    found = {name: metric(letter, choice) for name, metric in CHOICE_METRICS.items()}
    assert found.pop("truth_ratio") == pytest.approx(math.exp(-2)), "the exception: low where the right answer is known"
    assert found == dict.fromkeys(found, 1.0)
    for metrics in (CLOZE_METRICS, GENERATION_METRICS):
        assert {name: metric(words, free) for name, metric in metrics.items()} == dict.fromkeys(metrics, 1.0)


def test_every_metric_can_say_that_it_cannot_score():
    nothing = Prediction(id="q", prompt="", text="")
    blank = Example(id="q", question="?", answer="")
    for metrics in (CHOICE_METRICS, CLOZE_METRICS, PERTURBED_METRICS):
        assert all(math.isnan(metric(nothing, blank)) for metric in metrics.values())
