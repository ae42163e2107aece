"""Which metrics a task of each kind is scored by; the names are those of results files.

`accuracy`, the primary number of a choice task, is not here: the scorer adds it as a copy of `option_letter_accuracy`
or of `option_text_accuracy`, whichever `evaluation.choice` names. Scores of membership attacks are not here either:
their mean over questions says nothing, see `mmunlearn.metrics.membership`.
"""

from collections.abc import Callable

from mmunlearn.data.example import Example, Metric, Prediction
from mmunlearn.metrics import memorisation, probability, text
from mmunlearn.metrics.cards import CARDS
from mmunlearn.metrics.truth_ratio import truth_ratio


def _of_text(score: Callable[[str, str], float]) -> Metric:
    """A metric that compares the expected answer with what the model wrote."""

    def metric(prediction: Prediction, example: Example) -> float:
        return score(example.answer, prediction.text)

    return metric


def _letter_accuracy(prediction: Prediction, example: Example) -> float:
    return text.letter_accuracy(example.answer, example.choices, prediction.text)


def _of_prediction(score: Callable[[Prediction], float]) -> Metric:
    """A metric that reads the stored probabilities of the expected answer alone."""

    def metric(prediction: Prediction, example: Example) -> float:
        return score(prediction)

    return metric


_OF_EVERY_ANSWER: dict[str, Metric] = {
    "probability": _of_prediction(probability.answer_probability),
    "exact_memorisation": _of_prediction(memorisation.exact_memorisation),
    "extraction_strength": _of_prediction(memorisation.extraction_strength),
}

CHOICE_METRICS: dict[str, Metric] = {
    "option_letter_accuracy": probability.option_letter_accuracy,
    "option_text_accuracy": probability.option_text_accuracy,
    "letter_accuracy": _letter_accuracy,
    **_OF_EVERY_ANSWER,
    "truth_ratio": truth_ratio,
}
"""For multiple choice; chance level of the accuracies: one divided by the number of options."""

CLOZE_METRICS: dict[str, Metric] = {
    "cloze_accuracy": _of_text(text.contains_answer),
    **_OF_EVERY_ANSWER,
}
"""For a blank to be filled."""

GENERATION_METRICS: dict[str, Metric] = {
    "rougeL": _of_text(text.rouge_l),
    "rouge1": _of_text(text.rouge1),
    "rouge2": _of_text(text.rouge2),
    "bleu": _of_text(text.bleu),
    **_OF_EVERY_ANSWER,
}
"""For free answers; ROUGE-L first, the primary one."""

PERTURBED_METRICS: dict[str, Metric] = {
    **GENERATION_METRICS,
    "option_probability": probability.option_probability,
    "truth_ratio": truth_ratio,
}
"""For free answers that come with perturbed ones (`Example.perturbed`); the last two are NaN where an answer has none."""

SUMMARIES: dict[str, str] = {
    name: CARDS[name].meaning for name in dict.fromkeys([*CHOICE_METRICS, *CLOZE_METRICS, *PERTURBED_METRICS])
}
"""What each metric of this catalog measures, in a sentence or two, for listings. All lie between 0 and 1, but for the
truth ratio; see `mmunlearn.metrics.cards` for the rest."""
