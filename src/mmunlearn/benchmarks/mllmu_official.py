"""How the published scripts ask MLLMU-Bench's questions of LLaVA and count its replies, for numbers that compare with papers.

Source: the evaluation script of MMUnlearner, whose prompts are those of MLLMU-Bench's own. Raw text instead of a chat template;
prompts differ between kinds of questions in a space or a line break, which is kept. Kept too: every pair of underscores of a
cloze question becomes a gap of its own, and a reply that names no option is wrong.

Deviations: the people of the shots are drawn with a seed; the portrait of Test_Set depends on seed and person; a test person's
text questions are asked once, with the forget people's; where two options are the same text, either letter is right; spaces
around an option are dropped; the reply is what the model adds to the prompt. (MLLMU-Bench's own script reads the very first
character of a reply, MMUnlearner's the first letter or digit, as here.)
"""

import re
from collections.abc import Callable, Mapping
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT
from mmunlearn.benchmarks.prompts import BLANK, LETTERS, Form
from mmunlearn.data.example import Example, Metric, Prediction
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS

SPLITS = ("forget", "test", "retain", "real")
"""The published groups; the others are asked about under our own rules only."""
SHOT_SPLITS = ("forget", "test", "retain")
"""The groups whose questions get shots; those about real people never find any in the published script."""
SHOT_PEOPLE = {"choice": 1, "cloze": 2, "generation": 0}
"""So many people's questions stand before each question of a kind."""

_ANSWER = "\nCorrect Answer: "
FORMS: Mapping[tuple[str, str], Form] = {
    ("choice", IMAGE): Form(
        before="USER: <image>\n", after="\nASSISTANT:", shot_before="USER: <image>\nQuestion: ", shot_after=_ANSWER
    ),
    ("choice", TEXT): Form(before="USER:\n", after="\nASSISTANT:", shot_before="USER:\nQuestion: ", shot_after=_ANSWER),
    ("cloze", IMAGE): Form(
        before="USER: <image>\n",
        after="\nASSISTANT:",
        shot_before="USER:<image>\n",
        shot_after=_ANSWER,
        shots_instructed=True,
    ),
    ("cloze", TEXT): Form(
        before="USER:\n", after="\nASSISTANT:", shot_before="USER:\n", shot_after=_ANSWER, shots_instructed=True
    ),
    ("generation", IMAGE): Form(before="USER: <image>\n", after="\nASSISTANT: "),
    ("generation", TEXT): Form(before="USER: ", after="\nASSISTANT:"),
}
"""By kind and modality."""


def mark_every_pair(question: str) -> str:
    """Write each pair of underscores as a gap, so that a line of four becomes two gaps."""
    return question.replace("__", BLANK)


def letter_accuracy(prediction: Prediction, example: Example) -> float:
    """1.0 if the first Latin letter or digit of the reply is the right option's letter, else 0.0."""
    found = re.search("[a-zA-Z0-9]", prediction.text)
    index = LETTERS.find(found[0].upper()) if found else -1
    return float(0 <= index < len(example.choices) and example.choices[index] == example.answer)


def cloze_accuracy(prediction: Prediction, example: Example) -> float:
    """1.0 if the expected text stands anywhere in the reply, whatever the case, else 0.0."""
    return float(example.answer.lower() in prediction.text.lower())


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def _rouge(kind: str) -> Callable[[Prediction, Example], float]:
    """ROUGE F1 with the package's own tokenizer, which knows ASCII letters and digits only."""

    def metric(prediction: Prediction, example: Example) -> float:
        return float(_scorer().score(example.answer, prediction.text)[kind].fmeasure)

    return metric


METRICS: Mapping[str, Mapping[str, Metric]] = {
    "choice": {**CHOICE_METRICS, "letter_accuracy": letter_accuracy},
    "cloze": {**CLOZE_METRICS, "cloze_accuracy": cloze_accuracy},
    "generation": {**GENERATION_METRICS, **{kind: _rouge(kind) for kind in ("rouge1", "rouge2", "rougeL")}},
}
"""By kind; what no published script computes is computed on these prompts too."""
ACCURACY = "letter_accuracy"
"""The published accuracy of multiple choice."""
