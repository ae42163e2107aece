"""How the published scripts ask about CLEAR and count replies, for numbers that compare with papers.

Two scripts, which ask different things; each has its tasks. Both use the model's chat template and decode greedily.

- CLEAR's own evaluation (`mm/eval.py`, `config/mm/eval.yaml`): up to 300 tokens, ROUGE-L recall, probability, truth ratio.
  `caption`: the pictures of `forgetNN_perturbed` and `retain_perturbed`, one of nine caption questions, compared with a
  paraphrase and wrong captions. `generation`: a sentence that ends in the name, compared with wrong names (for `real` those
  of `real_faces`); for `general` the questions of `real_world`, compared with the wrong options. Its probability of a
  caption is `probability`, that of everything else `option_probability`.
- MMUnlearner's evaluation of CLEAR: up to 50 tokens, ROUGE F1 and BLEU. `recognition` and `general_image_choice`: the
  options listed as `A. …` without an instruction, the first letter or digit of the reply counts. `qa`: the questions of the
  `+tofu` folder.

ROUGE has its package's own tokenizer, as in both; F1 and recall are computed of all free answers. The one that its script
reports comes first and stands for the task in summaries: recall for `caption` and `generation`, F1 for `qa`.

Where the published code is broken, this does the right thing. CLEAR's generates from the text alone, so that its ROUGE of
pictures is that of a model which does not see them; here the picture is there. Its truth ratio
compares each answer with the mean over the wrong answers of all questions; here with those of its own question. The mean is
geometric, as the script's is; our own rules take the arithmetic one (`mmunlearn.metrics.truth_ratio`).
It draws another caption question for every wrong caption; here right and wrong captions answer one question.
MMUnlearner's scores the last reply about a picture as the reply to every text question, so its ROUGE and BLEU of texts mean
nothing; here each reply is scored. It counts texts among its pictures, with a picture placeholder; here they are apart.

Deviations: all rows are asked, not the first 300 of each folder; people who are forgotten under the ratio are left out of
`retain_perturbed`, as under our own rules; the place of the right option and the choice of the caption question depend on
seed and content, not on a stream of random numbers; options that repeat each other are listed once. MMUnlearner's captions
(`+tofu` folders, 50 tokens) are not asked beside CLEAR's. chrF++, which CLEAR's script also prints, is not computed.
MMUnlearner's `retainNN_perturbed` were never published; like everybody else we read `retain_perturbed`.

Not known: whether `retain_perturbed` holds anybody who is forgotten under one of the ratios, and what stands in the column
`question` of `real_faces`, which MMUnlearner's multiple choice asks and CLEAR's script does not.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.benchmarks.clear_opened import Opened
from mmunlearn.benchmarks.clear_rows import OptionsColumns, OptionsRow
from mmunlearn.benchmarks.clear_tasks import HIGHER_IS_BETTER, PEOPLE, choice, compared, free_answers, real_people, scenes
from mmunlearn.benchmarks.mllmu_official import ACCURACY, letter_accuracy
from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT
from mmunlearn.benchmarks.prompts import Listing
from mmunlearn.data.example import Example, Metric, Prediction
from mmunlearn.metrics.catalog import CHOICE_METRICS, GENERATION_METRICS, PERTURBED_METRICS
from mmunlearn.metrics.truth_ratio import geometric_truth_ratio

CLEAR_TOKENS = 300
"""Longest reply in CLEAR's own evaluation."""
MMUNLEARNER_TOKENS = 50
"""Longest reply in MMUnlearner's, letters included."""
LISTING = Listing(mark=". ", after="\n")
"""How MMUnlearner lists options; the line break behind the last one is published too."""

_REAL = OptionsColumns(question="question", answer="answer", wrong="options")


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def _rouge(kind: str, part: Callable[[Score], float]) -> Metric:
    """ROUGE with the package's own tokenizer, which knows ASCII letters and digits only."""

    def metric(prediction: Prediction, example: Example) -> float:
        return float(part(_scorer().score(example.answer, prediction.text)[kind]))

    return metric


