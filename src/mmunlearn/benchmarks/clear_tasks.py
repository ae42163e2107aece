"""The evaluation tasks of CLEAR under our own rules.

`forget` and `retain`: recognition, caption, qa; `real`: recognition (`real_faces`); `general`: choice (`real_world`).

Which rows are asked. Recognition: every row of `forgetNN_perturbed`, and of `retain_perturbed` those of people who are
retained under the ratio. That folder is one for all ratios; somebody who is forgotten now would count as retained
knowledge, so such rows are left out and counted in `problems()`. Captions and texts: every row of the `+tofu` folder.
A caption is compared with a paraphrase and wrong captions where the perturbed folder has that picture (by content:
`forget10+tofu` has 379 pictures, `forget10_perturbed` 378). Of the forget people it has nearly all, of the retained ones
about two each, so that most retained captions have no truth ratio and are counted as unscored there.
"""

from collections.abc import Sequence
from dataclasses import replace

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.benchmarks.clear_opened import Opened
from mmunlearn.benchmarks.clear_rows import CaptionIndex, CaptionRow, OptionsColumns, OptionsRow
from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT
from mmunlearn.data.example import Example
from mmunlearn.metrics.catalog import CHOICE_METRICS, GENERATION_METRICS, PERTURBED_METRICS

HIGHER_IS_BETTER = {"forget": False, "retain": True, "real": True, "general": True}
"""Of each group that CLEAR has."""
PEOPLE = ("forget", "retain")
"""The groups of fictitious people."""
MAX_NEW_TOKENS = 300
"""Captions are long; CLEAR's own evaluation allows as many."""

# The column `question` of real_faces is left aside: all pictures of people are asked about in the same words.
_FACES = OptionsColumns(question="", answer="answer", wrong="options")
_WORLD = OptionsColumns(question="question", answer="answer", wrong="options")


def fixed_tasks(opened: Opened, split: str) -> tuple[Task, ...]:
    """The tasks about one group of people; none for a group that CLEAR does not have."""
    if split in PEOPLE:
        return (choice(opened, split, "recognition", opened.perturbed(split), opened.faces(split)), *_free(opened, split))
    if split == "real":
        return (choice(opened, split, "recognition", "real_faces", real_people(opened.options("real_faces", _FACES))),)
    if split == "general":
        return (choice(opened, split, "choice", "real_world", scenes(opened.options("real_world", _WORLD))),)
    return ()


def real_people(rows: Sequence[OptionsRow]) -> list[tuple[OptionsRow, str]]:
    """Each row with its person; a real one must never be taken for a fictitious one of the same name."""
    return [(row, f"real-{row.answer}") for row in rows]


def scenes(rows: Sequence[OptionsRow]) -> list[tuple[OptionsRow, str]]:
    """Each row of other things than people with its picture as the unit."""
    return [(row, f"general-{row.image.key}") for row in rows]


def choice(opened: Opened, split: str, kind: str, folder: str, rows: Sequence[tuple[OptionsRow, str]]) -> Task:
    """A task of multiple choice from rows and the people they are about."""
    return Task(
        name=f"{split}_{IMAGE}_{kind}",
        examples=tuple(
            Example(
                id=opened.id(folder, IMAGE, kind, row.number),
                question=row.question or prompts.RECOGNITION_QUESTION,
                answer=row.answer,
                image=row.image,
                choices=row.options,
                subject=person,
            )
            for row, person in rows
        ),
        ask=Ask.choose,
        metrics=CHOICE_METRICS,
        higher_is_better=HIGHER_IS_BETTER[split],
        instruction=prompts.CHOICE_INSTRUCTION,
    )


def free_answers(opened: Opened, split: str, modality: str, kind: str) -> tuple[Example, ...]:
    """The captions or the questions of a split, as they are trained on."""
    return tuple(
        opened.example(split, row, person, kind)
        for row, person in opened.rows(split)
        if (row.image is not None) == (modality == IMAGE)
    )


def compared(example: Example, row: CaptionRow | None) -> Example:
    """A caption with its paraphrase and wrong captions, if there are any."""
    return example if row is None else replace(example, paraphrase=row.paraphrase, perturbed=row.wrong)


def _free(opened: Opened, split: str) -> list[Task]:
    """Captions and questions, as they are trained on."""
    made = []
    for modality, kind, metrics in ((IMAGE, "caption", PERTURBED_METRICS), (TEXT, "qa", GENERATION_METRICS)):
        examples = free_answers(opened, split, modality, kind)
        if modality == IMAGE:
            examples = _with_wrong_captions(opened, split, examples)
        if examples:
            made.append(
                Task(
                    name=f"{split}_{modality}_{kind}",
                    examples=examples,
                    ask=Ask.generate,
                    metrics=metrics,
                    higher_is_better=HIGHER_IS_BETTER[split],
                    max_new_tokens=MAX_NEW_TOKENS,
                )
            )
    return made


def _with_wrong_captions(opened: Opened, split: str, examples: Sequence[Example]) -> tuple[Example, ...]:
    """The captions, those with wrong ones where the perturbed folder has their picture."""
    index = CaptionIndex(opened.captions(split))
    rows = [index.find(example.image.key if example.image is not None else "", example.answer) for example in examples]
    folder = opened.perturbed(split)
    missing = rows.count(None)
    if examples and missing == len(rows):
        opened.problems.add(f"no caption of {opened.mixed(split)} is there, so none has a truth ratio ({folder})")
    elif split == "forget":  # of the retained people it has a part on purpose
        for _ in range(missing):
            opened.problems.add(f"picture of {opened.mixed(split)} is not there, so it has no truth ratio ({folder})")
    return tuple(compared(example, row) for example, row in zip(examples, rows, strict=True))
