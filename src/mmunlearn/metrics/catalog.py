"""Which metrics a task of each kind is scored by; the names are those of results files.

`accuracy`, the primary number of a choice task, is not here: the scorer adds it as a copy of `option_letter_accuracy`
or of `option_text_accuracy`, whichever `evaluation.choice` names.
"""

from collections.abc import Callable

from mmunlearn.data.example import Example, Metric, Prediction
from mmunlearn.metrics import probability, text


def _of_text(score: Callable[[str, str], float]) -> Metric:
    """A metric that compares the expected answer with what the model wrote."""

    def metric(prediction: Prediction, example: Example) -> float:
        return score(example.answer, prediction.text)

    return metric


def _letter_accuracy(prediction: Prediction, example: Example) -> float:
    return text.letter_accuracy(example.answer, example.choices, prediction.text)


def _probability(prediction: Prediction, example: Example) -> float:
    return probability.answer_probability(prediction)


CHOICE_METRICS: dict[str, Metric] = {
    "option_letter_accuracy": probability.option_letter_accuracy,
    "option_text_accuracy": probability.option_text_accuracy,
    "letter_accuracy": _letter_accuracy,
    "probability": _probability,
}
"""For multiple choice; chance level of the accuracies: one divided by the number of options."""

CLOZE_METRICS: dict[str, Metric] = {
    "cloze_accuracy": _of_text(text.contains_answer),
    "probability": _probability,
}
"""For a blank to be filled."""

GENERATION_METRICS: dict[str, Metric] = {
    "rougeL": _of_text(text.rouge_l),
    "rouge1": _of_text(text.rouge1),
    "rouge2": _of_text(text.rouge2),
    "bleu": _of_text(text.bleu),
    "probability": _probability,
}
"""For free answers; ROUGE-L first, the primary one."""

SUMMARIES: dict[str, str] = {
    "option_letter_accuracy": "The options are listed; right if the right option's letter is the most probable, averaged "
    "over all cyclic orders of the options. Ties count 1/k.",
    "option_text_accuracy": "The options are not listed; right if the right option's text has the highest mean "
    "log-probability a token. Ties count 1/k.",
    "letter_accuracy": "The first letter that the model writes is the right option's. Replies without one are unscored.",
    "probability": "Probability of the expected answer, to the power of one over its number of tokens.",
    "cloze_accuracy": "The expected words stand somewhere in the reply, whatever the case.",
    "rougeL": "Longest common sequence of words with the expected answer (F1, stemmed; letters of all scripts count).",
    "rouge1": "Words shared with the expected answer (F1, stemmed; letters of all scripts count).",
    "rouge2": "Pairs of neighbouring words shared with the expected answer (F1, stemmed; letters of all scripts count).",
    "bleu": "Sentence BLEU-4 with the expected answer, smoothing method 1, words split at white space.",
}
"""What each metric of this catalog measures, in a sentence or two, for listings and reports. All lie between 0 and 1."""
