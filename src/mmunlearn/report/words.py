"""Names, one-line explanations and directions: everything a report says that is not a number."""

from collections.abc import Iterable
from dataclasses import dataclass

from mmunlearn.metrics.cards import CARDS

ROLE_ORDER = ("base", "vanilla", "gold", "gold_text", "unlearned")
FAMILIES = ("forget", "test", "reworded", "retain", "real", "holdout", "general")
MODALITIES = ("image", "text")

FAMILY_NAMES = {
    "forget": "Forget",
    "test": "Forget, other portraits",
    "reworded": "Forget, reworded",
    "retain": "Retain",
    "real": "Real people",
    "holdout": "Holdout",
    "general": "General ability",
}

FORGET_FAMILIES = frozenset({"forget", "test", "reworded"})
"""Families about the people to be forgotten: the ideal is the gold model's number."""
KEEP_FAMILIES = frozenset({"retain", "real", "general"})
"""Families that should stay as they are: higher is better."""

TERMS = (
    ("base", "The pre-trained model, before it saw any of these people."),
    ("vanilla", "The base model fine-tuned on everybody: the model that is asked to forget."),
    ("gold", "The base model fine-tuned on everybody except the forget people: what perfect forgetting looks like."),
    ("gold_text", "A gold model that also read the forget people's text questions: the ideal of the visual-only goal."),
    ("forget", "Questions about the people who are to be forgotten."),
    ("forget, other portraits", "The same people in pictures that were not trained on (task family “test”)."),
    ("forget, reworded", "The same facts, asked in other words."),
    ("retain", "Questions about people in the training data who are to be kept."),
    ("real people", "Well-known people whom the base model knew already."),
    ("holdout", "People whom no model was trained on: what a model says of people it never saw."),
    ("general ability", "Questions that need no knowledge of anyone."),
    ("chance", "What guessing among the options gets."),
    (
        "interval",
        "95 % interval for the mean, over people, since questions about one person are alike. None is given for one person, "
        "nor for ratios that are all the same.",
    ),
    (
        "seeds",
        "The same training begun from other random numbers; a row of several is their mean, its interval covers them too.",
    ),
    (
        "forgotten",
        "Inside gold’s interval, not surely above gold on the same questions, and a bound shows that less than half of what "
        "vanilla had learned is left.",
    ),
    (
        "not forgotten",
        "A bound of the difference to gold on the same questions shows that more than half of what vanilla had learned is "
        "left.",
    ),
    ("traces left", "Surely above gold on the same questions, but it is not shown that more than half is left."),
    ("below gold", "Below gold’s interval, and surely below gold on the same questions: damage, or a trace of another kind."),
    ("not decided", "Too few people or questions to show any of these."),
    (
        "facts kept",
        "Goal visual_only: a bound shows that less than half is lost of the text facts that gold_text knows and gold does not; "
        "not surely below gold_text.",
    ),
    ("facts damaged", "Goal visual_only: surely below gold_text on the same text questions."),
    ("unknown", "A model to compare with is missing, or gold_text is not shown to know the facts that were to be kept."),
    ("not shown", "Vanilla is not shown to have known more than gold, so there was nothing to forget."),
    ("unscored", "Questions whose reply could not be scored; they are counted and left out of the mean, never averaged as 0."),
)


@dataclass(frozen=True, kw_only=True)
class MetricCard:
    """What a reader must know to read a metric."""

    name: str
    title: str
    meaning: str
    source: str


METRIC_CARDS = {
    card.name: MetricCard(name=card.name, title=card.title, meaning=card.meaning, source=card.source) for card in CARDS.values()
}

PRIMARY = {
    "choice": "accuracy",
    "recognition": "accuracy",
    "cloze": "cloze_accuracy",
    "generation": "rougeL",
    "caption": "rougeL",
    "qa": "rougeL",
}
"""Every kind of task and the metric that stands for it in summaries."""

_KIND_NAMES = {"qa": "questions and answers"}


@dataclass(frozen=True, kw_only=True)
class TaskName:
    """The parts of `{family}_{modality}_{kind}`."""

    family: str
    modality: str
    kind: str


def parse_task(task: str) -> TaskName:
    """Take a task name apart; parts that it does not have are empty."""
    family, _, rest = task.partition("_")
    modality, _, kind = rest.partition("_")
    return TaskName(family=family, modality=modality, kind=kind)


def task_title(task: str) -> str:
    """A task's name for people: “Forget, image, choice”."""
    name = parse_task(task)
    parts = FAMILY_NAMES.get(name.family, name.family), name.modality, kind_title(name.kind)
    return ", ".join(part for part in parts if part)


def kind_title(kind: str) -> str:
    """A kind of task for people."""
    return _KIND_NAMES.get(kind, kind)


def kinds_of(metric: str) -> tuple[str, ...]:
    """The kinds of task that a metric stands for in summaries."""
    return tuple(kind for kind, primary in PRIMARY.items() if primary == metric)


def primary_metric(task: str, scored: Iterable[str] = ()) -> str:
    """The metric that stands for a task in summaries.

    Args:
        task: its name.
        scored: its metrics in the order of the results. Where rules count a kind of task by another metric than usual, that
            one comes first: ROUGE-L recall in CLEAR's own evaluation.
    """
    usual = PRIMARY.get(parse_task(task).kind, "accuracy")
    first = next(iter(scored), usual)
    return first if usual == "rougeL" and first == "rougeL_recall" else usual


def has_options(task: str) -> bool:
    """Whether guessing among options is possible, so that there is a chance level."""
    return primary_metric(task) == "accuracy"
