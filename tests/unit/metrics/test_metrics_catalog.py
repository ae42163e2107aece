"""The names are those that results files and reports rely on."""

import math

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS, SUMMARIES


def test_names():
    assert set(CHOICE_METRICS) == {"option_letter_accuracy", "option_text_accuracy", "letter_accuracy", "probability"}
    assert set(CLOZE_METRICS) == {"cloze_accuracy", "probability"}
    assert set(GENERATION_METRICS) == {"rouge1", "rouge2", "rougeL", "bleu", "probability"}


def test_every_metric_is_explained():
    assert set(SUMMARIES) == {*CHOICE_METRICS, *CLOZE_METRICS, *GENERATION_METRICS}


def test_every_metric_scores_a_perfect_prediction_with_one():
    choice = Example(id="q", question="?", answer="a fine old city", choices=("a fine old city", "a village"))
    free = Example(id="q", question="?", answer="a fine old city")
    perfect = {
        "answer_log_probs": (0.0, 0.0),
        "option_log_likelihoods": (-1.0, -3.0),
        "option_tokens": (1, 1),
        "option_letter_probabilities": (0.9, 0.1),
    }
    letter = Prediction(id="q", prompt="", text="A", **perfect)
    words = Prediction(id="q", prompt="", text="a fine old city", **perfect)
    assert {name: metric(letter, choice) for name, metric in CHOICE_METRICS.items()} == dict.fromkeys(CHOICE_METRICS, 1.0)
    for metrics in (CLOZE_METRICS, GENERATION_METRICS):
        assert {name: metric(words, free) for name, metric in metrics.items()} == dict.fromkeys(metrics, 1.0)


def test_every_metric_can_say_that_it_cannot_score():
    nothing = Prediction(id="q", prompt="", text="")
    blank = Example(id="q", question="?", answer="")
    for metrics in (CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS):
        assert all(math.isnan(metric(nothing, blank)) for metric in metrics.values())
