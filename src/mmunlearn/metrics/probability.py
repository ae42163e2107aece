"""Metrics of the probabilities that a model gives to the expected answer and to the options of a choice.

They read the arrays stored in a `Prediction`; where an array was not recorded the metric is NaN ("could not be
scored"). All values lie between 0 and 1.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.memorisation import exact_match as exact_match
from mmunlearn.metrics.memorisation import exact_memorisation as exact_memorisation


def answer_probability(prediction: Prediction) -> float:
    """Probability of the expected answer, normalised by its length: exp(mean log p over its tokens, the end included).

    Source: TOFU's "probability", p(answer | question)^(1/|answer|); the geometric mean of the tokens' probabilities.
    """
    return _per_token(sum(prediction.answer_log_probs), len(prediction.answer_log_probs))


def option_letter_accuracy(prediction: Prediction, example: Example) -> float:
    """1.0 if the right option's letter is the most probable of the listed letters.

    The probabilities were averaged over all cyclic orders of the options, so a liking for "A" cancels out. If k
    options share the first place and the right one is among them, the score is 1/k: knowing nothing gets what guessing
    gets.
    """
    return _share_of_first_place(prediction.option_letter_probabilities, example)


def option_text_accuracy(prediction: Prediction, example: Example) -> float:
    """1.0 if the right option's text has the highest mean token log-probability, asked without the list of options.

    Ties as in `option_letter_accuracy`. The mean, not the sum, is compared: sums favour short options.
    """
    return _share_of_first_place(mean_option_log_probs(prediction), example)


def option_probability(prediction: Prediction, example: Example) -> float:
    """Probability of the right option among the options: softmax over their mean token log-probabilities.

    Of a free answer the options are that answer and the perturbed ones; its paraphrase has no part in it.
    Source: p(y)^(1/|y|) / sum_i p(y_i)^(1/|y_i|), TOFU's probability on its multiple-choice sets, CLEAR's on names.
    """
    means, options = as_choice(prediction, example)
    if not comparable(means, options):
        return math.nan
    highest = max(means)
    weights = [math.exp(mean - highest) for mean in means]
    right = sum(weight for weight, choice in zip(weights, options.choices, strict=True) if choice == options.answer)
    return right / sum(weights)


def as_choice(prediction: Prediction, example: Example) -> tuple[tuple[float, ...], Example]:
    """Right and wrong answers side by side, whether they are options or a free answer with perturbed ones.

    Returns:
        The mean log-probability a token of each, in nats, none where it was not recorded; and the example with these
        answers as its choices.
    """
    means = mean_option_log_probs(prediction)
    if example.choices or not example.perturbed:
        return means, example
    own = prediction.answer_log_probs
    if not own or len(means) != len(example.compared()):
        return (), example
    wrong = means[: len(example.perturbed)]
    return (sum(own) / len(own), *wrong), replace(example, choices=(example.answer, *example.perturbed))


def _per_token(log_likelihood: float, tokens: int) -> float:
    """Exponential of the mean; NaN without tokens. Rounding can lift a sum of zeros above 0, hence the bound."""
    return math.exp(min(log_likelihood / tokens, 0.0)) if tokens else math.nan  # in this order NaN stays NaN


def mean_option_log_probs(prediction: Prediction) -> tuple[float, ...]:
    """Mean log-probability a token of each option, asked without the list, in nats; none where it was not recorded."""
    sums, tokens = prediction.option_log_likelihoods, prediction.option_tokens
    if len(sums) != len(tokens) or not all(tokens):
        return ()
    return tuple(total / count for total, count in zip(sums, tokens, strict=True))


def comparable(scores: Sequence[float], example: Example) -> bool:
    """Whether each option has a number, not all of them are -inf, and the right option is among them."""
    return bool(
        scores
        and len(scores) == len(example.choices)
        and example.answer in example.choices
        and not any(math.isnan(score) for score in scores)
        and max(scores) > -math.inf
    )


def first_place(scores: Sequence[float], example: Example) -> list[str]:
    """The options with the highest score; none where the options cannot be compared."""
    if not comparable(scores, example):
        return []
    best = max(scores)
    return [choice for score, choice in zip(scores, example.choices, strict=True) if score == best]


def _share_of_first_place(scores: Sequence[float], example: Example) -> float:
    first = first_place(scores, example)
    return first.count(example.answer) / len(first) if first else math.nan