_ROUGE: Mapping[str, Metric] = {
    **{kind: _rouge(kind, lambda score: score.fmeasure) for kind in ("rougeL", "rouge1", "rouge2")},
    "rougeL_recall": _rouge("rougeL", lambda score: score.recall),
}
METRICS: Mapping[str, Mapping[str, Metric]] = {
    "choice": {**CHOICE_METRICS, "letter_accuracy": letter_accuracy, "truth_ratio": geometric_truth_ratio},
    "compared": {
        "rougeL_recall": _ROUGE["rougeL_recall"],
        **PERTURBED_METRICS,
        **_ROUGE,
        "truth_ratio": geometric_truth_ratio,
    },
    "qa": {**GENERATION_METRICS, **_ROUGE},
}
"""Of multiple choice, of free answers that are compared with wrong ones, and of texts; what no published script computes is
computed on these prompts too. The first one stands for the task in summaries (of multiple choice `accuracy`)."""


def official_tasks(opened: Opened, split: str) -> tuple[Task, ...]:
    """The tasks about one group of people; none for a group that CLEAR does not have."""
    if split in PEOPLE:
        faces, folder = opened.faces(split), opened.perturbed(split)
        made = [_choice(opened, split, "recognition", folder, faces), _named(opened, split, folder, faces)]
        return (*made, *_caption(opened, split), *_texts(opened, split))
    if split == "real":
        rows = real_people(opened.options("real_faces", _REAL))
        made = [_choice(opened, split, "recognition", "real_faces", rows), _named(opened, split, "real_faces", rows)]
        return tuple(made)
    if split == "general":
        rows = scenes(opened.options("real_world", _REAL))
        written = [_against_options(opened, "real_world", row, thing, row.question) for row, thing in rows]
        return _choice(opened, split, "choice", "real_world", rows), _free(split, IMAGE, "generation", written)
    return ()


def _choice(opened: Opened, split: str, kind: str, folder: str, rows: Sequence[tuple[OptionsRow, str]]) -> Task:
    """MMUnlearner's multiple choice: our own rows, its list, its reading of the reply."""
    ours = choice(opened, split, kind, folder, rows)
    return Task(
        name=ours.name,
        examples=ours.examples,
        ask=ours.ask,
        metrics=METRICS["choice"],
        higher_is_better=ours.higher_is_better,
        max_new_tokens=MMUNLEARNER_TOKENS,
        listing=LISTING,
        accuracy=ACCURACY,
    )


def _named(opened: Opened, split: str, folder: str, rows: Sequence[tuple[OptionsRow, str]]) -> Task:
    """CLEAR's recognition: the model goes on with a sentence that wants the name."""
    examples = [_against_options(opened, folder, row, person, prompts.NAME_SENTENCE) for row, person in rows]
    return _free(split, IMAGE, "generation", examples)


def _against_options(opened: Opened, folder: str, row: OptionsRow, subject: str, question: str) -> Example:
    """A free answer that is compared with the wrong options."""
    return Example(
        id=opened.id(folder, IMAGE, "generation", row.number),
        question=question,
        answer=row.answer,
        image=row.image,
        perturbed=row.wrong,
        subject=subject,
    )


def _caption(opened: Opened, split: str) -> list[Task]:
    """CLEAR's captions: those of the perturbed folder."""
    folder = opened.perturbed(split)
    examples = [
        compared(
            Example(
                id=opened.id(folder, IMAGE, "caption", row.number),
                question=opened.caption_question(row.image.key, row.caption),
                answer=row.caption,
                image=row.image,
                subject=person,
            ),
            row,
        )
        for row, person in opened.captioned(split)
    ]
    return [_free(split, IMAGE, "caption", examples)]


def _texts(opened: Opened, split: str) -> list[Task]:
    """MMUnlearner's text questions; none if the folder has pictures only."""
    examples = free_answers(opened, split, TEXT, "qa")
    return [_free(split, TEXT, "qa", examples)] if examples else []


def _free(split: str, modality: str, kind: str, examples: Sequence[Example]) -> Task:
    """A task of free answers."""
    return Task(
        name=f"{split}_{modality}_{kind}",
        examples=tuple(examples),
        ask=Ask.generate,
        metrics=METRICS["qa" if kind == "qa" else "compared"],
        higher_is_better=HIGHER_IS_BETTER[split],
        max_new_tokens=MMUNLEARNER_TOKENS if kind == "qa" else CLEAR_TOKENS,
    )
